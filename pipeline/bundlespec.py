"""What `bundle.json` of a model holds: frozen dataclasses, written as plain JSON and read back strictly."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from heads.adapters import ADAPTERS
from heads.fusion import FUSIONS
from heads.network import HeadShape
from pipeline.calibration import LEAST_TEMPERATURE, MOST_TEMPERATURE
from pipeline.errors import UsageError, choose, nearest
from pipeline.headmodel import HeadInput, HeadPlan
from pipeline.types import MODALITIES, RunSpec, digest

SCHEMA = 1
HEAD_FILE, CARD_FILE, SPEC_FILE = "head.safetensors", "README.md", "bundle.json"
# Far above every real model, far below what a machine cannot hold.
MOST_CLASSES, MOST_DIM, MOST_HIDDEN, MOST_DOMAINS = 100_000, 2**24, 65_536, 100_000
Value = TypeVar("Value")


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle."""

    sha256: str  # 64 hex digits
    bytes: int


@dataclass(frozen=True)
class ModalityFacts:
    """How the features of one modality were made, and what the model reads of them."""

    modality: str
    backbone: str
    weights: str  # identity: sha256:<hex>, random:<seed>, or the name of built-in ones
    weights_note: str  # where they come from, one plain sentence without its full stop
    licence: str  # of backbone and weights
    tap: str  # where in the network the feature is taken
    precision: str  # of the network
    dim: int
    width: int  # components kept by the projection; ``dim`` without one
    dtype: str  # of stored features
    digest: str  # of the cached features that the run was trained on
    settings: Mapping[str, Any]  # what else identifies the features: network input, revisions, flow, resampler

    @property
    def imported(self) -> bool:
        """Whether the features came from elsewhere, so that pipe does not know how to make them."""
        return "import" in self.settings


@dataclass(frozen=True)
class FeatureFacts:
    """What the modalities share of how their features were made."""

    augmentation: Literal["strict", "paper"]  # how frames are resized
    flow_method: str
    flow_weights: str  # identity; "" where the method has no network
    flow_weights_note: str
    resampler: str
    decoder: str
    clip_seconds: float | None  # median length of the training clips; None: not known


@dataclass(frozen=True)
class FillerChoice:
    """What stands in for a missing modality by default, and why."""

    name: str
    reason: str
    # Per filler that was compared: mean accuracy over all subsets of modalities, on held-back source clips.
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by before the softmax."""

    value: float
    clips: int  # held-back source clips that it was, or would have been, fitted on
    note: str = ""  # why it is 1, or that it lies at the end of the range; "" else


@dataclass(frozen=True)
class Measured:
    """Predictions of one head on some clips: how often right, and how well calibrated."""

    clips: int
    accuracy: float | None  # None: no clips
    ece_before: float | None  # expected calibration error with temperature 1
    ece_after: float | None  # with the temperatures; on held-back clips those fitted without the clip's own fold


@dataclass(frozen=True)
class LevelCount:
    """Predictions of one trust level."""

    clips: int
    share: float | None  # of all clips
    accuracy: float | None


@dataclass(frozen=True)
class PartRecord:
    """What the model does on one part of the data, with its filler."""

    part: str  # which clips, in words
    subsets: Mapping[str, Measured]  # by the modalities that were kept, joined by "+"; the full set first
    alone: Mapping[str, Measured]  # of every modality's own head
    levels: Mapping[str, LevelCount]  # by trust level; every clip with the modalities that it has


@dataclass(frozen=True)
class Calibration:
    """Temperatures and what they were fitted on."""

    fitted_on: str
    clips: int  # held-back source clips
    fused: Mapping[str, Temperature]  # by the modalities that are present, joined by "+"
    alone: Mapping[str, Temperature]  # per modality
    bins: int  # of the expected calibration error
    folds: int  # of the cross-fit behind the figures on held-back clips


@dataclass(frozen=True)
class TrainingRecord:
    """What the run's own record says."""

    metrics: Mapping[str, float | None]  # at the selected evaluation
    selection: str
    sizes: Mapping[str, int]  # clips per part of the split
    notes: tuple[str, ...]
    environment: Mapping[str, str | int | float]
    # Of the exported model on the run's target clips, with the filler zero as in the run; None: it has no target.
    target_accuracy: float | None


