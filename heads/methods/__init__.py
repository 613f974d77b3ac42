"""Training methods: one file and one line each."""

from __future__ import annotations

from heads.method import Recipe
from heads.methods import erm, fixmatch, ssmdg

METHODS: dict[str, Recipe] = {"erm": erm.RECIPE, "fixmatch": fixmatch.RECIPE, "ssmdg": ssmdg.RECIPE}
