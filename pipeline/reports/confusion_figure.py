"""Confusion matrices: which classes are taken for which, per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.reports.figures import Panel, PanelFigure
from pipeline.reports.heat import COLUMNS, HeatMap, draw_heat_map, scale_legend
from pipeline.reports.results import unique_runs
from pipeline.reports.settings import Variant, runs_by_variant
from pipeline.reports.wording import percent
from pipeline.types import RunResult

MOST_CLASSES = 30  # of a drawing; beyond, pairs are listed
PAIRS = 10  # listed per method
TOLD = 5  # pairs named in a drawing's words


@dataclass(frozen=True, slots=True)
class Confusion:
    """Target clips of one method by true and predicted class, summed over targets and seeds."""

    label: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # (true, predicted)
    runs: int  # runs that were summed
    of: int  # finished runs that there are

    def shares(self) -> tuple[tuple[float | None, ...], ...]:
        """Counts divided by the number of clips of their true class; None for a class without clips."""
        return tuple(tuple(count / sum(row) if sum(row) else None for count in row) for row in self.counts)

    def confused(self, most: int) -> list[tuple[str, str, int, float]]:
        """The pairs of classes most often confused: (true, predicted, clips, share of the true class's clips)."""
        pairs = [
            (self.classes[i], self.classes[j], count, count / sum(row))
            for i, row in enumerate(self.counts)
            for j, count in enumerate(row)
            if i != j and count
        ]
        return sorted(pairs, key=lambda pair: (-pair[3], -pair[2], pair[0], pair[1]))[:most]


def confusions(runs: Sequence[RunResult], labels: Mapping[Variant, str]) -> list[Confusion]:
    """Sum the matrices of every method over targets and seeds.

    Args:
        runs: of one setting; diverged ones are left out.
        labels: names of the variants wanted.

    Raises:
        ValueError: a matrix that does not fit the classes of its run.
    """
    finished = [run for run in unique_runs(runs) if run.status == "finished"]
    found = []
    for variant, own in runs_by_variant(finished).items():
        known = [run for run in own if run.confusion]
        if variant not in labels or not known:
            continue
        classes = known[0].spec.classes
        for run in known:
            if [len(row) for row in run.confusion] != [len(classes)] * len(classes):
                raise ValueError(f"run {run.spec.run_id}: its confusion matrix does not fit its {len(classes)} classes")
        sums = tuple(
            tuple(sum(run.confusion[i][j] for run in known) for j in range(len(classes))) for i in range(len(classes))
        )
        found.append(Confusion(labels[variant], classes, sums, len(known), len(own)))
    return found


def confusion_figure(found: Sequence[Confusion]) -> PanelFigure:
    """Draw a heat map per method: shares of each true class, and the numbers where they can be read.

    Args:
        found: matrices of one setting, of at most ``MOST_CLASSES`` classes.
    """
    panels, notes = [], []
    for one in found:
        shares = one.shares()
        small = len(one.classes) <= COLUMNS
        heat = HeatMap(
            rows=one.classes,
            columns=one.classes,
            values=shares,
            texts=tuple(tuple(f"{100 * s:.0f}" if small and s else "" for s in row) for row in shares),
            corner="true ↓ predicted →",
        )
        words = _describe(one)
        panels.append(Panel(one.label, words, draw_heat_map(heat, (0.0, 1.0), words)))
        pairs = _pairs(one)
        if not small and pairs:
            notes.append(f"{one.label}, most confused, % of the true class: {'; '.join(pairs)}.")
        if one.runs < one.of:
            notes.append(f"{one.label}: {one.runs} of {one.of} runs recorded theirs.")
    return PanelFigure(tuple(panels), scale_legend((0.0, 1.0)) if panels else (), tuple(notes))


def _pairs(one: Confusion) -> list[str]:
    return [f"{true} taken for {taken} {percent(share)}" for true, taken, _, share in one.confused(TOLD)]


def _describe(one: Confusion) -> str:
    """One paragraph for those who cannot see the drawing: the diagonal, and what is confused most."""
    diagonal = [
        f"{name} {percent(row[i])}" for i, (name, row) in enumerate(zip(one.classes, one.shares(), strict=True))
    ]
    return (
        f"Confusion matrix of {one.label}, % of each true class, {sum(map(sum, one.counts))} predictions. "
        f"Right: {', '.join(diagonal)}. Most confused: {'; '.join(_pairs(one)) or 'none'}."
    )
