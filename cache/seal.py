"""A digest inside a JSON file over all else that is in it, so that one flipped bit anywhere shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def seal_of(plain: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of everything but the seal."""
    rest = {k: v for k, v in plain.items() if k != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with their seal, as the last key."""
    return {**{k: v for k, v in plain.items() if k != SEAL}, SEAL: seal_of(plain)}


def is_intact(plain: Mapping[str, Any]) -> bool:
    """Whether the seal is right; files of before there were seals have none and pass."""
    return SEAL not in plain or plain[SEAL] == seal_of(plain)
