"""Weight files on this machine: what is known, what is here, and how it comes here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from extractors.backbone import BACKBONES, PRESETS, all_published, find_backbone
from extractors.checkpoint_files import read_checkpoint
from extractors.encoder import Backbone
from extractors.loading import fitting_tensors
from extractors.published import Published
from extractors.raft import NETWORKS
from extractors.weights import WeightFile, WeightsError, WeightsFolder
from pipeline.console import progress
from pipeline.errors import UsageError, choose
from pipeline.extraction import usage_errors


@dataclass(frozen=True)
class KnownFile:
    """A published weight file, who uses it, and whether it is here."""

    published: Published
    backbones: tuple[str, ...]
    file: WeightFile


def known_files(folder: WeightsFolder, names: Sequence[str] = ()) -> list[KnownFile]:
    """Published files, of all backbones in the table or those that names stand for.

    Args:
        folder: the weights folder.
        names: backbones (their default weights), BACKBONE=WEIGHTS, presets, or published file names.

    Raises:
        UsageError: a name that is none of these.
    """
    with usage_errors():
        if not names:
            return [KnownFile(p, _users(p), folder.find(p)) for p in all_published()]
        return _chosen(folder, names)


def _chosen(folder: WeightsFolder, names: Sequence[str]) -> list[KnownFile]:
    single = [n for name in names for n in (PRESETS[name].values() if name in PRESETS else (name,))]
    published = {p.file: (name, p) for name in single for p in _named(name)}
    return [KnownFile(p, _users(p) or (name,), folder.find(p)) for name, p in published.values()]


def _named(name: str) -> list[Published]:
    """The published file that one name stands for; none for a backbone whose weights are built in."""
    files = {published.file: published for published in all_published()}
    if name in files:
        return [files[name]]
    backbone_name, _, choice = name.partition("=")
    backbone = _network(backbone_name)
    if choice:
        choose(f"weights of {backbone_name}", choice, [p.name for p in backbone.published])
        return [p for p in backbone.published if p.name == choice]
    return list(backbone.published[:1])


def _users(published: Published) -> tuple[str, ...]:
    """Names of the backbones in the table that use a file."""
    networks = (*BACKBONES.values(), *NETWORKS.values())
    return tuple(n.name for n in networks if any(p.file == published.file for p in n.published))


def _network(name: str) -> Backbone:
    """A backbone, or a network of optical flow."""
    with usage_errors():
        return NETWORKS[name] if name in NETWORKS else find_backbone(name)


def fetch_file(folder: WeightsFolder, known: KnownFile) -> WeightFile:
    """Download a file, with a progress bar in MiB, and check that it fits its network.

    Raises:
        UsageError: it cannot be had, or is not what was published; says what to do.
    """
    with usage_errors(), progress(f"{known.published.file} (MiB)") as bar:
        folder.fetch(known.published, lambda done, total: bar.update(done >> 20, max(1, (total or done) >> 20)))
        file = folder.verified(known.published)
        _fits(known, file.path)
        return file


def add_file(folder: WeightsFolder, path: Path, name: str | None, replace: bool) -> WeightFile:
    """Copy a file that the user has into the weights folder, as the published file that it is.

    Args:
        folder: the weights folder.
        path: the file.
        name: backbone or published file name, where the file's own name does not tell.
        replace: replace another file of that name.

    Raises:
        UsageError: it is no published file, or it does not fit its network.
    """
    with usage_errors():
        if name is None:
            matches = folder.match(path, all_published())
            rows = [KnownFile(p, _users(p), folder.find(p)) for p in matches]
        else:
            rows = known_files(folder, [name])
        if len(rows) != 1:
            what = "no published file" if not rows else f"{len(rows)} published files"
            raise UsageError(
                f"{path.name} looks like {what}; say which one it is: pipe weights add {path} --as FILE, with FILE one "
                f"of {', '.join(p.file for p in all_published())}. A checkpoint of your own needs no adding: "
                f"--weights BACKBONE={path}"
            )
        _fits(rows[0], path)
        folder.add(path, rows[0].published, replace=replace)
        return folder.verified(rows[0].published)


def _fits(known: KnownFile, path: Path) -> None:
    """Check that a file's tensors are those of the first network that uses it.

    Raises:
        WeightsError: they are not.
    """
    backbone = _network(known.backbones[0])
    with torch.device("meta"):
        network = backbone.build()
    fitting_tensors(backbone, network, known.published, read_checkpoint(path), path.name)


def _unlisted(file: str) -> Published:
    """A file that is in no table, for example of a torchvision model: what its record says of it is all there is."""
    return Published(file, file, "", "", "", "", "its record", lambda _: {})


def check_files(folder: WeightsFolder) -> tuple[list[WeightFile], list[str]]:
    """Read every file that is here again; returns the sound ones and a sentence about each that is not."""
    listed = {published.file: published for published in all_published()}
    here = [name for name in listed if (folder.folder / name).exists()]
    sound, faults = [], []
    for name in dict.fromkeys([*here, *folder.recorded_files()]):
        try:
            sound.append(folder.check(listed.get(name) or _unlisted(name)))
        except WeightsError as error:
            faults.append(str(error))
    return sound, faults
