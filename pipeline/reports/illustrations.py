"""Which figures stand where on the page, and what is said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.reports.ablation_figure import ablation_figure, sensitivity_figure
from pipeline.reports.budget_figure import budget_figure
from pipeline.reports.choice import drawn_rows
from pipeline.reports.confusion_figure import MOST_CLASSES, PAIRS, Confusion, confusion_figure, confusions
from pipeline.reports.embedding_map import embedding_map
from pipeline.reports.figures import PanelFigure, Style, learning_curves, pseudo_label_curves, result_points
from pipeline.reports.findings import Findings, SettingFindings
from pipeline.reports.heat import COLUMNS
from pipeline.reports.imbalance_figure import imbalance_figure
from pipeline.reports.inputs import EmbeddedRun, MapMethod, MissingCell, ReportInputs
from pipeline.reports.missing_figure import missing_figure
from pipeline.reports.pseudo_figure import microscope_figure
from pipeline.reports.results import seed_text
from pipeline.reports.settings import METHOD_NAMES, Setting, Variant
from pipeline.reports.wording import percent
from pipeline.types import RunResult

ILLUSTRATED = 24  # settings with figures; with more, a page would be too large for a phone
CLOSER = 4  # of them, those with all figures
SEVERAL = 3  # values of a hyperparameter that are drawn as a line beside the bars of cases


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of anything: column names, then (row name, cells); a cell is None where there is nothing."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str | None, ...]], ...]
    corner: str = ""  # what the rows are
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Illustration:
    """A figure with its caption, or tables in its place."""

    caption: str
    figure: PanelFigure
    size: str = ""  # of its panels: empty, small or wide
    grids: tuple[Grid, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show and nothing to say."""
        return not (self.figure.panels or self.figure.notes or self.grids)


