"""What the commits of finished units say, read without trusting them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cache.layout import ClipRecord, Identity


def parse_commit(text: bytes, clips: Sequence[str]) -> dict[str, Any] | None:
    """A commit that is about these clips; ``None`` if it is damaged or about others."""
    try:
        commit: dict[str, Any] = json.loads(text)
        named = tuple(plain["clip_id"] for plain in commit["clips"])
    except (ValueError, KeyError, TypeError):
        return None
    return commit if named == tuple(clips) else None


def essence(commit: Mapping[str, Any]) -> tuple[str, list[tuple[str, str, str]]]:
    """What two commits of the same features agree on."""
    return commit["sha256"], [(c["clip_id"], c["status"], c["code"]) for c in commit["clips"]]


def records_of(commits: Sequence[Mapping[str, Any]]) -> dict[str, ClipRecord]:
    """Record of every committed clip, by clip id."""
    return {plain["clip_id"]: ClipRecord.from_json(plain) for commit in commits for plain in commit["clips"]}


def digest_of(identity: Identity, commits: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over an identity and commits in order: features and states, not times or decoding facts."""
    state = hashlib.sha256(identity.digest.encode())
    for commit in commits:
        rows = [[c["clip_id"], c["status"], c["code"]] for c in commit["clips"]]
        state.update(json.dumps([commit["sha256"], rows]).encode())
    return state.hexdigest()
