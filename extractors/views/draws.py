"""Random generators of views: one per clip, modality, stage and view index; and the variants that views have."""

from __future__ import annotations

import hashlib
import json
from typing import Literal, get_args

import numpy as np

Variant = Literal["strict", "paper"]  # of what is done to a view: put right, or as the papers' code does it

VARIANTS: tuple[Variant, ...] = get_args(Variant)


def check_variant(variant: str) -> None:
    """Raise ValueError unless ``variant`` is one of ``VARIANTS``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} of the views; allowed: {', '.join(VARIANTS)}")


def view_generator(view_seed: int, clip_id: str, modality: str, stage: str, index: int) -> np.random.Generator:
    """Return the generator of one stage of one view.

    Philox, keyed by the first 128 bits of the sha256 of the five arguments: equal arguments give equal draws on every
    machine and in any order; changing one argument gives an independent stream. numpy promises the raw stream for
    good, its distributions only by custom: a test pins what is drawn here.

    Args:
        view_seed: seed of all views of an extraction.
        clip_id: identity of the clip.
        modality: ``video``, ``flow`` or ``audio``.
        stage: which decisions are drawn, for example ``crop`` or ``strong``.
        index: index of the view; weak i and strong i read the same stage ``crop``.
    """
    material = json.dumps([int(view_seed), clip_id, modality, stage, int(index)])
    key = int.from_bytes(hashlib.sha256(material.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
