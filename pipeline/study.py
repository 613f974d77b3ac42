"""Whole workflows behind the commands: features of a data set, runs on them, and the page that shows both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cache.layout import CacheError, Status
from cache.places import place_of
from cache.store import FeatureGroup, FeatureTable
from heads.fillers import FILLERS
from heads.methods import METHODS
from pipeline.axes import modality_names
from pipeline.cluster import connect
from pipeline.console import err, progress, status
from pipeline.datasets import DATASETS
from pipeline.embeddings import Embeddings, embed_run
from pipeline.errors import MediaError, UsageError, choose
from pipeline.extract import ExtractReport, extract
from pipeline.extraction import CUDA_DECODER, ExtractSettings
from pipeline.features import FeatureRequest, settle
from pipeline.labelsets import LabelSet
from pipeline.missing import Finetuning, MissingRow, evaluate_runs, read_missing
from pipeline.plan import SweepSettings, plan_runs
from pipeline.probe import linear_probe
from pipeline.records import ResultStore
from pipeline.reports import (
    ExtractionSummary,
    ModalityCount,
    Probe,
    PublishedCell,
    Quarantined,
    ReportInputs,
    write_report,
)
from pipeline.running import load_tables, run_missing
from pipeline.sweepfile import SweepTitle
from pipeline.sweeps import SweepRecord, has_record, read_record
from pipeline.trial import TRIED, Trial, try_extraction
from pipeline.types import Clip, Manifest, RunResult, parse_budget
from pipeline.workspace import DatasetOptions, Workspace

MAPPED = ("ssmdg", "bmm", "mm", "freematch", "fixmatch", "pseudolabel", "ogm-ge", "erm")  # whose embeddings are drawn
DEFAULT_PRESET = "tiny"  # of manifests of one's own: it needs no download


def settle_features(
    manifest: Manifest, options: DatasetOptions, request: FeatureRequest, work: Workspace, extracting: bool = False
) -> ExtractSettings:
    """Settle backbones, weights and precision that a user left open; see ``pipeline.features.settle``."""
    known = DATASETS.get(options.dataset)
    preset = known.backbones if known else DEFAULT_PRESET
    return settle(request, manifest.dataset, preset, work.cache, extracting)


def extract_features(
    manifest: Manifest,
    settings: ExtractSettings,
    work: Workspace,
    decoders: int | None = None,
    retry: bool = False,
    cluster: str = "",
) -> ExtractReport:
    """Extract what is missing, with a progress bar; see ``pipeline.extract.extract``.

    Args:
        manifest: the clips.
        settings: modalities, backbones, views.
        work: the workspace.
        decoders: processes that only decode; ``None``: as many as are right.
        retry: try clips again that crashed a decoder or were too late.
        cluster: address of a dask scheduler, or ``local:N``; empty: processes on this machine.
    """
    with ExitStack() as stack:
        if cluster:
            with status(f"connecting to {cluster}"):
                connected = stack.enter_context(connect(cluster))
            bar = stack.enter_context(progress(f"features of {manifest.dataset}"))
            todo = (with_absolute_media(manifest), settings, work.shared_cache, connected.workers)
            return extract(*todo, bar.start, bar.advance, 0, retry, connected.run)
        workers, decoders = _processes(settings, work, decoders)
        bar = stack.enter_context(progress(f"features of {manifest.dataset}"))
        return extract(manifest, settings, work.cache, workers, bar.start, bar.advance, decoders, retry)


def with_absolute_media(manifest: Manifest) -> Manifest:
    """The manifest for workers that stand in another folder."""
    clips = [replace(clip, media={k: path.absolute() for k, path in clip.media.items()}) for clip in manifest.clips]
    return replace(manifest, clips=tuple(clips))


def try_features(manifest: Manifest, settings: ExtractSettings, work: Workspace, decoders: int | None = None) -> Trial:
    """Measure on a few clips what ``extract_features`` will take, with a progress bar."""
    workers, decoders = _processes(settings, work, decoders)
    with progress(f"a few clips of {manifest.dataset}") as bar:
        bar.start(TRIED)
        return try_extraction(manifest, settings, work.cache, workers, decoders, bar.advance)


def _processes(settings: ExtractSettings, work: Workspace, decoders: int | None) -> tuple[int, int]:
    """Processes that decode and encode, and that only decode: by default the latter where a GPU encodes."""
    if settings.device == "cpu":
        return work.workers, decoders or 0
    if decoders is None:
        decoders = 0 if settings.decoder == CUDA_DECODER else max(1, work.workers - 1)
    return 1, decoders


def load_features(manifest: Manifest, settings: ExtractSettings, work: Workspace) -> dict[str, FeatureTable]:
    """Read the cached features of every modality."""
    with status("reading features"):
        return load_tables(manifest, settings, work.cache)


def train_heads(
    manifest: Manifest,
    tables: Mapping[str, FeatureTable],
    features: ExtractSettings,
    sweep: SweepSettings,
    work: Workspace,
    label_sets: Sequence[LabelSet] = (),
) -> tuple[list[RunResult], int]:
    """Train what is missing, with a progress bar; returns all results and the number of runs that were missing."""
    specs = plan_runs(manifest, tables, sweep, label_sets)
    workers = work.workers if features.device == "cpu" else 1
    new = 0
    with progress(f"{len(specs)} runs") as bar:

        def on_start(missing: int, stacks: int, steps: int) -> None:
            nonlocal new
            new = missing
            bar.start(steps)

        results = run_missing(
            specs,
            manifest,
            tables,
            features,
            work.cache,
            work.results(manifest.dataset),
            workers,
            on_start,
            bar.advance,
            sweep.keep_weights,
        )
    return results, new


def choose_runs(dataset: str, names: Sequence[str], work: Workspace) -> list[RunResult]:
    """Finished runs of trained heads by the first characters of their id; ``all`` for every one.

    Raises:
        UsageError: a name that no run, or a result of a method without weights, has.
    """
    results = [r for r in stored_results(dataset, work) if r.status == "finished"]
    if not results:
        raise UsageError(f"there are no finished runs in {work.results(dataset)}; run `pipe train-heads` first")
    trained = [r for r in results if r.spec.method in METHODS]
    store = ResultStore(work.results(dataset))
    kept = [r for r in trained if store.weights_path(r.spec.run_id).exists()]
    chosen: dict[str, RunResult] = {}
    for name in names:
        sweep = set(read_record(work.results(dataset), name).run_ids) if has_record(work.results(dataset), name) else ()
        if name == "all" or sweep:  # of many, those that can be evaluated
            found = [r for r in kept if name == "all" or r.spec.run_id in sweep]
        else:
            found = [r for r in trained if r.spec.run_id.startswith(name)]
        if not found and (name == "all" or sweep):
            raise UsageError(
                f"no finished run of {name!r} has kept its weights; train without --no-keep-weights (in a sweep file: "
                "keep_weights = true)"
            )
        if not found:
            raise UsageError(
                f"no finished run of trained heads has an id that starts with {name!r}; ids are the file names in "
                f"{work.results(dataset)}, and the name of a sweep, or `all`, means every run that kept its weights"
            )
        chosen |= {r.spec.run_id: r for r in found}
    return list(chosen.values())


def evaluate_missing(
    manifest: Manifest,
    runs: Sequence[RunResult],
    features: ExtractSettings,
    missing: str,
    fillers: Sequence[str],
    finetuning: Finetuning | None,
    work: Workspace,
) -> dict[str, list[MissingRow]]:
    """Evaluate runs with missing modalities, with a progress bar; returns rows per run id."""
    for name in fillers:
        choose("filler", name, FILLERS)
    with progress(f"missing modalities, {len(runs)} runs") as bar:
        specs = [run.spec for run in runs]
        folder = work.results(manifest.dataset)
        return evaluate_runs(
            specs, manifest, features, work.cache, folder, missing, fillers, finetuning, bar.start, bar.advance
        )


def probe_features(manifest: Manifest, tables: Mapping[str, FeatureTable], work: Workspace) -> list[Probe]:
    """Linear probe per domain and modality; earlier ones are read back."""
    with status("linear probe"):
        return linear_probe(manifest, tables, work.folder / "probe")


def stored_results(dataset: str, work: Workspace) -> list[RunResult]:
    """All finished runs of a data set that this version can read; says how many it cannot."""
    results, skipped = ResultStore(work.results(dataset)).read_known()
    if skipped:
        err.print(
            f"{len(skipped)} files in {work.results(dataset)} are no results of this version and are left out; "
            "`pipe runs ls` names them",
            markup=False,
        )
    return results


def build_report(
    manifest: Manifest,
    settings: ExtractSettings,
    probe: Sequence[Probe],
    results: Sequence[RunResult],
    work: Workspace,
    record: SweepRecord | None = None,
    baseline: str = "",
) -> dict[str, Path]:
    """Write the page, Markdown, CSV and LaTeX of a data set's results, or of one sweep's; returns their paths."""
    folder, about = work.report(manifest.dataset), record.about if record else SweepTitle()
    with status("report"):
        inputs = ReportInputs(
            results=results,
            probe=probe,
            sample_pictures=sample_pictures(manifest, settings, work),
            extraction=extraction_summary(manifest, settings, work),
            title=about.title or (f"{manifest.dataset}: {record.name}" if record else f"pipe: {manifest.dataset}"),
            notes=[*notes(manifest, settings), *about.notes],
            source=about.source,
            not_built=about.not_built,
            published=published_cells(record) if record else (),
            baseline=baseline or about.baseline,
            cases=record.cases if record else {},
            missing_rows=read_missing(work.results(manifest.dataset) / "missing", [r.spec.run_id for r in results]),
            embeddings=embedded_runs(results, manifest, settings, work),
        )
        return write_report(folder / record.name if record else folder, inputs)


def published_cells(record: SweepRecord) -> list[PublishedCell]:
    """The published numbers of a sweep as its report takes them."""
    return [
        PublishedCell(
            method=number.method,
            target_or_average=number.column,
            percent=number.percent,
            source=number.source,
            difference=number.difference,
            budget=str(parse_budget(number.labels)) if number.labels else "",
            modalities=modality_names(number.modalities) if number.modalities else (),
        )
        for number in record.published
    ]


def embedded_runs(
    results: Sequence[RunResult], manifest: Manifest, settings: ExtractSettings, work: Workspace
) -> list[Embeddings]:
    """Embeddings of the one run that a report draws: of the first of ``MAPPED`` that kept its weights, lowest seed."""
    store = ResultStore(work.results(manifest.dataset))
    kept = [r.spec for r in results if r.status == "finished" and store.weights_path(r.spec.run_id).exists()]
    kept = [spec for spec in kept if spec.method in MAPPED and set(spec.modalities) <= set(settings.modalities)]
    if not kept:
        return []
    spec = min(kept, key=lambda s: (MAPPED.index(s.method), -len(s.modalities), s.split_seed, s.target, s.run_id))
    try:
        return [embed_run(spec, manifest, settings, work.cache, work.results(manifest.dataset))]
    except (UsageError, CacheError):  # of other clips or features than there are now: no map, and nothing else is lost
        return []


def notes(manifest: Manifest, settings: ExtractSettings) -> list[str]:
    """What a reader must know before reading a number."""
    return [*(note for note in manifest.notes if note), *weights_notes(settings)]


def weights_notes(settings: ExtractSettings) -> list[str]:
    """Where the weights of the backbones come from."""
    by_note: dict[str, list[str]] = {}
    for modality in settings.modalities:
        by_note.setdefault(settings.weights_of(modality).note, []).append(settings.backbones[modality])
    said = [f"Backbones {', '.join(names)}: {note}." for note, names in by_note.items()]
    clean = [m for m, g in settings.given.items() if not any(v.startswith("weak") for v in g.views)]
    if clean:
        said.append(f"The features of {', '.join(clean)} have no augmented views: the clean view stands for them.")
    if "flow" in settings.modalities and settings.flow_weights is not None:
        said.append(f"Optical flow by {settings.flow_method}: {settings.flow_weights.note}.")
    return said


def _group(manifest: Manifest, settings: ExtractSettings, modality: str, work: Workspace) -> FeatureGroup:
    """The cache group of a modality."""
    return FeatureGroup(place_of(work.cache).child(*settings.identity(manifest.dataset, modality).folder.parts))


def extraction_summary(manifest: Manifest, settings: ExtractSettings, work: Workspace) -> ExtractionSummary:
    """Counts per modality and every track that is not used."""
    counts, quarantined = [], []
    for modality in settings.modalities:
        records = _group(manifest, settings, modality, work).records()
        mine = [records[c.clip_id] for c in manifest.clips if c.clip_id in records]
        tally = {state: sum(r.status is state for r in mine) for state in Status}
        counts.append(ModalityCount(modality, tally[Status.PRESENT], tally[Status.ABSENT], tally[Status.FAILED]))
        for record in mine:
            reason = f"{record.code}: {record.detail}"
            if record.status is Status.ABSENT:
                quarantined.append(Quarantined(record.clip_id, modality, "absent", reason))
            elif record.status is Status.FAILED:
                quarantined.append(Quarantined(record.clip_id, modality, "failed", reason))
    return ExtractionSummary(counts, quarantined)


def sample_pictures(
    manifest: Manifest, settings: ExtractSettings, work: Workspace
) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """The middle frame of one clip per domain and class, as PNG, of clips whose frames were decoded for features."""
    decoded = set()
    for modality in {"video", "flow"} & set(settings.modalities):
        records = _group(manifest, settings, modality, work).records()
        decoded |= {r.clip_id for r in records.values() if r.status is Status.PRESENT}
    pictures = []
    for domain in manifest.domains:
        row = []
        for label in manifest.classes:
            clips = (c for c in manifest.clips if c.clip_id in decoded and (c.domain, c.label) == (domain, label))
            picture = next((p for p in map(_picture, clips) if p is not None), None)
            if picture is not None:
                row.append((label, picture))
        if row:
            pictures.append((domain, row))
    return pictures


def _picture(clip: Clip) -> bytes | None:
    """Middle frame of a clip, at most 160 pixels, as PNG; ``None`` if it has none, or not any more."""
    import cv2

    from pipeline.decode import open_frames

    if "video" not in clip.media:
        return None
    try:
        stretch = (clip.start_seconds, clip.end_seconds, clip.rate_hz, clip.frame_numbers)
        with open_frames(clip.media["video"], *stretch) as reader:
            frame = reader.read([reader.num_frames // 2])[0]
    except MediaError:
        return None
    scale = min(1.0, 160 / max(frame.shape[:2]))
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".png", small[..., ::-1])[1].tobytes())
