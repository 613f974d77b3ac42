"""The parts of the page as plain values for its template; text is escaped there, never here."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reports.drawing import house_style
from pipeline.reports.figures import PanelFigure, shared_styles
from pipeline.reports.findings import Findings, SettingFindings
from pipeline.reports.illustrations import Chapter, Drawing, Grid, maps, overview, setting_chapters
from pipeline.reports.inputs import ExtractionSummary, Probe, ReportInputs
from pipeline.reports.rank_figure import rank_diagram
from pipeline.reports.ranking import Ranking
from pipeline.reports.results import ResultTable, seed_text
from pipeline.reports.settings import METHOD_NAMES, Setting, Variant, method_order, runs_by_variant
from pipeline.reports.tables import STATISTICS
from pipeline.reports.wording import (
    Line,
    footnotes,
    has_statistics,
    headings,
    lines,
    percent,
    statistics_headings,
    statistics_lines,
    statistics_notes,
)
from pipeline.types import RunResult

TRACK = (
    "Backbones are frozen and only heads are trained, on cached features: cached-embedding results are a different "
    "track than fine-tuned backbones, and the two must not stand in one comparison."
)
PNG = b"\x89PNG\r\n\x1a\n"
LISTED = 500  # quarantined tracks listed on the page; more would make it slow to open
SHOWN = 6  # distinct values of an environment field that are written out
COLUMNS = 24  # methods that have a column of hyperparameters each; of more, only what they share is listed


@dataclass(frozen=True, slots=True)
class SettingSection:
    """Everything shown for one setting."""

    anchor: str
    title: str
    setting: Setting
    headings: tuple[str, ...]
    rows: tuple[Line, ...]
    notes: tuple[str, ...]
    marked: bool  # whether best and second are marked
    statistics: Statistics | None  # None where there is nothing to compare
    remarks: tuple[str, ...]  # what the runs themselves noted
    drawn: tuple[str, ...]  # what its figures leave out
    chapters: tuple[Chapter, ...]  # its figures
    repeat: Repeat


@dataclass(frozen=True, slots=True)
class Statistics:
    """The table of intervals and paired tests."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[Line, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ranks:
    """Average ranks over all settings of one protocol and selection rule."""

    ranking: Ranking
    diagram: PanelFigure


@dataclass(frozen=True, slots=True)
class Repeat:
    """What is needed to run a setting again."""

    facts: tuple[tuple[str, str], ...]
    features: tuple[tuple[str, str, str], ...]  # (modality, field, value)
    hparams: tuple[tuple[str, tuple[str, ...]], ...]  # (name, value per method)
    methods: tuple[str, ...]
    runs: tuple[tuple[str, tuple[str, ...]], ...]  # (method, run ids)


