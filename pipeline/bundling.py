"""A finished run becomes a bundle: its filler is chosen, its confidence calibrated, and what it does is measured."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from cache.places import place_of
from cache.store import FeatureGroup
from extractors.backbone import find_backbone
from extractors.encoder import PRECISIONS
from extractors.loading import Weights
from heads.fillers import FILLERS
from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.bundle import Bundle, check_place, load_bundle, write_bundle
from pipeline.bundlespec import (
    SCHEMA,
    BundleSpec,
    Calibration,
    FeatureFacts,
    FillerChoice,
    ModalityFacts,
    TrainingRecord,
    joined,
)
from pipeline.calibration import BINS, FEWEST_CLIPS, FOLDS, fold_numbers
from pipeline.compact import Projections, compact_bank, fitted_projections
from pipeline.errors import UsageError, choose
from pipeline.extraction import ExtractSettings
from pipeline.headmodel import HeadInput, HeadModel, HeadPlan
from pipeline.measuring import ROWS, Examples, constant, filler_accuracies, fitted, held_out, measure, run_model
from pipeline.missing import MissingEvaluation
from pipeline.modelcard import model_card
from pipeline.records import ResultStore
from pipeline.running import load_bank
from pipeline.stack import check_clips
from pipeline.study import choose_runs, notes, stored_results
from pipeline.trust import DEFAULT_THRESHOLD
from pipeline.types import Manifest, RunResult, RunSpec, Split, canonical_json
from pipeline.weights import load_weights
from pipeline.workspace import Workspace

# Share of the target clips by which the exported model may miss the run's own accuracy: rounding on another device.
ALLOWED_DIFFERENCE = 0.02


def choose_run(dataset: str, name: str, work: Workspace) -> RunResult:
    """The finished run whose id starts with a name.

    Raises:
        UsageError: there is none or more than one, or its method has no weights.
    """
    found = [r for r in stored_results(dataset, work) if r.spec.run_id.startswith(name) and r.status == "finished"]
    plain = [r for r in found if r.spec.method not in METHODS]
    if plain and len(plain) == len(found):
        raise UsageError(
            f"run {plain[0].spec.run_id} is {plain[0].spec.method!r}, which is fitted at once and keeps no weights; "
            f"only trained heads can be exported: {', '.join(METHODS)}"
        )
    runs = choose_runs(dataset, [name], work)
    if len(runs) > 1:
        listed = ", ".join(r.spec.run_id for r in runs[:5])
        raise UsageError(
            f"{name!r} names {len(runs)} runs ({listed}{', ...' if len(runs) > 5 else ''}); a bundle holds one: "
            "give more characters of its id (`pipe runs ls` lists them)"
        )
    return runs[0]


def export_bundle(
    result: RunResult,
    manifest: Manifest,
    settings: ExtractSettings,
    work: Workspace,
    folder: Path,
    filler: str = "",
    force: bool = False,
) -> Bundle:
    """Write a finished run as a bundle and read it back.

    The target's labels are used to say how well the model does and for nothing else: filler and temperatures are
    settled on held-back clips of the sources.

    Args:
        result: the run.
        manifest: its data set.
        settings: how its features were extracted; the modalities are taken from the run.
        work: the workspace.
        folder: of the bundle.
        filler: what stands in for missing modalities; empty: chosen here.
        force: replace a bundle that is there.

    Raises:
        UsageError: the folder is taken, an unknown filler, the run's weights are gone, or the data set is another.
        CacheError: the features have changed since the run.
    """
    check_place(folder, force)
    spec = result.spec
    check_clips(spec, manifest)
    settings = replace(settings, modalities=spec.modalities)
    bank = load_bank([spec], manifest, settings, work.cache)
    results = work.results(manifest.dataset)
    projections = fitted_projections([spec], manifest, bank, results / "projections")
    weights = load_weights({spec.run_id: ResultStore(results).weights_path(spec.run_id)})
    evaluation = MissingEvaluation([spec], manifest, compact_bank(bank, projections, [spec]), weights)
    split = evaluation.data.splits[0]
    head = head_of(evaluation, spec, bank, projections)
    made, head = _described(head, result, manifest, settings, work, split, bank, filler)
    write_bundle(folder, made, head, model_card(made), force)
    return load_bundle(folder)


def _described(
    head: HeadModel,
    result: RunResult,
    manifest: Manifest,
    settings: ExtractSettings,
    work: Workspace,
    split: Split,
    bank: FeatureBank,
    filler: str,
) -> tuple[BundleSpec, HeadModel]:
    """What a bundle says of a run's model, and the model with its filler."""
    spec = result.spec
    held_back, target = (_examples(manifest, bank, part) for part in (split.val, split.test))
    choice = choose_filler(head, held_back, filler)
    head = _with_filler(head, choice.name)
    on_held_back, on_target = run_model(head, held_back, choice.name), run_model(head, target, choice.name)
    fused, alone = fitted(on_held_back)
    folds = fold_numbers(held_back.clip_ids).to(held_back.labels.device)
    crossed = held_out(fused, alone, on_held_back, folds)
    recomputed, said = _recomputed(head, target, result)
    metrics, sizes, about = dict(result.metrics), dict(result.sizes), dict(result.environment)
    calibration = Calibration(
        fitted_on=_fitted_on(spec, split),
        clips=len(split.val),
        fused={joined(kept): t for kept, t in fused.items()},
        alone=alone,
        bins=BINS,
        folds=FOLDS,
    )
    made = BundleSpec(
        schema=SCHEMA,
        run_id=spec.run_id,
        run=spec,
        classes=spec.classes,
        modalities=tuple(_modality_facts(i, spec, settings) for i in head.plan.inputs),
        features=_feature_facts(manifest, settings, work, split),
        translators=head.plan.translators,
        filler=choice,
        threshold=head.threshold,
        calibration=calibration,
        held_back=measure(on_held_back, crossed, head.threshold, _held_back_words(spec)),
        target=measure(on_target, constant(fused, alone, target), head.threshold, _target_words(spec)),
        training=TrainingRecord(metrics, result.selection, sizes, result.notes, about, recomputed),
        notes=(*notes(manifest, settings), *said, *_selection_notes(spec)),
        files={},
    )
    return made, head


