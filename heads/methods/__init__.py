"""Training methods: one file and one line each."""

from __future__ import annotations

from heads.method import Recipe
from heads.methods import erm, fixmatch, freematch, ogm_ge, pseudolabel, ssmdg

METHODS: dict[str, Recipe] = {
    "erm": erm.RECIPE,
    "supervised": erm.SUPERVISED,
    "mm": erm.MM,
    "bmm": erm.BMM,
    "ogm-ge": ogm_ge.RECIPE,
    "pseudolabel": pseudolabel.RECIPE,
    "fixmatch": fixmatch.RECIPE,
    "freematch": freematch.RECIPE,
    "ssmdg": ssmdg.RECIPE,
}