def summary(findings: Findings) -> str:
    """One sentence on what was run."""
    results = [run for found in findings.settings for run in found.runs]
    specs = [result.spec for result in results]
    methods = sorted({spec.method for spec in specs}, key=method_order)
    names = [METHOD_NAMES.get(method, method) for method in methods]
    listed = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    targets = {(spec.dataset, spec.target) for spec in specs}
    seeds = {(spec.split_seed, spec.init_seed) for spec in specs}
    settings = [found.setting for found in findings.settings]
    lost = sum(result.status == "diverged" for result in results)
    datasets = ", ".join(sorted({setting.dataset for setting in settings}))
    where = settings[0].title if len(settings) == 1 else f"{len(settings)} settings of {datasets}"
    kind = "domain" if any(setting.inside for setting in settings) else "unseen target domain"
    return (
        f"{_counted(len(results), 'run')} of {listed} on {_counted(len(targets), kind)} with "
        f"{_counted(len(seeds), 'seed')}; {where}{f'; {lost} diverged' if lost else ''}."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def setting_sections(findings: Findings, shared: Drawing) -> list[SettingSection]:
    """One section per setting, in a fixed order, with the same style for a method in all of them."""
    whole = len(findings.settings)
    return [_section(i, found, *setting_chapters(i, whole, found, shared)) for i, found in enumerate(findings.settings)]


def _section(i: int, found: SettingFindings, drawn: tuple[str, ...], chapters: tuple[Chapter, ...]) -> SettingSection:
    table = found.table
    return SettingSection(
        anchor=f"setting-{i}",
        title=found.title,
        setting=table.setting,
        headings=tuple(headings(table)),
        rows=tuple(lines(table)),
        notes=tuple(footnotes(table)),
        marked=any(rank for column in range(len(table.columns)) for rank in table.ranks(column)),
        statistics=_statistics(table) if has_statistics(table) else None,
        remarks=tuple(_remarks(found.runs)),
        drawn=drawn,
        chapters=chapters,
        repeat=_repeat(table, found.runs),
    )


def _statistics(table: ResultTable) -> Statistics:
    return Statistics(
        title=STATISTICS,
        headings=tuple(statistics_headings(table)),
        rows=tuple(statistics_lines(table)),
        notes=tuple(statistics_notes(table)),
    )


def ranks(rankings: Sequence[Ranking]) -> list[Ranks]:
    """Average ranks with their diagrams."""
    return [
        Ranks(ranking, PanelFigure((rank_diagram(ranking, f"ranks{i}"),), ())) for i, ranking in enumerate(rankings)
    ]


def _remarks(runs: Sequence[RunResult]) -> list[str]:
    """Distinct sizes and notes of the runs' splits, with the number of runs that have them."""
    sizes = (", ".join(f"{size} {part}" for part, size in run.sizes.items()) + " clips" for run in runs if run.sizes)
    counts = Counter([*sizes, *(note for run in runs for note in run.notes)])
    return [f"{note} ({_counted(number, 'run')})" for note, number in sorted(counts.items())]


def _repeat(table: ResultTable, runs: Sequence[RunResult]) -> Repeat:
    setting = table.setting
    classes = ", ".join(setting.classes)
    targets = sorted({(run.spec.target, run.spec.sources) for run in runs})
    own = runs_by_variant(runs)
    facts = [
        ("Data set", setting.dataset),
        ("Manifest digest", setting.manifest_digest),
        ("Classes", f"{len(setting.classes)}: {classes}"),
        ("Targets (sources)", "; ".join(f"{target} ({', '.join(sources)})" for target, sources in targets)),
        ("Label budget", setting.budget_text),
        ("Protocol", setting.protocol_text),
        ("Target clips evaluated", setting.target_text),
        ("Selection rule", setting.selection_text),
        ("Steps", f"{setting.steps}, evaluated every {setting.eval_every}"),
        ("Compact features", setting.projection),
        ("Precision", setting.precision),
        (
            "Early stopping",
            f"after {setting.patience} evaluations without a better one" if setting.patience else "none",
        ),
        ("Batch", f"{setting.batch_labeled} labeled + {setting.batch_unlabeled} unlabeled"),
        ("Seeds", ", ".join(seed_text(seed) for seed in table.seeds)),
        ("Code version", setting.version or "not recorded"),
    ]
    methods, hparams = _hparams(table)
    return Repeat(
        facts=tuple(facts),
        features=tuple(setting.feature_rows()),
        hparams=hparams,
        methods=methods,
        runs=tuple((row.label, tuple(sorted(r.spec.run_id for r in own[row.variant]))) for row in table.rows),
    )


def _hparams(table: ResultTable) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Column headings and rows of the hyperparameters: one column per method, or per kind where they are many."""
    kinds: dict[str, list[Variant]] = {row.label: [row.variant] for row in table.rows}
    if len(kinds) > COLUMNS:
        kinds = {}
        for row in table.rows:
            kinds.setdefault(METHOD_NAMES.get(row.method, row.method), []).append(row.variant)
    values: list[dict[str, set[str]]] = []
    for variants in kinds.values():
        seen: dict[str, set[str]] = {}
        for variant in variants:
            for name, value in variant.hparams:
                seen.setdefault(name, set()).add(str(value))
        values.append(seen)
    names = sorted({name for seen in values for name in seen})
    rows = ((name, tuple(_one(seen.get(name, set())) for seen in values)) for name in names)
    return tuple(kinds), tuple(rows)


def _one(values: set[str]) -> str:
    """The only value, nothing where there is none, or how many there are."""
    return next(iter(values), "") if len(values) < 2 else f"{len(values)} values"


def environment(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Every field of the environments with its distinct values, and the training time."""
    fields = sorted({name for result in results for name in result.environment})
    rows = []
    for name in fields:
        values = sorted({str(result.environment.get(name, "not recorded")) for result in results})
        more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
        rows.append((name, ", ".join(values[:SHOWN]) + more))
    seconds = sum(result.seconds for result in results)
    return [*rows, ("training time", f"{seconds:,.1f} s in total over {_counted(len(results), 'run')}")]


def diverged(results: Sequence[RunResult]) -> list[tuple[str, str, str, str]]:
    """(run id, method, target, seed) of every run that is in no mean."""
    return [
        (
            result.spec.run_id,
            METHOD_NAMES.get(result.spec.method, result.spec.method),
            result.spec.target,
            seed_text((result.spec.split_seed, result.spec.init_seed)),
        )
        for result in results
        if result.status == "diverged"
    ]


def probe_grid(probe: Sequence[Probe]) -> Grid:
    """Domains by modalities: accuracy in %, with the numbers of clips it was fitted on and tested on."""
    modalities = tuple(dict.fromkeys(row.modality for row in probe))
    domains = dict.fromkeys(row.domain for row in probe)
    found = {(p.domain, p.modality): f"{percent(p.accuracy)} ({p.train_n} / {p.test_n})" for p in probe}
    return Grid(modalities, tuple((d, tuple(found.get((d, m)) for m in modalities)) for d in domains))


def picture_grid(pictures: Sequence[tuple[str, Sequence[tuple[str, bytes]]]]) -> Grid:
    """Domains by classes: pictures as data addresses.

    Raises:
        ValueError: bytes that are not a PNG picture.
    """
    classes = tuple(dict.fromkeys(name for _, row in pictures for name, _ in row))
    rows = []
    for domain, row in pictures:
        found = {}
        for name, data in row:
            if not data.startswith(PNG):
                raise ValueError(f"sample picture of class {name!r} in domain {domain!r} is not a PNG file")
            found[name] = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
        rows.append((domain, tuple(found.get(name) for name in classes)))
    return Grid(classes, tuple(rows))


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Quarantined tracks, summed up and listed."""

    counts: tuple[tuple[str, int, int, int], ...]  # (modality, present, absent, failed)
    reasons: tuple[tuple[str, str, str, int], ...]  # (modality, status, reason up to its colon, tracks), frequent first
    listed: tuple[tuple[str, str, str, str], ...]  # (clip id, modality, status, reason)
    total: int


def quarantine(extraction: ExtractionSummary) -> Quarantine:
    """Sum up what the extraction could not use; at most ``LISTED`` tracks are listed one by one."""
    rows = sorted((q.modality, q.status, q.reason, q.clip_id) for q in extraction.quarantined)
    reasons = Counter((modality, status, reason.partition(":")[0]) for modality, status, reason, _ in rows)
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return Quarantine(
        counts=tuple((c.modality, c.present, c.absent, c.failed) for c in extraction.counts),
        reasons=tuple((*reason, number) for reason, number in ordered),
        listed=tuple((clip_id, modality, status, reason) for modality, status, reason, clip_id in rows[:LISTED]),
        total=len(rows),
    )


@house_style()
def context(inputs: ReportInputs, findings: Findings) -> dict[str, object]:
    """Values of the template."""
    look = shared_styles(table for _, table in findings.tables)
    return {
        "title": inputs.title,
        "summary": summary(findings),
        "source": inputs.source,
        "notes": [*inputs.notes, *findings.unplaced, TRACK],
        "overview": overview(findings, inputs, look),
        "sections": setting_sections(findings, Drawing(look, inputs.missing_rows)),
        "ranks": ranks(findings.rankings),
        "unranked": findings.unranked,
        "maps": maps(inputs.embeddings, inputs.map_method),
        "probe": probe_grid(inputs.probe) if inputs.probe else None,
        "pictures": picture_grid(inputs.sample_pictures) if inputs.sample_pictures else None,
        "quarantine": quarantine(inputs.extraction) if inputs.extraction else None,
        "environment": environment(inputs.results),
        "diverged": diverged(inputs.results),
    }
