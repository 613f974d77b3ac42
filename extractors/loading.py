"""Which weights a backbone gets, and the encoder that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from extractors.backbone import find_backbone
from extractors.checkpoint_files import read_checkpoint, sha256_of
from extractors.checkpoint_keys import check_tensors
from extractors.encoder import Backbone, Encoder, LastStage, Tap
from extractors.initialise import initialise
from extractors.published import Published, Tensors
from extractors.weights import WeightsError, WeightsFolder, split_random


@dataclass(frozen=True)
class Weights:
    """The weights that a backbone runs with."""

    identity: str  # sha256:<hex> of the file, random:<seed>, or the name of built-in ones
    note: str  # for every table made from them, one plain sentence without its full stop
    path: Path | None = None  # the file
    form: str = ""  # name of the ``Published`` whose form the file has
    seed: int | None = None  # of random ones


def random_weights(seed: int) -> Weights:
    """Weights drawn from a seed: they say what a pipeline does without training, never how good a backbone is."""
    note = (
        f"RANDOM WEIGHTS drawn from seed {seed}; nothing was pretrained, so accuracies say nothing about this network"
    )
    return Weights(f"random:{seed}", note, seed=seed)


def choose_weights(backbone: Backbone, choice: str, folder: WeightsFolder) -> Weights:
    """Find the weights that a user names.

    Args:
        backbone: the backbone.
        choice: ``""`` for its default, the name of published weights, ``random:SEED``, or the path of a file in the
            form of one of its published files.
        folder: where published files lie.

    Raises:
        WeightsError: no such weights, or the file is not here, not whole or not the published one.
    """
    seed = split_random(choice)
    if seed is not None:
        if backbone.builtin:
            raise WeightsError(f"backbone {backbone.name} has built-in weights; leave --weights out for it")
        return random_weights(seed)
    if backbone.builtin and choice in ("", backbone.builtin):
        return Weights(backbone.builtin, backbone.builtin_note)
    by_name = {published.name: published for published in backbone.published}
    if not choice and by_name:
        choice = next(iter(by_name))
    if choice in by_name:
        published = by_name[choice]
        file = folder.verified(published)
        return Weights(f"sha256:{file.sha256}", _note(published), file.path, published.name)
    path = Path(choice).expanduser()
    if choice and path.is_file():
        return _own_file(backbone, path)
    allowed = ", ".join([*by_name, *([backbone.builtin] if backbone.builtin else ["random:SEED"])])
    raise WeightsError(
        f"backbone {backbone.name} has no weights {choice!r}, and there is no such file. Allowed: {allowed}, or the "
        "path of a checkpoint"
    )


def _note(published: Published) -> str:
    return f"pretrained on {published.trained_on}, {published.file} of {published.source}"


def _own_file(backbone: Backbone, path: Path) -> Weights:
    """A checkpoint of the user's own: the first published form that its tensors fit."""
    content = read_checkpoint(path)
    with torch.device("meta"):
        network = backbone.build()
    reasons = []
    for published in backbone.published:
        try:
            fitting_tensors(backbone, network, published, content, path.name)
        except WeightsError as error:
            reasons.append(str(error))
            continue
        digest = sha256_of(path)
        note = f"from the user's file {path.name} (sha256 {digest[:12]}), in the form of {published.name}"
        return Weights(f"sha256:{digest}", note, path, published.name)
    raise WeightsError("; ".join(reasons))


def fitting_tensors(
    backbone: Backbone, network: nn.Module, published: Published, content: Mapping[str, object], file: str
) -> Tensors:
    """Tensors of a checkpoint under a network's names.

    Args:
        backbone: what the network is.
        network: it may be on the meta device.
        published: the form that the file has.
        content: of the file.
        file: its name, for the message.

    Raises:
        WeightsError: they are not exactly the network's.
    """
    try:
        tensors = published.read(content)
        check_tensors(network, tensors, file)
    except ValueError as error:
        raise WeightsError(f"not a checkpoint of {backbone.name} in the form of {published.name}: {error}") from error
    return tensors


def load_network(backbone: Backbone, weights: Weights) -> nn.Module:
    """Build a network with its weights on the CPU, in evaluation mode.

    Raises:
        WeightsError: the file changed since it was chosen, or its tensors are not the network's.
        CheckpointError: the file cannot be read.
    """
    if weights.seed is not None:
        network = backbone.build()
        initialise(network, weights.seed, backbone.name)
        return network.eval()
    if weights.path is None:
        if weights.identity != backbone.builtin:
            raise WeightsError(
                f"the weights of backbone {backbone.name} ({weights.identity[:19]}, {weights.note}) are not on this "
                "machine; `pipe weights list` shows what is, `pipe weights fetch` and `pipe weights add` bring them"
            )
        return backbone.build().eval()
    if f"sha256:{sha256_of(weights.path)}" != weights.identity:
        raise WeightsError(f"{weights.path} changed while it was in use; run the same command again")
    published = next(p for p in backbone.published if p.name == weights.form)
    network = backbone.build()
    network.load_state_dict(
        fitting_tensors(backbone, network, published, read_checkpoint(weights.path), weights.path.name)
    )
    return network.eval()


def load_encoder(
    backbone: str, weights: Weights, device: str, tap: str = "pool", precision: str = "float32", compiled: bool = False
) -> Encoder:
    """Load a backbone of the table onto a device; see ``Encoder``."""
    spec = find_backbone(backbone)
    on_cpu = torch.device(device).type == "cpu"
    return Encoder(
        load_network(spec, weights),
        torch.device(device),
        tap=Tap(tap),
        precision=precision,
        rows=spec.rows_on_cpu if on_cpu else None,
        compiled=compiled,
    )


def load_last_stage(backbone: str, weights: Weights, tap: str) -> LastStage:
    """Load the last stage of a backbone for training on cached ``pre-layer4`` features.

    Raises:
        ValueError: the tap is ``pool``, or the network cannot be cut.
    """
    spec = find_backbone(backbone)
    if Tap(tap).pooled:
        raise ValueError("tap 'pool' is behind the last stage; cache the features with --tap pre-layer4 or @GRID")
    return LastStage(load_network(spec, weights), Tap(tap).shapes(spec))