def head_of(
    evaluation: MissingEvaluation, spec: RunSpec, bank: FeatureBank, projections: Projections, filler: str = "zero"
) -> HeadModel:
    """The only run of an evaluation as a model, with temperatures of 1.

    Args:
        evaluation: what fillers need, computed from the run's source training clips.
        spec: the run.
        bank: its features of full size.
        projections: of compact features; empty without.
        filler: what stands in for missing modalities.
    """
    dims, shape, state = dict(bank.dims), evaluation.shape, evaluation.state
    inputs = tuple(
        HeadInput(m, dims[m], width, str(bank.features[m].dtype).removeprefix("torch.")) for m, width in shape.dims
    )
    own = spec.hparams.get("threshold")
    threshold = float(own) if isinstance(own, int | float) and 0 <= own <= 1 else DEFAULT_THRESHOLD
    plan = HeadPlan(spec.classes, inputs, shape, bool(projections), bool(len(state.translators)), filler, threshold)
    tensors = {f"network.{name}": value[0] for name, value in evaluation.method.network.state_dict().items()}
    tensors |= {f"translators.{name}": value[0] for name, value in state.translators.state_dict().items()}
    for m, width in shape.dims:
        if projections:
            projection = projections[spec.sources][m]
            scaling = {"mean": projection.mean, "scale": projection.scale, "matrix": projection.matrix[:, :width]}
        else:
            standardise = evaluation.data.standardise
            if standardise is None:
                raise ValueError("features are compact, and there are no projections")
            scaling = {"mean": standardise.mean[m][0, 0], "scale": standardise.scale[m][0, 0]}
        tensors |= {f"{name}_{m}": value for name, value in scaling.items()}
        tensors |= {f"filler_mean_{m}": state.mean[m][0], f"filler_length_{m}": state.length[m][0]}
        tensors[f"filler_prototypes_{m}"] = state.prototypes[m][0]
    head = HeadModel(plan)
    head.load_tensors(tensors)
    return head.to(evaluation.data.device)


