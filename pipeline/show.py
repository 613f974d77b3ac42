"""What the commands print: one function per result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from cache.layout import ClipRecord
from heads.fillers import FILLERS
from heads.method import SHARED_HPARAMS
from heads.methods import METHODS
from pipeline.classical import CLASSICAL
from pipeline.console import duration, out, size
from pipeline.decoding import STAGES
from pipeline.extract import ExtractReport
from pipeline.hparams import STRUCTURE
from pipeline.missing import MissingRow
from pipeline.reports import Probe, group_by_setting, result_table, to_rich
from pipeline.reports.settings import Variant, variant_labels
from pipeline.reports.statistics import mean_and_standard_error
from pipeline.trial import Trial
from pipeline.types import Manifest, RunResult

MOST_LISTED = {"Quarantined": 40, "Without such a track": 8, "Made anew": 8}  # lines; the report page lists all


def show_dataset(manifest: Manifest) -> None:
    """One line about a data set."""
    out.print(
        escape(
            f"{manifest.dataset}: {len(manifest.clips)} clips, {len(manifest.classes)} classes "
            f"({', '.join(manifest.classes)}), domains {', '.join(manifest.domains)}, in {manifest.root}"
        )
    )


def show_extraction(report: ExtractReport) -> None:
    """Counts per modality, where the time went, and every track that is not used."""
    table = Table("modality", "present", "absent", "failed", title="Features", title_justify="left", box=SIMPLE_HEAD)
    for modality, counts in report.counts.items():
        table.add_row(modality, *(str(counts.get(state, 0)) for state in ("present", "absent", "failed")))
    out.print(table)
    for note in report.repaired[: MOST_LISTED["Made anew"]]:
        out.print(escape(f"Made anew: {note}"))
    if len(report.repaired) > MOST_LISTED["Made anew"]:
        out.print(f"... and {len(report.repaired) - MOST_LISTED['Made anew']} more reasons")
    if report.new_clips:
        rate = report.new_clips / report.seconds
        per_clip = _per_clip({stage: seconds / report.new_clips for stage, seconds in report.stage_seconds.items()})
        out.print(f"{report.new_clips} clips in {report.seconds:.1f} s ({rate:.1f}/s); ms per clip: {per_clip}")
        out.print(_bottleneck(report))
    elif not report.elsewhere:
        out.print("Everything was extracted already.")
    if report.elsewhere:
        out.print(f"{report.elsewhere} clips were done by other processes meanwhile.")
    if report.otherwise:
        modality, record = report.otherwise[0]
        out.print(
            escape(
                f"{len(report.otherwise)} tracks were read by another decoder than asked for; the first: "
                f"{record.clip_id} {modality} ({record.facts['fallback']})"
            )
        )
    _show_tracks("Quarantined", report.quarantined)
    _show_tracks("Without such a track", report.absent)


def _per_clip(seconds: Mapping[str, float]) -> str:
    """Milliseconds of every stage."""
    return ", ".join(f"{stage} {seconds.get(stage, 0.0) * 1e3:.0f}" for stage in STAGES)


def _bottleneck(report: ExtractReport) -> str:
    """What the run waited for, in one sentence."""
    waited = report.stage_seconds.get("wait", 0.0) / (report.encoders * report.seconds)
    slowest = max(STAGES, key=lambda stage: report.stage_seconds.get(stage, 0.0))
    share = report.stage_seconds.get(slowest, 0.0) / max(1e-9, sum(report.stage_seconds.get(s, 0.0) for s in STAGES))
    return f"Most work: {slowest} ({share:.0%} of it); encoders waited for decoding {waited:.0%} of the time"


def show_trial(trial: Trial) -> None:
    """What an extraction would take."""
    out.print(
        f"{trial.clips} clips, {trial.clips - trial.missing} of them are in the cache, {trial.missing} to extract"
    )
    if not trial.tried:
        return
    out.print(f"Tried {trial.tried} clips, ms per clip of one process: {_per_clip(trial.stage_seconds)}")
    for clip_id, modality, reason in trial.failures:
        out.print(escape(f"  {clip_id} {modality}: {reason}"))
    free = "" if trial.free_bytes is None else f" ({size(trial.free_bytes)} free)"
    out.print(
        f"All of them: about {duration(trial.seconds)}, {size(trial.disk_bytes)} of features{free}, up to "
        f"{size(trial.memory_bytes)} of memory per process. Nothing was written."
    )


def _show_tracks(title: str, tracks: Sequence[tuple[str, ClipRecord]]) -> None:
    """List unused tracks, the modalities of one clip with one reason in one line."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for modality, record in tracks:
        together.setdefault((record.clip_id, record.code, record.detail), []).append(modality)
    if not together:
        return
    out.print(f"{title}: {len(tracks)} tracks of {len({clip for clip, _, _ in together})} clips")
    shown = list(together.items())[: MOST_LISTED[title]]
    for (clip_id, code, detail), modalities in shown:
        out.print(escape(f"  {clip_id} {'+'.join(modalities)}: {code} ({detail})"))
    if len(together) > len(shown):
        out.print(f"  ... and {len(together) - len(shown)} more; `pipe report` lists all")


