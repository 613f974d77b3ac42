"""Paths that tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def media_dir() -> Path:
    """Folder of real media files; the test is skipped where it is not there."""
    folder = SHARED / "media"
    if not folder.is_dir():
        pytest.skip("../shared/media is not here")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of golden numbers (GOLDEN_DIR, default ../shared/golden)."""
    folder = Path(os.environ.get("GOLDEN_DIR", SHARED / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden numbers in {folder}")
    return folder
