"""A trained model as a folder: written atomically, read back with every size and digest checked first.

============================  =======================================================================================
``bundle.json``               what the model is (``pipeline.bundlespec.BundleSpec``), and digests of the other files
``head.safetensors``          scaling of features, heads, translators, what fillers need
``README.md``                 the model card
============================  =======================================================================================

Nothing in it can run code: JSON, tensors and a text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from extractors.checkpoint_files import CheckpointError, sha256_of
from extractors.encoder import Backbone
from extractors.loading import Weights, choose_weights, random_weights
from extractors.optical_flow import FLOW_METHODS
from extractors.weights import WeightsError, WeightsFolder, default_folder, split_random
from pipeline.bundlespec import CARD_FILE, HEAD_FILE, SPEC_FILE, BundleSpec, FileEntry, read_spec, write_spec
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings, usage_errors
from pipeline.headmodel import HeadModel, HeadPlan
from pipeline.types import CleanView, canonical_json

FILES = (SPEC_FILE, HEAD_FILE, CARD_FILE)
MOST_SPEC_BYTES = 4 * 2**20
MOST_CARD_BYTES = 4 * 2**20
MOST_HEADER_BYTES = 16 * 2**20
MOST_HEAD_BYTES = 2 * 2**30  # the largest real heads take some hundred MiB
AGAIN = "export the model again, or fetch the bundle again"
OWN_FILES = (".pth", ".pt", ".tar", ".pyth", ".pkl", ".safetensors", ".ckpt")


@dataclass(frozen=True)
class Bundle:
    """A model that was read from its folder."""

    folder: Path
    spec: BundleSpec
    head: HeadModel
    weights_folder: Path | None = None  # where backbones' weights lie; None: the default folder

    def feature_settings(self, device: str = "cpu") -> ExtractSettings:
        """How features for this model are made on this machine; predictions from arrays do not need it.

        Args:
            device: ``cpu`` or ``cuda:N``.

        Raises:
            UsageError: a backbone's weights are not here or are others, or this version of pipe makes other features;
                names what is missing and what to do.
        """
        facts, shared = self.spec.modalities, self.spec.features
        with usage_errors():
            folder = WeightsFolder(self.weights_folder or default_folder())
        for f in facts:
            if f.imported:
                raise UsageError(
                    f"this model reads {f.modality} features of {f.backbone} that were imported, so pipe cannot "
                    "make them from media; give it features as arrays, made as those were"
                )
        alike = {(f.tap, f.dtype) for f in facts}
        if len(alike) != 1:
            raise UsageError(f"bundle.json: its features have several taps or types: {sorted(alike)}; export it again")
        ((tap, dtype),) = alike
        settings = ExtractSettings(
            modalities=tuple(f.modality for f in facts),
            backbones={f.modality: f.backbone for f in facts},
            weights={f.modality: Weights("", "") for f in facts},
            tap=tap,
            precision={f.modality: f.precision for f in facts},
            dtype=dtype,
            views=CleanView(variant=shared.augmentation),
            flow_method=shared.flow_method,
            device=device,
            resampler=shared.resampler,
            decoder=shared.decoder,
        )
        weights = {
            f.modality: _find_weights(settings.backbone(f.modality), f.weights, f.weights_note, folder) for f in facts
        }
        flow_weights = None
        network = FLOW_METHODS[shared.flow_method].network
        if shared.flow_weights and network is not None:
            flow_weights = _find_weights(network, shared.flow_weights, shared.flow_weights_note, folder)
        settings = replace(settings, weights=weights, flow_weights=flow_weights)
        for f in facts:
            _check_same_features(settings, self.spec.run.dataset, f.modality, f.settings)
        return settings


def load_bundle(folder: Path | str, device: str = "cpu", weights_folder: Path | None = None) -> Bundle:
    """Read a model from its folder.

    Sizes, names and shapes are checked before anything is allocated, and the digest of every file before its content
    is used. Other files in the folder are not looked at.

    Args:
        folder: what ``pipe export`` wrote.
        device: where the head runs, ``cpu`` or ``cuda:N``.
        weights_folder: where backbones' weights lie; ``None``: the default folder.

    Raises:
        UsageError: it is no bundle, was changed or cut off, is of a newer schema, or has sizes that no model has.
    """
    folder = Path(folder)
    spec = read_spec(_read_file(folder, SPEC_FILE, MOST_SPEC_BYTES))
    if set(spec.files) != {HEAD_FILE, CARD_FILE}:
        raise UsageError(
            f"{folder / SPEC_FILE} lists {len(spec.files)} files; a bundle has {HEAD_FILE} and {CARD_FILE} beside it, "
            f"and no other; {AGAIN}"
        )
    plan = spec.plan()
    _check_shapes(folder, spec.files[HEAD_FILE], plan)
    limits = {CARD_FILE: MOST_CARD_BYTES, HEAD_FILE: MOST_HEAD_BYTES}
    content = {name: _read_file(folder, name, most, spec.files[name]) for name, most in limits.items()}
    head = HeadModel(plan)
    try:
        head.load_tensors(load(content[HEAD_FILE]))
    except (SafetensorError, RuntimeError) as error:
        raise UsageError(f"{folder / HEAD_FILE} cannot be read ({error}); {AGAIN}") from error
    head.set_temperatures(*spec.temperatures())
    return Bundle(folder, spec, head.to(device), weights_folder)


def write_bundle(folder: Path, spec: BundleSpec, head: HeadModel, card: str, force: bool = False) -> None:
    """Write a model so that its folder is there whole, or as before.

    What was written is read back before it takes its place.

    Args:
        folder: a folder that does not exist, or is empty.
        spec: what the model is; its ``files`` are filled in here.
        head: the model.
        card: text of the model card.
        force: a bundle that is there is replaced; anything else never is.

    Raises:
        UsageError: the folder is taken.
        OSError: it cannot be written, for example because the disk is full.
    """
    check_place(folder, force)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    before = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    # A single entry of metadata: safetensors writes several in any order.
    content = {HEAD_FILE: save(head.tensors(), metadata={"run_id": spec.run_id}), CARD_FILE: card.encode()}
    files = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in content.items()}
    content[SPEC_FILE] = write_spec(replace(spec, files=files)).encode()
    try:
        temporary.mkdir()
        for name, data in content.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        load_bundle(temporary)
        check_place(folder, force)  # an export takes a while: somebody may have been faster
        if folder.exists():
            folder.rename(before)
        try:
            temporary.rename(folder)
        except OSError:
            if before.exists():
                before.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def check_place(folder: Path, force: bool) -> None:
    """Check that a model may be written to a folder.

    Raises:
        UsageError: something else is there, or a bundle and it may not be replaced.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError(f"{folder} is there and no folder; name a folder that does not exist")
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return
    others = [name for name in names if name not in FILES]
    if others or SPEC_FILE not in names:
        raise UsageError(
            f"{folder} holds {', '.join(others[:3]) or ', '.join(names)}, which is no bundle's; a bundle has a folder "
            "of its own: name one that does not exist"
        )
    if not force:
        raise UsageError(f"{folder} holds a bundle; name another folder, or replace it with --force")