@dataclass(frozen=True)
class BundleSpec:
    """Everything that a bundle says of its model."""

    schema: int
    run_id: str
    run: RunSpec
    classes: tuple[str, ...]
    modalities: tuple[ModalityFacts, ...]  # in fusion order
    features: FeatureFacts
    translators: bool  # the method has trained some
    filler: FillerChoice
    threshold: float  # of trust levels
    calibration: Calibration
    held_back: PartRecord
    target: PartRecord
    training: TrainingRecord
    notes: tuple[str, ...]  # what a reader must know before reading a number
    files: Mapping[str, FileEntry]

    def plan(self) -> HeadPlan:
        """What the head is, within limits.

        Raises:
            UsageError: sizes or names that no model has.
        """
        run, hparams = self.run, self.run.hparams
        where = "bundle.json"
        _within(f"{where}: number of classes", len(self.classes), 2, MOST_CLASSES)
        _within(f"{where}: number of source domains", len(run.sources), 1, MOST_DOMAINS)
        names = tuple(facts.modality for facts in self.modalities)
        if not names or names != tuple(m for m in run.modalities if m in MODALITIES) or self.classes != run.classes:
            raise UsageError(
                f"{where}: modalities {', '.join(names) or 'none'} and {len(self.classes)} classes are not those of "
                "its run; export the model again"
            )
        for facts in self.modalities:
            _within(f"{where}: dim of {facts.modality}", facts.dim, 1, MOST_DIM)
            _within(f"{where}: width of {facts.modality}", facts.width, 1, facts.dim)
        sizes = {name: hparams.get(name, default) for name, default in _SIZES.items()}
        for name, value in sizes.items():
            _within(f"{where}: {name}", value, 1, MOST_HIDDEN)
        if len(set(self.classes)) < len(self.classes):
            raise UsageError(f"{where}: a class name stands twice in classes; export the model again")
        projected = run.projection not in ("", "none")
        shape = HeadShape(
            dims=tuple((facts.modality, facts.width) for facts in self.modalities),
            classes=len(self.classes),
            domains=len(run.sources),
            adapter=choose(f"adapter ({where})", str(hparams.get("adapter")), ADAPTERS),
            fused_hidden=int(sizes["fused_hidden"]),
            translator_hidden=int(sizes["translator_hidden"]),
            fusion=choose(f"fusion ({where})", str(hparams.get("fusion")), FUSIONS),
            adapter_width=int(sizes["adapter_width"]),
            mixing=str(hparams.get("mixing", "none")),
        )
        inputs = tuple(HeadInput(f.modality, f.dim, f.width, f.dtype) for f in self.modalities)
        try:
            return HeadPlan(self.classes, inputs, shape, projected, self.translators, self.filler.name, self.threshold)
        except ValueError as error:
            raise UsageError(f"{where} contradicts itself: {error}; export the model again") from error

    def temperatures(self) -> tuple[dict[tuple[str, ...], float], dict[str, float]]:
        """Temperatures of the fused prediction per subset of modalities, and of every modality's own prediction.

        Raises:
            UsageError: one is missing, unknown, or no temperature.
        """
        subsets = {joined(kept): kept for kept in self.plan().subsets}
        names = [facts.modality for facts in self.modalities]
        for kind, found, wanted in (
            ("fused", self.calibration.fused, subsets),
            ("alone", self.calibration.alone, names),
        ):
            if found.keys() != set(wanted):
                raise UsageError(
                    f"bundle.json: calibration.{kind} has {len(found)} temperatures; it must have one for each of "
                    f"{', '.join(wanted)}: export the model again"
                )
            for name, temperature in found.items():
                if not LEAST_TEMPERATURE <= temperature.value <= MOST_TEMPERATURE:
                    raise UsageError(
                        f"bundle.json: the temperature of {kind} {name} is {_shown(temperature.value)}; it must be "
                        f"from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}: export the model again"
                    )
        fused = {subsets[name]: temperature.value for name, temperature in self.calibration.fused.items()}
        return fused, {name: temperature.value for name, temperature in self.calibration.alone.items()}


_SIZES = {"fused_hidden": 0, "translator_hidden": 0, "adapter_width": 256}  # 0: it must be there


def joined(kept: tuple[str, ...]) -> str:
    """A subset of modalities as it is written: ``video+audio``."""
    return "+".join(kept)


