"""The model card of a bundle: what a person must know before using it, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from heads.fillers import FILLERS
from heads.methods import METHODS
from pipeline.bundlespec import BundleSpec, LevelCount, Measured, PartRecord, Temperature, joined
from pipeline.types import RunSpec

MEANINGS = {
    "consensus": "fused prediction confident, and at least one modality alone says the same, confidently",
    "disagreement": "fused prediction confident, no modality alone supports it",
    "low": "everything else",
}


def model_card(spec: BundleSpec) -> str:
    """The card; equal specs give equal text."""
    run = spec.run
    title = METHODS[run.method].title if run.method in METHODS else run.method
    names = ", ".join(facts.modality for facts in spec.modalities)
    parts = [
        [f"# {_plain(title)} on {_plain(run.dataset)}: {names}", ""],
        [f"**Note: {_plain(note)}**\n" for note in spec.notes],
        _what(spec),
        _trained(spec, title),
        _accuracy(spec),
        _calibration(spec),
        _trust(spec),
        _use(spec),
        _licences(spec),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _what(spec: BundleSpec) -> list[str]:
    rows = [
        (
            facts.modality,
            facts.backbone,
            facts.tap,
            facts.precision,
            f"{facts.dim}" if facts.width == facts.dim else f"{facts.dim}, projected to {facts.width}",
            f"`{facts.weights[:19]}`",
        )
        for facts in spec.modalities
    ]
    seconds = spec.features.clip_seconds
    length = "" if seconds is None else f" The training clips had a median length of {seconds:g} s."
    flow = f" Optical flow: {spec.features.flow_method}." if "flow" in [f.modality for f in spec.modalities] else ""
    return [
        "## What it is",
        "",
        f"Trained heads on features of frozen backbones; the label of a clip is one of {len(spec.classes)} classes: "
        f"{_plain(', '.join(spec.classes))}.{length}{flow}",
        "",
        *_table(("modality", "backbone", "tap", "precision", "features", "weights"), rows),
        "",
        f"Where a modality is missing, the filler **{spec.filler.name}** stands in for it: "
        f"{FILLERS[spec.filler.name]}. Chosen because: {spec.filler.reason}.",
        *(_compared(spec.filler.accuracy) if spec.filler.accuracy else []),
        "",
    ]


def _compared(accuracy: Mapping[str, float]) -> list[str]:
    listed = ", ".join(f"{name} {_percent(accuracy[name])}" for name in FILLERS if name in accuracy)
    return [f"Mean accuracy over the subsets of modalities on held-back source clips, %: {listed}."]


def _trained(spec: BundleSpec, title: str) -> list[str]:
    run, record = spec.run, spec.training
    budget = f"{run.budget} of each class" if run.budget.endswith("%") else f"{run.budget} per class"
    recipe = METHODS.get(run.method)
    source = f", {recipe.source}" if recipe else ""
    sizes = ", ".join(f"{count} {part}" for part, count in record.sizes.items())
    versions = ", ".join(
        f"{name} {record.environment[name]}" for name in ("pipe", "torch") if name in record.environment
    )
    return [
        "## How it was trained",
        "",
        f"Run `{spec.run_id}`: {_plain(title + source)}; trained on {_plain(', '.join(run.sources))}, with labels for "
        f"{budget} and source domain, {run.protocol} protocol, {run.steps} steps, projection {run.projection}, seed "
        f"{run.init_seed}. Clips: {sizes}. The weights are those of the evaluation chosen by the rule "
        f"*{record.selection}* (step {record.metrics.get('selected_step', run.steps)}). {versions}.",
        "",
        *(f"- {_plain(note)}" for note in record.notes),
        *([""] if record.notes else []),
    ]


def _accuracy(spec: BundleSpec) -> list[str]:
    held_back, target = spec.held_back, spec.target
    subsets = _subsets(spec)
    head = target.subsets[subsets[0]]
    rows = [_both(kept, held_back.subsets[kept], target.subsets[kept]) for kept in subsets]
    alone = [_both(f"{m} alone", held_back.alone[m], target.alone[m]) for m in spec.run.modalities]
    return [
        "## Accuracy",
        "",
        f"**{_percent(head.accuracy)} %** on {head.clips} clips: {_plain(target.part)}. In the run's own evaluation, "
        f"where a missing modality is a zero embedding: {_percent(spec.training.target_accuracy)} %. Chance is "
        f"{_percent(1 / len(spec.classes))} %.",
        "",
        f"With modalities taken away, filler {spec.filler.name}, in %; *n* is the number of clips that have at least "
        "one of the modalities. *Alone* is a modality's own head, without any fusion.",
        "",
        *_table(("present", "held back", "n", "target", "n"), [*rows, *alone]),
        "",
        f"Held back: {_plain(held_back.part)}. Target: {_plain(target.part)}.",
        "",
    ]


def _both(name: str, held_back: Measured, target: Measured) -> tuple[str, ...]:
    return name, _percent(held_back.accuracy), str(held_back.clips), _percent(target.accuracy), str(target.clips)


def _calibration(spec: BundleSpec) -> list[str]:
    found, held_back, target = spec.calibration, spec.held_back, spec.target
    rows = [
        _calibrated(kept, found.fused[kept], held_back.subsets[kept], target.subsets[kept]) for kept in _subsets(spec)
    ]
    rows += [
        _calibrated(f"{name} alone", found.alone[name], held_back.alone[name], target.alone[name])
        for name in spec.run.modalities
    ]
    notes = dict.fromkeys(t.note for t in (*found.fused.values(), *found.alone.values()) if t.note)
    return [
        "## Calibration",
        "",
        f"Logits are divided by a temperature (Guo et al. 2017), fitted on {_plain(found.fitted_on)} The expected "
        f"calibration error ({found.bins} bins) is before and after that, in %. On held-back clips it is cross-fitted "
        f"({found.folds} folds by clip); on the target the temperatures are those of the model.",
        "",
        *_table(("present", "temperature", "held back, before", "after", "target, before", "after"), rows),
        "",
        *(f"- {_plain(note)}" for note in notes),
        *([""] if notes else []),
    ]


def _calibrated(name: str, temperature: Temperature, held_back: Measured, target: Measured) -> tuple[str, ...]:
    errors = (held_back.ece_before, held_back.ece_after, target.ece_before, target.ece_after)
    return name, f"{temperature.value:.3f}", *map(_percent, errors)


def _trust(spec: BundleSpec) -> list[str]:
    rows = [(level, MEANINGS[level], *_level(spec.held_back, level), *_level(spec.target, level)) for level in MEANINGS]
    return [
        "## Trust levels",
        "",
        f"Confident means a calibrated confidence of at least {spec.threshold:g}. Share of the clips and "
        "accuracy, in %.",
        "",
        *_table(("level", "meaning", "held back: share", "accuracy", "target: share", "accuracy"), rows),
        "",
    ]


def _level(part: PartRecord, level: str) -> tuple[str, str]:
    found = part.levels.get(level, LevelCount(0, None, None))
    return _percent(found.share), _percent(found.accuracy)


def _use(spec: BundleSpec) -> list[str]:
    run: RunSpec = spec.run
    return [
        "## Intended use and limits",
        "",
        "For clips like those it was trained on: one action a clip, of the classes above, about as long. It answers "
        "with one of these classes whatever it is shown: nothing tells it that a clip belongs to none of them, and a "
        "confident answer about such a clip is possible.",
        "",
        f"- It has seen the domains {_plain(', '.join(run.sources))}. {_elsewhere(run)}",
        "- Temperatures stem from the source domains; in a new domain confidence may be wrong by more than it says.",
        "- A single run with a single seed: other seeds differ by some percent.",
        "- Not for decisions about persons, or where a wrong label does harm without somebody looking at it.",
        "",
    ]


def _elsewhere(run: RunSpec) -> str:
    if not run.target or run.target in run.sources:
        return "What it does in another one was not tested."
    return f"What it does in another one is shown for {_plain(run.target)} alone; others may be easier or harder."


def _licences(spec: BundleSpec) -> list[str]:
    rows = [(f.modality, f.backbone, f.licence) for f in spec.modalities]
    flow = [f"Optical flow network: {spec.features.flow_weights_note}.", ""] if spec.features.flow_weights else []
    return [
        "## Licences",
        "",
        "The heads in this folder contain no weights of the backbones; a prediction from media needs them, under their "
        "own licences. The data set's licence may bind what was trained on it.",
        "",
        *_table(("modality", "backbone", "licence"), rows),
        "",
        *flow,
    ]


def _subsets(spec: BundleSpec) -> list[str]:
    """Subsets of modalities as they are written, the full one first: JSON sorts its keys."""
    return [joined(kept) for kept in spec.plan().subsets]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines]


def _plain(text: str) -> str:
    """A text on one line that does not break a table or start markup of its own."""
    line = " ".join(text.split())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