def _place(folder: Path, name: str) -> Path:
    """A file of a bundle that is a file and lies in the bundle's folder.

    Raises:
        UsageError: it is missing, no file, or a link that leads elsewhere.
    """
    path = folder / name
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError):  # the latter where links go in a circle
        raise UsageError(f"{folder} has no {name}: it is no bundle; `pipe export RUN {folder}` writes one") from None
    if not inside:
        raise UsageError(f"{path} is a link that leads out of the bundle; {AGAIN}")
    if not path.is_file():
        raise UsageError(f"{path} is no file; {AGAIN}")
    return path


def _read_file(folder: Path, name: str, most: int, entry: FileEntry | None = None) -> bytes:
    """Content of a file of a bundle, with size and digest checked.

    Raises:
        UsageError: it is missing, no file of this folder, too large, or not what the entry says.
    """
    path = _place(folder, name)
    size = path.stat().st_size
    if size > most:
        raise UsageError(f"{path} has {size} bytes; a bundle's has at most {most}; {AGAIN}")
    if entry is not None and size != entry.bytes:
        raise UsageError(f"{path} has {size} bytes and had {entry.bytes} when it was exported; {AGAIN}")
    with path.open("rb") as file:
        content = file.read(size + 1)
    if entry is not None and hashlib.sha256(content).hexdigest() != entry.sha256:
        raise UsageError(f"{path} is not the file that was exported: its sha256 is another; {AGAIN}")
    return content