def write_spec(spec: BundleSpec) -> str:
    """The text of ``bundle.json``: equal specs give equal text."""
    plain = {**dataclasses.asdict(spec), "run": spec.run.to_json()}
    return json.dumps(plain, allow_nan=False, indent=1, sort_keys=True) + "\n"


def read_spec(text: bytes) -> BundleSpec:
    """Read what ``write_spec`` wrote.

    Raises:
        UsageError: it is no JSON, of a newer schema, has an unknown key, or a value of another type.
    """
    plain = _plain(text)
    schema = plain.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise UsageError(
            f"bundle.json has schema {schema}; this version reads schema {SCHEMA}: a newer pipe wrote it. Update pipe "
            "(pip install -U pipe-features), or export the model again with this version"
        )
    if schema != SCHEMA or type(schema) is not int:
        raise UsageError(f"bundle.json has schema {_shown(schema)}; it must be {SCHEMA}: this is no bundle of pipe")
    spec = read_value(BundleSpec, plain, "bundle.json")
    if digest(plain["run"])[:16] != spec.run_id:
        raise UsageError(
            f"bundle.json: the run's settings are not those of run {_shown(spec.run_id)}: they were changed after the "
            "export; export the model again"
        )
    return spec


def _plain(text: bytes) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinity."""

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no number")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    try:
        plain = json.loads(text.decode("utf-8"), parse_constant=constant, parse_float=number, object_pairs_hook=unique)
    except RecursionError:
        raise UsageError("bundle.json is nested too deeply to be a bundle of pipe") from None
    except ValueError as error:  # also what is not UTF-8, and integers of thousands of digits
        raise UsageError(f"bundle.json is not JSON as pipe writes it ({error}); export the model again") from None
    if not isinstance(plain, dict):
        raise UsageError(f"bundle.json is {_shown(plain)}; it must be an object")
    return plain


def read_value(kind: type[Value], plain: Any, where: str) -> Value:
    """Return a plain JSON value as a dataclass or a field of one wants it.

    Args:
        kind: a dataclass, ``str``, ``int``, ``float``, ``bool``, or tuples, mappings, unions and literals of them;
            a whole number is a number, true and false are neither.
        plain: the value.
        where: its path, for messages.

    Raises:
        UsageError: an unknown or missing key, or a value of another type.
    """
    return _read(kind, plain, where)  # type: ignore[no-any-return]


def _read(kind: Any, plain: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, plain, where)
    if origin is tuple:
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_as(list, plain, where)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in _as(dict, plain, where).items()}
    if origin is Literal:
        if plain not in arguments or isinstance(plain, bool):
            raise UsageError(f"{where} is {_shown(plain)}; allowed: {', '.join(map(str, arguments))}")
        return plain
    if origin in (Union, UnionType):
        if any(_fits(plain, part) for part in arguments):
            return plain
        raise UsageError(f"{where} is {_shown(plain)}; it must be {' or '.join(_name(part) for part in arguments)}")
    return _as(kind, plain, where)


def _read_dataclass(kind: Any, plain: Any, where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    values = _as(dict, plain, where)
    for key in values:
        if key not in fields:
            raise UsageError(
                f"{where}: {_shown(key)} is unknown to this version.{nearest(key[:100], fields)} A newer pipe may have "
                "written it: update pipe, or export the model again"
            )
    needed = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [n for n, f in fields.items() if n not in values and (f.default, f.default_factory) == needed]
    if missing:
        raise UsageError(f"{where}: {missing[0]!r} is missing; export the model again")
    return kind(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in values.items()})


def _as(kind: Any, plain: Any, where: str) -> Any:
    if not _fits(plain, kind):
        raise UsageError(f"{where} is {_shown(plain)}; it must be {_name(kind)}")
    return plain


def _fits(plain: Any, kind: Any) -> bool:
    if isinstance(plain, bool):
        return kind is bool
    return isinstance(plain, (int, float) if kind is float else kind)


def _name(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
    return {**names, list: "a list", type(None): "null"}.get(kind, str(kind))


def _shown(value: Any) -> str:
    """A value in a message, however long it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _within(what: str, value: Any, least: int, most: int) -> None:
    """Refuse a size that no model has."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    if not whole or not least <= value <= most:
        raise UsageError(f"{what} is {_shown(value)}; a model has {least} to {most}: this is no sound bundle")