def show_notes(notes: Sequence[str]) -> None:
    """What a reader must know."""
    for note in notes:
        out.print(escape(f"Note: {note}"))


def show_probe(rows: Sequence[Probe]) -> None:
    """Accuracy of linear probes, one row per modality and one column per domain."""
    domains = list(dict.fromkeys(row.domain for row in rows))
    title = "Linear probe: all labels of a domain, accuracy on its test part, %"
    table = Table("features", *map(escape, domains), title=title, title_justify="left", box=SIMPLE_HEAD)
    for modality in dict.fromkeys(row.modality for row in rows):
        found = {row.domain: row for row in rows if row.modality == modality}
        table.add_row(modality, *(f"{found[d].accuracy * 100:.1f}" if d in found else "-" for d in domains))
    if rows:
        out.print(table)
    else:
        out.print("No linear probe: no domain has both training and test clips of two classes.")


def show_table(results: Sequence[RunResult]) -> None:
    """Result tables, one per setting."""
    for _, members in group_by_setting(results):
        out.print(to_rich(result_table(members)))


def show_runs(results: Sequence[RunResult], new: int) -> None:
    """What was trained now, what diverged, and the table."""
    out.print(
        f"{len(results)} runs, {new} of them trained now" if new else f"All {len(results)} runs were there already."
    )
    diverged = [r.spec.run_id for r in results if r.status == "diverged"]
    if diverged:
        out.print(f"Diverged (not in the table): {', '.join(diverged)}; a smaller learning rate may help")
    for note in dict.fromkeys(note for r in results for note in r.notes):
        out.print(escape(f"Note: {note}"))
    show_table(results)


def show_paths(paths: Mapping[str, Path]) -> None:
    """Where things were written."""
    for path in paths.values():
        out.print(escape(f"Written: {path}"))


def show_missing(runs: Sequence[RunResult], rows: Mapping[str, Sequence[MissingRow]]) -> None:
    """One table per setting and variant: subsets of modalities x fillers, mean and standard error over the seeds."""
    for setting, members in group_by_setting([run for run in runs if run.spec.run_id in rows]):
        labels = variant_labels(members)
        for variant, label in labels.items():
            mine = [run for run in members if Variant.of(run) == variant]
            table = missing_table(mine, rows)
            fillers = list(dict.fromkeys(filler for _, filler in table))
            title = f"{label} on {setting.title}: target accuracy with missing modalities, %"
            drawn = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
            drawn.add_column("present", no_wrap=True, min_width=max(len("+".join(kept)) for kept, _ in table))
            longest = max(len(_accuracy(cell)) for cell in table.values())
            for filler in fillers:
                drawn.add_column(filler, justify="right", overflow="fold", min_width=longest)
            for kept in dict.fromkeys(kept for kept, _ in table):
                cells = (table.get((kept, filler)) for filler in fillers)
                drawn.add_row(escape("+".join(kept)), *(_accuracy(cell) for cell in cells))
            out.print(drawn)
    names = dict.fromkeys(row.filler for of_run in rows.values() for row in of_run)
    for name in names:
        out.print(escape(f"{name}: {FILLERS[name]}"))


def _accuracy(cell: tuple[float, float | None] | None) -> str:
    if cell is None:
        return "-"
    mean, error = cell
    return f"{100 * mean:.1f}" if error is None else f"{100 * mean:.1f}±{100 * error:.1f}"


def missing_table(
    runs: Sequence[RunResult], rows: Mapping[str, Sequence[MissingRow]]
) -> dict[tuple[tuple[str, ...], str], tuple[float, float | None]]:
    """Mean and standard error over the seeds of the average over the targets, per (kept modalities, filler).

    Seeds that lack a target, or whose target has no clip with a kept modality, are left out.
    """
    targets = {run.spec.target for run in runs}
    values: dict[tuple[tuple[str, ...], str], dict[tuple[int, int], dict[str, float]]] = {}
    for run in runs:
        for row in rows[run.spec.run_id]:
            if row.accuracy is not None:
                seeds = values.setdefault((row.kept, row.filler), {})
                seeds.setdefault((run.spec.split_seed, run.spec.init_seed), {})[run.spec.target] = row.accuracy
    found = {}
    for key, seeds in values.items():
        averages = [sum(of.values()) / len(of) for of in seeds.values() if of.keys() == targets]
        if averages:
            found[key] = mean_and_standard_error(averages)
    return found


def show_methods() -> None:
    """Every method with its source and its own hyperparameters."""
    table = Table("name", "title", "source", "own hyperparameters", box=SIMPLE_HEAD)
    for name, recipe in (METHODS | CLASSICAL).items():
        own = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in recipe.hparams.items())
        table.add_row(name, escape(recipe.title), escape(recipe.source), escape(own or "-"))
    out.print(table)
    shared = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in SHARED_HPARAMS.items())
    out.print(escape(f"Trained heads all have: {shared}"))
    for name, allowed in STRUCTURE.items():
        out.print(escape(f"{name}: {', '.join(allowed) if allowed else 'a number'}"))