def _check_shapes(folder: Path, entry: FileEntry, plan: HeadPlan) -> None:
    """Check by the header alone that the tensors' file holds exactly those of a plan.

    Raises:
        UsageError: it does not.
    """
    path = _place(folder, HEAD_FILE)
    with torch.device("meta"):
        shapes = HeadModel(plan).shapes()
    found, start = _header(path)
    if found.keys() != shapes.keys():
        name = min(found.keys() ^ shapes.keys())
        raise UsageError(f"{path}: tensor {name[:100]!r} is {'unknown' if name in found else 'missing'}; {AGAIN}")
    for name, shape in shapes.items():
        facts = found[name] if isinstance(found[name], dict) else {}
        if facts.get("dtype") != "F32" or facts.get("shape") != list(shape):
            said = f"{facts.get('dtype')} {facts.get('shape')}"[:100]
            raise UsageError(
                f"{path}: tensor {name} is {said}; the model that bundle.json tells of has F32 {list(shape)}; {AGAIN}"
            )
    size = start + 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
    if size != entry.bytes:
        raise UsageError(f"{path}: bundle.json says {entry.bytes} bytes, and the model's tensors take {size}; {AGAIN}")


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a tensors' file without its metadata, and the number of bytes before the first value."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= MOST_HEADER_BYTES:
            raise UsageError(f"{path}: its header has {length} bytes; 2 to {MOST_HEADER_BYTES} are read; {AGAIN}")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: its header cannot be read ({str(error)[:100]}); {AGAIN}") from None
    if not isinstance(header, dict):
        raise UsageError(f"{path}: its header is no object; {AGAIN}")
    header.pop("__metadata__", None)
    return header, 8 + length


def _find_weights(backbone: Backbone, identity: str, note: str, folder: WeightsFolder) -> Weights:
    """The weights with which features were made, wherever they lie on this machine.

    Raises:
        UsageError: they are not here; names the backbone, their digest and what to do.
    """
    if identity == backbone.builtin:  # first: its name may look like that of drawn ones
        return Weights(backbone.builtin, backbone.builtin_note)
    with usage_errors():
        seed = split_random(identity)
    if seed is not None and not backbone.builtin:
        return random_weights(seed)
    reasons = []
    for published in backbone.published:
        try:
            found = choose_weights(backbone, published.name, folder)
        except (WeightsError, CheckpointError) as error:
            reasons.append(str(error))
            continue
        if found.identity == identity:
            return found
        reasons.append(f"{found.path} has {found.identity[:19]}")
    with usage_errors():  # a checkpoint of the user's own has any name and no record
        for path in sorted(folder.folder.iterdir()) if folder.folder.is_dir() else ():
            if path.suffix in OWN_FILES and path.is_file() and f"sha256:{sha256_of(path)}" == identity:
                return choose_weights(backbone, str(path), folder)
    what = f"{identity} ({note})" if note else identity
    raise UsageError(
        f"this model reads features of backbone {backbone.name} with the weights {what}, which are not in "
        f"{folder.folder}. {'; '.join(reasons)}{'. ' if reasons else ''}`pipe weights list` shows what is here, `pipe "
        "weights fetch` and `pipe weights add` bring published files; copy a checkpoint of your own into that folder"
    )


def _check_same_features(settings: ExtractSettings, dataset: str, modality: str, made: Mapping[str, Any]) -> None:
    """Check that this version and machine make the features that a model was trained on.

    Raises:
        UsageError: they differ; names the settings that do.
    """
    here = json.loads(canonical_json(settings.identity(dataset, modality).settings))
    differ = sorted(name for name in here.keys() | made.keys() if here.get(name) != made.get(name))
    if differ:
        listed = "; ".join(f"{name} is {here.get(name)!r} here and was {made.get(name)!r}" for name in differ)
        raise UsageError(
            f"this version of pipe makes other {modality} features than those the model was trained on: "
            f"{listed[:600]}. Use the version that exported the model (bundle.json names it under "
            "training), or train and export again"
        )