@dataclass(frozen=True, slots=True)
class Chapter:
    """Illustrations under one heading."""

    heading: str  # empty: none
    parts: tuple[Illustration, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What figures of all settings share."""

    look: Mapping[Variant, Style]
    missing_rows: Mapping[str, Sequence[MissingCell]]  # per run id


def chapters(found: Sequence[tuple[str, Sequence[Illustration]]]) -> tuple[Chapter, ...]:
    """Chapters of (heading, illustrations), without what is empty."""
    kept = ((heading, tuple(part for part in parts if not part.empty)) for heading, parts in found)
    return tuple(Chapter(heading, parts) for heading, parts in kept if parts)


def setting_chapters(
    i: int, settings: int, found: SettingFindings, shared: Drawing
) -> tuple[tuple[str, ...], tuple[Chapter, ...]]:
    """Sentences on what the figures of a setting leave out, and its figures.

    Args:
        i: its number on the page, from 0.
        settings: how many the page has.
        found: its runs and table.
        shared: what figures of all settings share.
    """
    fewer = "A report of fewer settings has them."
    if i >= ILLUSTRATED:
        return (f"No figures: this page draws those of its first {ILLUSTRATED} of {settings} settings. {fewer}",), ()
    kept, notes = drawn_rows(found.table)
    drawn = set(kept)
    table = replace(found.table, rows=tuple(row for row in found.table.rows if row.variant in drawn))
    labels = {row.variant: row.label for row in table.rows}
    runs = [run for run in found.runs if Variant.of(run) in drawn]
    closer: list[tuple[str, Sequence[Illustration]]] = []
    if i < CLOSER:
        heads = [_heads(i, part, runs, labels) for part in ("target", "val")]
        closer = [
            ("Single modalities and their fusion", heads),
            ("Pseudo-labels", _pseudo_labels(i, runs, labels, shared.look)),
        ]
    elif settings > CLOSER:
        notes = (*notes, f"Single modalities and pseudo-labels are drawn for the first {CLOSER} settings. {fewer}")
    return notes, chapters(
        [
            ("", [_points(result_points(table, f"s{i}-points", shared.look))]),
            ("Learning curves", [_curves(learning_curves(runs, f"s{i}-curves", shared.look, labels))]),
            *closer,
            ("Confusion between classes", [_confusion(confusions(runs, labels), found.setting)]),
            ("Missing modalities", [_missing(missing_figure(runs, labels, shared.missing_rows))]),
        ]
    )


def _points(figure: PanelFigure) -> Illustration:
    caption = (
        "Every seed. Small dots: single seeds; large marks: their mean, with a bar of ± one standard error. Axes are "
        "shared."
    )
    return Illustration(caption, figure, "small")


def _curves(figure: PanelFigure) -> Illustration:
    caption = (
        "Target accuracy over training steps: mean over seeds, band of ± one standard error. The order of methods can "
        "depend on the number of steps, so read the table with its curve."
    )
    return Illustration(caption, figure if figure.panels else PanelFigure((), (), ("No finished run has a curve.",)))


def _heads(i: int, part: str, runs: Sequence[RunResult], labels: Mapping[Variant, str]) -> Illustration:
    where = "the target" if part == "target" else "the sources' validation clips"
    caption = (
        f"Accuracy on {where} of every modality's own head and of their fusion, average over the targets: mean over "
        "seeds, band of ± one standard error. A modality far below the others is one that training neglects, or one "
        "that says less."
    )
    return Illustration(caption, imbalance_figure(runs, labels, part, f"s{i}-{part}-heads"))


def _pseudo_labels(
    i: int, runs: Sequence[RunResult], labels: Mapping[Variant, str], look: Mapping[Variant, Style]
) -> list[Illustration]:
    coverage, precision = pseudo_label_curves(runs, f"s{i}-pseudo", look, labels)
    return [
        Illustration(
            "Coverage: share of the unlabeled pool whose pseudo-label is used. Accepted ones are trained on with plain "
            "cross-entropy: FixMatch's confident ones, SSMDG's consensus.",
            coverage,
        ),
        Illustration(
            "Precision: share of these pseudo-labels that are right, by true labels that training never sees. A gap "
            "means that no pseudo-label was accepted; means are over the seeds that accepted any.",
            precision,
        ),
        Illustration(
            "Pseudo-labels at the last evaluation, in closer view: mean over runs (seeds and targets) with a bar of ± "
            "one standard error. Coverage: of the clips of a class, or domain; precision: of the pseudo-labels of a "
            "class, or of the clips of a domain. Agreement: of the accepted ones, those that a modality alone would "
            "have labeled the same.",
            microscope_figure(runs, labels, look, f"s{i}-micro"),
        ),
    ]


def _confusion(found: Sequence[Confusion], setting: Setting) -> Illustration:
    """Matrices, or the most confused pairs where there are too many classes for one."""
    counted = "Target clips of all targets and seeds together."
    if len(setting.classes) <= MOST_CLASSES:
        caption = f"Rows: true classes; columns: predicted ones. In % of the true class, empty: none. {counted}"
        return Illustration(caption, confusion_figure(found), "wide" if len(setting.classes) > COLUMNS else "")
    grids = [
        Grid(
            columns=("taken for", "clips", "% of the true class"),
            rows=tuple(
                (true, (taken, f"{clips}", percent(share))) for true, taken, clips, share in one.confused(PAIRS)
            ),
            corner="true class",
            caption=f"{one.label}: the {PAIRS} pairs of {len(setting.classes)} classes most often confused. {counted}",
        )
        for one in found
    ]
    return Illustration("", PanelFigure((), ()), grids=tuple(grids))


def _missing(figure: PanelFigure) -> Illustration:
    caption = (
        "Target accuracy, %, had the clips only the modalities of the row; columns: what stands in for the others. "
        "Mean over seeds of the average over the targets, of clips that have one of the row's modalities. One colour "
        "scale for all methods."
    )
    return Illustration(caption, figure)


def overview(findings: Findings, inputs: ReportInputs, look: Mapping[Variant, Style]) -> tuple[Chapter, ...]:
    """Figures over several settings: label budgets, ablations, single hyperparameters."""
    budgets = budget_figure(
        [(found.setting, found.runs) for found in findings.settings], "budgets", look, inputs.baseline
    )
    bars = ablation_figure(inputs.results, inputs.cases, findings.tables, "ablation")
    lines = sensitivity_figure(findings.tables, SEVERAL if inputs.cases else 2, "sensitivity")
    return chapters(
        [
            (
                "Label budgets",
                [
                    Illustration(
                        "Target accuracy against the label budget: average over the targets, mean over seeds, with a "
                        "bar of ± one standard error. Horizontal: upper bounds, which are given all labels.",
                        budgets,
                    )
                ],
            ),
            (
                "Ablation",
                [
                    Illustration(
                        f"Difference of target accuracy to {_reference(inputs)}, percentage points, average over the "
                        "targets, paired by seed; line: 95\u00a0% confidence interval over seeds (bootstrap).",
                        bars,
                    )
                ],
            ),
            (
                "One hyperparameter at a time",
                [
                    Illustration(
                        "Target accuracy against one hyperparameter, all others fixed: average over the targets, mean "
                        "over seeds, with a bar of ± one standard error. No value may be chosen by it.",
                        lines,
                    )
                ],
            ),
        ]
    )


def _reference(inputs: ReportInputs) -> str:
    """What the bars are compared with."""
    first = next(iter(inputs.cases.values()), "")
    return f"“{first}”" if first else f"{METHOD_NAMES.get(inputs.baseline, inputs.baseline)} of the same setting"


def maps(embeddings: Sequence[EmbeddedRun], method: MapMethod) -> tuple[Chapter, ...]:
    """Maps of the embeddings of chosen runs.

    Raises:
        UsageError: UMAP is asked for and not installed.
    """
    found = []
    for i, run in enumerate(embeddings):
        name = METHOD_NAMES.get(run.spec.method, run.spec.method)
        seed = seed_text((run.spec.split_seed, run.spec.init_seed))
        caption = (
            f"Embeddings of run {run.spec.run_id} ({name}, target {run.spec.target}, seed {seed}, {run.spec.budget} "
            "labels). A point is a clip: colour is its class, shape its domain. Stars are prototypes, one per class "
            "and source domain."
        )
        if run.prototypes is None:
            caption = caption.removesuffix(" Stars are prototypes, one per class and source domain.")
        found.append(("", [Illustration(caption, embedding_map(run, f"map{i}", method))]))
    return chapters(found)
