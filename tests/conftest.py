"""Paths that tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = (ROOT.parent / "shared").resolve()  # it may be a link; manifests name real paths


def _needed(folder: Path, what: str) -> Path:
    """Return a folder outside the checkout; without it the test is skipped, or fails with PIPE_REQUIRE_SHARED=1."""
    if not folder.is_dir():
        missing = pytest.fail if os.environ.get("PIPE_REQUIRE_SHARED") == "1" else pytest.skip
        missing(f"no {what} in {folder}")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take minutes run where they are asked for."""
    for item in items:
        for name in ("soak", "bench"):
            if item.get_closest_marker(name) and name not in config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=f"takes minutes; run with -m {name}"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in the workers: one thread per process, so that rounding and speed do not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def media_dir() -> Path:
    """Folder of real media files."""
    return _needed(SHARED / "media", "media")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of golden numbers (GOLDEN_DIR, default ../shared/golden)."""
    return _needed(Path(os.environ.get("GOLDEN_DIR", SHARED / "golden")), "golden numbers")


@pytest.fixture(scope="session")
def splits_dir() -> Path:
    """Folder of the published split files of real data sets."""
    return _needed(SHARED / "splits", "split files")