def _with_filler(head: HeadModel, filler: str) -> HeadModel:
    """The same model with another default filler."""
    changed = HeadModel(replace(head.plan, filler=filler))
    changed.load_tensors(head.tensors())
    return changed.to(head.temperature.device)


def _examples(manifest: Manifest, bank: FeatureBank, positions: tuple[int, ...]) -> Examples:
    """Clean views of clips."""
    device = next(iter(bank.features.values())).device
    rows, clean = torch.tensor(positions, dtype=torch.int64, device=device), bank.view_positions("clean")[0]
    labels = torch.tensor(manifest.label_indices(), device=device)
    return Examples(
        tuple(manifest.clips[i].clip_id for i in positions),
        {m: values[rows, clean] for m, values in bank.features.items()},
        {m: here[rows] for m, here in bank.present.items()},
        labels[rows],
    )


def choose_filler(head: HeadModel, held_back: Examples, wanted: str = "") -> FillerChoice:
    """What stands in for missing modalities: decided on held-back source clips, never on the target.

    Args:
        head: the model.
        held_back: clips of the sources that no training saw.
        wanted: what the user asks for; empty: the translators' where the method has some, else the most accurate with
            modalities taken away.

    Raises:
        UsageError: the model does not have the wanted one.
    """
    found = filler_accuracies(head, held_back)
    clips = len(held_back.labels)
    if wanted:
        return FillerChoice(choose("filler of this model", wanted, head.fillers), "named at the export", found)
    if len(head.modalities) == 1:
        return FillerChoice("zero", "with a single modality there is nothing to fill", found)
    if head.plan.translators:
        return FillerChoice("translate", "the method has trained translators", found)
    if clips < FEWEST_CLIPS:
        few = f"{clips} held-back source clips, and fewer than {FEWEST_CLIPS} do not tell fillers apart"
        return FillerChoice("zero", few, found)
    best = max(found, key=lambda name: (found[name], -list(FILLERS).index(name)))
    reason = f"most accurate over the subsets of modalities on {clips} held-back source clips"
    return FillerChoice(best, reason, found)


def _modality_facts(wanted: HeadInput, spec: RunSpec, settings: ExtractSettings) -> ModalityFacts:
    modality = wanted.modality
    identity, weights = settings.identity(spec.dataset, modality), settings.weights_of(modality)
    return ModalityFacts(
        modality=modality,
        backbone=identity.backbone,
        weights=identity.weights,
        weights_note=weights.note,
        licence=_licence(identity.backbone, weights),
        tap=identity.tap,
        precision=str(identity.settings.get("precision", PRECISIONS[0])),
        dim=wanted.dim,
        width=wanted.width,
        dtype=wanted.dtype,
        digest=spec.features[modality]["digest"],
        settings=json.loads(canonical_json(identity.settings)),
    )


def _licence(name: str, weights: Weights) -> str:
    """Licence of a backbone and of its weights, where they differ."""
    try:
        backbone = find_backbone(name)
    except ValueError:
        return "not known: the features were imported"
    forms = [p for p in backbone.published if p.name == weights.form]
    return backbone.licence + (
        f"; weights: {forms[0].licence}" if forms and forms[0].licence != backbone.licence else ""
    )


def _feature_facts(manifest: Manifest, settings: ExtractSettings, work: Workspace, split: Split) -> FeatureFacts:
    made = {m: settings.identity(manifest.dataset, m).settings for m in settings.modalities}
    flow = made.get("flow", {})
    network = settings.flow_weights if "flow_weights" in flow else None
    return FeatureFacts(
        augmentation="paper" if any(s.get("augmentation") == "paper" for s in made.values()) else "strict",
        flow_method=str(flow.get("flow", settings.flow_method)),
        flow_weights=str(flow.get("flow_weights", "")),
        flow_weights_note=network.note if network else "",
        resampler=str(made.get("audio", {}).get("resampler", settings.resampler)),
        decoder=settings.decoder,
        clip_seconds=_clip_seconds(manifest, settings, work, split),
    )


