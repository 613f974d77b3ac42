"""Finished runs made by hand, for tests of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from pipeline.reports.figures import Panel
from pipeline.types import RunResult, RunSpec

EVIL = "<script>alert('x')</script>&\"|$a_b$"
DOMAINS = ("A", "B", "C")


def make_run(
    method: str = "erm",
    target: str = "A",
    seed: int = 0,
    accuracy: float | None = 0.5,
    *,
    curves: Mapping[str, Sequence[float | None]] | None = None,
    confusion: tuple[tuple[int, ...], ...] = (),
    hparams: Mapping[str, float | str] | None = None,
    **changes: Any,
) -> RunResult:
    """A finished run, or a diverged one where the accuracy is None; changes are those of the spec."""
    spec = RunSpec(
        dataset="tiny",
        manifest_digest="m" * 8,
        classes=("walk", "run"),
        sources=tuple(domain for domain in DOMAINS if domain != target),
        target=target,
        modalities=("video", "audio"),
        features={"video": {"backbone": "v", "digest": "1"}, "audio": {"backbone": "a", "digest": "2"}},
        budget="5",
        method=method,
        hparams=dict(hparams or {}),
        split_seed=seed,
        init_seed=seed,
        steps=100,
        batch_labeled=4,
        batch_unlabeled=8,
        eval_every=50,
    )
    return RunResult(
        spec=replace(spec, **changes),
        metrics={} if accuracy is None else {"target/fused": accuracy, "selected_step": 100.0},
        curves=curves or {"step": [50, 100], "target/fused": [accuracy, accuracy]},
        selection="last",
        environment={},
        seconds=1.0,
        status="diverged" if accuracy is None else "finished",
        confusion=confusion,
    )


def label_of(panel: Panel) -> str:
    """The words that a screen reader reads for a drawing; checks that it is whole and hides nothing else."""
    root = ElementTree.fromstring(panel.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == " ".join(panel.description.split())
    return panel.description
