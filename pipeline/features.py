"""What a user asks of features -> the settings that identify them: backbones, weights, precision.

Extraction needs weights; training on what was extracted does not, so what the cache holds answers where weights are
not on this machine, and where the precision was left open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cache.layout import DTYPES, Identity
from cache.store import StoredGroup, stored_groups
from extractors.backbone import PRESETS, find_backbone
from extractors.checkpoint_files import CheckpointError
from extractors.encoder import PRECISIONS, Backbone
from extractors.loading import Weights, choose_weights
from extractors.optical_flow import FLOW_METHODS
from extractors.raft import NETWORKS
from extractors.weights import WeightsError, WeightsFolder, default_folder, split_random
from pipeline.decode.decoders import check_decoder
from pipeline.errors import UsageError, choose
from pipeline.extraction import ExtractSettings, resolve_device, usage_errors
from pipeline.types import MODALITIES, ViewSpec

AUTO = "auto"


@dataclass(frozen=True)
class FeatureRequest:
    """Features as a user asks for them."""

    modalities: tuple[str, ...] = ()  # empty: all
    backbones: tuple[str, ...] = ()  # names, or one preset; modalities not named take the data set's preset
    weights: tuple[str, ...] = ()  # CHOICE for all backbones, or BACKBONE=CHOICE
    tap: str = "pool"
    precision: str = AUTO  # auto: as the cache has it, else bfloat16 where this machine is fast at it
    dtype: str = DTYPES[0]  # of the stored features
    groups: tuple[str, ...] = ()  # of the cache, used as they are: names, or the start of one; for example imported
    views: ViewSpec = field(default_factory=ViewSpec)
    flow_method: str = "dis-medium"
    device: str = "cpu"  # auto, cpu, cuda or cuda:N
    remote: bool = False  # each worker of a cluster finds its own device
    compiled: bool = False
    resampler: str = "swresample"  # of sound
    decoder: str = "auto"  # of video files
    deadline_seconds: float = 120.0  # for decoding one clip
    weights_folder: Path = field(default_factory=default_folder)


def settle(request: FeatureRequest, dataset: str, preset: str, cache: Path | str, extracting: bool) -> ExtractSettings:
    """Settle everything that a request leaves open.

    Args:
        request: what the user asks.
        dataset: name of the data set in the cache.
        preset: key of ``PRESETS`` for modalities whose backbone was not named.
        cache: root of all caches.
        extracting: features will be computed, so weights must be here; else those in the cache may stand for them.

    Raises:
        UsageError: names that are not allowed, weights that are not here, or a cache that leaves more than one choice.
    """
    choose("precision", request.precision, (AUTO, *PRECISIONS))
    if extracting:
        check_decoder(request.decoder)
    device = resolve_device("auto" if request.remote else request.device)
    stored = stored_groups(cache, dataset)
    if extracting and request.groups:
        raise UsageError(
            f"--features {request.groups[0]} names features that are there already; leave it out to make some"
        )
    given = _given(request.groups, stored, dataset)
    request = replace(request, modalities=request.modalities or tuple(given) or MODALITIES)
    given = {m: group for m, group in given.items() if m in request.modalities}
    backbones = chosen_backbones(request.backbones, preset)
    used = {m: backbones[choose("modality", m, MODALITIES)] for m in request.modalities if m not in given}
    choose("method of optical flow", request.flow_method, FLOW_METHODS)
    flow_network = FLOW_METHODS[request.flow_method].network if "flow" in used else None
    networks = [*used.values(), *([flow_network.name] if flow_network else [])]
    choices = weight_choices(request.weights, networks)
    settings = ExtractSettings(
        modalities=request.modalities,
        backbones={**backbones, **{m: group.identity.backbone for m, group in given.items()}},
        weights={m: Weights("", "") for m in used},
        tap=request.tap,
        dtype=request.dtype,
        given={m: group.identity for m, group in given.items()},
        views=request.views,
        flow_method=request.flow_method,
        flow_weights=_flow_weights(flow_network, choices, request.weights_folder, stored, extracting),
        device=request.device if request.remote else device,
        compiled=request.compiled,
        resampler=request.resampler,
        decoder=request.decoder,
        deadline_seconds=request.deadline_seconds,
    )
    weights = {m: Weights(g.identity.weights, _origin(g)) for m, g in given.items()}
    precision = {}
    for modality in used:
        backbone = settings.backbone(modality)
        allowed = PRECISIONS if backbone.bfloat16 else PRECISIONS[:1]
        if request.precision in allowed:
            allowed = (request.precision,)
        variants = {p: replace(settings, precision={modality: p}).identity(dataset, modality) for p in allowed}
        there = _alike(stored, variants)
        weights[modality] = _weights(backbone, choices[backbone.name], request.weights_folder, there, extracting)
        there = [(p, g) for p, g in there if g.identity.weights == weights[modality].identity]
        precision[modality] = _precision(backbone, {p for p, _ in there}, allowed, device)
    return replace(settings, weights=weights, precision=precision)


def _given(names: Sequence[str], stored: Sequence[StoredGroup], dataset: str) -> dict[str, StoredGroup]:
    """The groups that a user names, by modality, in the order of ``MODALITIES``."""
    found: dict[str, StoredGroup] = {}
    for name in names:
        start = name.strip().removeprefix(f"{dataset}/")
        fits = [g for g in stored if g.place.name == start] or [g for g in stored if g.place.name.startswith(start)]
        if len(fits) != 1:
            there = ", ".join(g.place.name for g in (fits or stored)) or "none"
            what = "several groups" if fits else "no group"
            raise UsageError(f"--features {name!r} names {what} of {dataset}; groups: {there} (`pipe cache ls`)")
        modality = choose("modality of a group for training", fits[0].identity.modality, MODALITIES)
        if modality in found:
            raise UsageError(f"--features names two groups of {modality}: {found[modality].place.name} and {name!r}")
        found[modality] = fits[0]
    return {m: found[m] for m in MODALITIES if m in found}


def _origin(group: StoredGroup) -> str:
    """Where the features of a group that a user names come from, for the notes under tables."""
    if group.identity.weights.startswith("declared:"):
        return "imported features, their provenance is declared and not checked"
    return group.notes.get("weights", "")


def chosen_backbones(names: Sequence[str], preset: str) -> dict[str, str]:
    """Backbone per modality: those named, the preset's for the rest.

    Raises:
        UsageError: an unknown name, or two of one modality.
    """
    if len(names) == 1 and names[0] in PRESETS:
        return dict(PRESETS[names[0]])
    found: dict[str, str] = {}
    for name in names:
        with usage_errors():
            backbone = find_backbone(name)
        if backbone.modality in found:
            raise UsageError(
                f"--backbones names {found[backbone.modality]!r} and {name!r}, both for {backbone.modality}; a cache "
                f"holds one backbone per modality and command. Presets: {', '.join(PRESETS)}"
            )
        found[backbone.modality] = name
    return {**PRESETS[preset], **found}


def weight_choices(texts: Sequence[str], backbones: Sequence[str]) -> dict[str, str]:
    """Weights per backbone as named by ``CHOICE`` or ``BACKBONE=CHOICE``.

    Raises:
        UsageError: a backbone that is not used.
    """
    with usage_errors():
        specs = {name: NETWORKS[name] if name in NETWORKS else find_backbone(name) for name in backbones}
    found = dict.fromkeys(backbones, "")
    for text in texts:
        name, sign, choice = text.partition("=")
        if sign:
            found[choose("backbone of this command", name.strip(), backbones)] = choice.strip()
        else:  # for all; built-in weights are not anybody's choice
            found.update({n: text.strip() for n, spec in specs.items() if not spec.builtin})
    return found


def fast_precision(device: str) -> str:
    """``bfloat16`` where a device computes it natively, else ``float32``."""
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("avx512_bf16", "amx_tile"))
    return "bfloat16" if fast else "float32"


def _alike(stored: Sequence[StoredGroup], variants: Mapping[str, Identity]) -> list[tuple[str, StoredGroup]]:
    """The groups that differ from the identities wanted in nothing but their weights, with their precision."""
    return [
        (precision, group)
        for group in stored
        for precision, wanted in variants.items()
        if replace(wanted, weights=group.identity.weights) == group.identity
    ]


def _weights(
    backbone: Backbone, choice: str, folder: Path, there: Sequence[tuple[str, StoredGroup]], extracting: bool
) -> Weights:
    """The weights chosen; where they are not on this machine, those that the cache was made with."""
    try:
        return choose_weights(backbone, choice, WeightsFolder(folder))
    except (WeightsError, CheckpointError) as error:
        files = {p.file for p in backbone.published if p.name == choice}
        made = {
            group.identity.weights: group.notes.get("weights", "")
            for _, group in there
            if split_random(group.identity.weights) is None
            and (not choice or any(file in group.notes.get("weights", "") for file in files))
        }
        if extracting or not made:
            raise UsageError(str(error)) from error
        if len(made) > 1:
            listed = "; ".join(f"{identity[:19]} ({note})" for identity, note in made.items())
            raise UsageError(
                f"the cache holds features of {backbone.name} from {len(made)} weights: {listed}; name one with "
                f"--weights {backbone.name}=CHOICE, its file must be on this machine"
            ) from error
        identity, note = next(iter(made.items()))
        return Weights(identity, note)


def _flow_weights(
    network: Backbone | None,
    choices: Mapping[str, str],
    folder: Path,
    stored: Sequence[StoredGroup],
    extracting: bool,
) -> Weights | None:
    """The weights of a network of optical flow; where they are not here, those that the cache's flow was made with."""
    if network is None:
        return None
    choice = choices[network.name]
    try:
        return choose_weights(network, choice, WeightsFolder(folder))
    except (WeightsError, CheckpointError) as error:
        made = {
            str(group.identity.settings["flow_weights"]): group.notes.get("flow", "")
            for group in stored
            if group.identity.settings.get("flow") == network.name
        }
        if extracting or choice or len(made) != 1:
            raise UsageError(str(error)) from error
        identity, note = next(iter(made.items()))
        return Weights(identity, note)


def _precision(backbone: Backbone, there: set[str], allowed: Sequence[str], device: str) -> str:
    """The one precision that is allowed or in the cache, else what this machine is fast at."""
    if len(allowed) == 1:
        return allowed[0]
    if len(there) > 1:
        raise UsageError(
            f"the cache holds features of {backbone.name} in {' and in '.join(sorted(there))}; name one with "
            "--feature-precision"
        )
    return next(iter(there)) if there else fast_precision(device)