def _clip_seconds(manifest: Manifest, settings: ExtractSettings, work: Workspace, split: Split) -> float | None:
    """Median length of the training clips: as they were decoded, else as the manifest cuts them."""
    members = [manifest.clips[i] for i in (*split.labeled, *split.unlabeled)]
    lengths: dict[str, float] = {}
    for modality in settings.modalities:
        place = place_of(work.cache).child(*settings.identity(manifest.dataset, modality).folder.parts)
        records = FeatureGroup(place).records()
        for clip in members:
            seconds = records[clip.clip_id].facts.get("seconds") if clip.clip_id in records else None
            if isinstance(seconds, int | float) and not isinstance(seconds, bool):
                lengths[clip.clip_id] = max(float(seconds), lengths.get(clip.clip_id, 0.0))
    for clip in members:
        if clip.clip_id not in lengths and clip.end_seconds is not None:
            lengths[clip.clip_id] = clip.end_seconds - (clip.start_seconds or 0.0)
    return round(statistics.median(lengths.values()), 3) if lengths else None


def _recomputed(head: HeadModel, target: Examples, result: RunResult) -> tuple[float | None, list[str]]:
    """Accuracy of the model on the run's target clips, as its evaluation had it, and what to say if it differs.

    Raises:
        UsageError: it differs by more than rounding does.
    """
    if not len(target.labels):
        return None, []
    hits = 0
    for rows in torch.split(torch.arange(len(target.labels), device=target.labels.device), ROWS):
        x = {m: values[rows] for m, values in target.features.items()}
        here = {m: values[rows] for m, values in target.present.items()}
        hits += int((head(x, here, "zero").logits.argmax(1) == target.labels[rows]).sum())
    found = float(torch.tensor(hits) / len(target.labels))  # divided as the record's own figure is
    recorded = result.metrics.get("target/fused")
    if recorded is None or found == recorded:
        return found, []
    if abs(found - recorded) > ALLOWED_DIFFERENCE:
        raise UsageError(
            f"run {result.spec.run_id} has a target accuracy of {recorded:.4f} in its record, and its weights give "
            f"{found:.4f} here; record and weights are not of one training: train it again"
        )
    return found, [
        f"the run's record has a target accuracy of {recorded:.4f}, and this model {found:.4f}: other rounding"
    ]


def _held_back_words(spec: RunSpec) -> str:
    return f"held-back clips of {', '.join(spec.sources)}; temperatures were fitted on the other folds"


def _target_words(spec: RunSpec) -> str:
    if not spec.target:
        return "no clips: the run has no target, nothing was tested"
    if spec.target in spec.sources:
        return f"test part of {spec.target}, the domain that was trained on"
    part = "all clips" if spec.target_part == "all" else "test part"
    return f"{part} of {spec.target}, a domain that training, filler and temperatures have not seen"


def _fitted_on(spec: RunSpec, split: Split) -> str:
    """What calibration stands on, in words."""
    if len(split.val) < FEWEST_CLIPS:
        return (
            f"nothing: the sources {', '.join(spec.sources)} hold back {len(split.val)} clips, and fewer than "
            f"{FEWEST_CLIPS} fix no temperature; probabilities are not calibrated."
        )
    also = " They also chose the evaluation whose weights these are." if _selects(spec) else ""
    return f"{len(split.val)} held-back clips of the sources {', '.join(spec.sources)}.{also}"


def _selects(spec: RunSpec) -> bool:
    return spec.selection == "source-val" or spec.patience > 0


def _selection_notes(spec: RunSpec) -> list[str]:
    if spec.selection != "oracle":
        return []
    return ["The evaluation was selected by the target's own labels (oracle): its accuracy there is no result."]
