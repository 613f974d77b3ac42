"""`pipe cache ...`: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import load_torch, names, takes, workspace

if TYPE_CHECKING:
    from pipeline.types import Manifest
    from pipeline.workspace import Workspace

cache_app = typer.Typer(help="Cached features: list, check, mend, compare, exchange.", no_args_is_help=True)

Groups = Annotated[
    list[str] | None, typer.Argument(metavar="[GROUP]...", help="Names, their beginnings, or DATASET/MODALITY.")
]
Group = Annotated[str, typer.Argument(metavar="GROUP", help="A name, its beginning, or DATASET/MODALITY.")]
DatasetName = Annotated[str, typer.Option("--dataset", help="Name of a data set.", show_default="all")]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", help="CSV or parquet whose clips and labels go with the features.")
]


def _manifest(path: Path | None) -> Manifest | None:
    from pipeline.datasets.manifest import read_manifest

    return None if path is None else read_manifest(path)


@cache_app.command("ls")
@takes(space=workspace)
def ls(space: Workspace, dataset: DatasetName = "") -> None:
    """List groups: data set, modality, backbone, weights, clips, size."""
    from pipeline.cachetool import list_groups
    from pipeline.show_cache import show_groups

    show_groups(list_groups(space.cache, dataset))


@cache_app.command("info")
@takes(space=workspace)
def info(space: Workspace, group: Group) -> None:
    """Say everything about a group: identity, versions, notes, counts, failures, decoders, digest."""
    from pipeline.cachetool import find_group, group_info
    from pipeline.show_cache import show_info

    show_info(group_info(find_group(space.cache, group)))


@cache_app.command("verify")
@takes(space=workspace)
def verify(
    space: Workspace,
    groups: Groups = None,
    dataset: DatasetName = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Make what is damaged todo again; `pipe extract` makes it anew.")
    ] = False,
) -> None:
    """Read every file and find what is damaged, missing or impossible; exit code 1 where something is."""
    from pipeline.cachetool import verify_groups
    from pipeline.show_cache import show_verified

    sound = True
    for report in verify_groups(space.cache, groups or (), dataset, repair):
        show_verified(report, repair)
        sound = sound and report.sound
    if not sound:
        raise typer.Exit(1)


@cache_app.command("diff")
@takes(space=workspace)
def diff(space: Workspace, first: Group, second: Group) -> None:
    """Compare two groups: identities, clips, states, features per view."""
    from pipeline.cachediff import diff_groups
    from pipeline.cachetool import find_group
    from pipeline.show_cache import show_diff

    show_diff(diff_groups(find_group(space.cache, first), find_group(space.cache, second)))


@cache_app.command("export")
@takes(space=workspace)
def export(
    space: Workspace,
    folder: Annotated[Path, typer.Argument(help="Folder that the files go to.")],
    groups: Groups = None,
    dataset: DatasetName = "",
    format_: Annotated[str, typer.Option("--format", help="hdf5, npy or safetensors.")] = "hdf5",
    manifest: ManifestOption = None,
) -> None:
    """Write groups to HDF5, .npy or safetensors files, with a Parquet index."""
    from pipeline.cachetool import export_groups
    from pipeline.show_cache import show_exported

    show_exported(export_groups(space.cache, groups or (), folder, format_, dataset, _manifest(manifest)))


@cache_app.command("import")
@takes(space=workspace)
def import_(
    space: Workspace,
    path: Annotated[Path, typer.Argument(help="What pipe exported; or HDF5, .npy files, a pickle, an array.")],
    dataset: Annotated[str, typer.Option(help="Name of the data set; needed for features of others.")] = "",
    modality: Annotated[str, typer.Option(help="video, flow or audio.")] = "",
    backbone: Annotated[str, typer.Option(help="What made the features.")] = "",
    weights: Annotated[str, typer.Option(help="Its weights, in words.", show_default="the file's sha256")] = "",
    tap: Annotated[str, typer.Option(help="Where in the network they were taken.")] = "unknown",
    views: Annotated[str, typer.Option(help="Names of the views, comma-separated.", show_default="clean0")] = "",
    note: Annotated[str, typer.Option(help="Who made them and how, a sentence for every table.")] = "",
    manifest: ManifestOption = None,
    features: Annotated[str, typer.Option(help="HDF5 data set, tensor or key that holds them.")] = "",
    ids: Annotated[str, typer.Option(help="Data set or key of the clip ids.")] = "",
    index: Annotated[Path | None, typer.Option(help="CSV or parquet with clip_id and row.")] = None,
    suffix: Annotated[str, typer.Option(help="End of file names that is no part of the id, such as _rgb.")] = "",
    average_rows: Annotated[bool, typer.Option("--average-rows", help="Rows of a clip are times: average.")] = False,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Rows are the manifest's clips, in order.")
    ] = False,
    drop_extra: Annotated[bool, typer.Option("--drop-extra", help="Leave out clips the manifest lacks.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Clips without features are failed.")] = False,
) -> None:
    """Take features that pipe exported, or that others made, with declared provenance."""
    from cache.convert import Declared, Matching
    from cache.sources import Layout
    from pipeline.cachetool import import_features
    from pipeline.errors import UsageError
    from pipeline.show_cache import show_imported

    given = {"dataset": dataset, "modality": modality, "backbone": backbone}
    if any(given.values()) and not all(given.values()):
        raise UsageError(
            f"--{next(k for k, v in given.items() if not v)} is missing; features of others need all three"
        )
    declared = Declared(dataset, modality, backbone, weights, tap, names(views), note=note) if backbone else None
    layout = Layout(features, ids, index, suffix, average_rows)
    matching = Matching(by_position=by_position, drop_extra=drop_extra, allow_missing=allow_missing)
    show_imported(import_features(path, space.cache, declared, layout, matching, _manifest(manifest)))


@cache_app.command("gc")
@takes(space=workspace)
def gc(
    space: Workspace,
    days: Annotated[float, typer.Option(min=0.0, help="Groups written to in so many days stay.")] = 14.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed.")] = False,
) -> None:
    """List groups that no finished run uses, and leftovers of killed processes; delete them when told."""
    from pipeline.cachecare import collect_garbage
    from pipeline.errors import UsageError
    from pipeline.show_cache import show_garbage

    if isinstance(space.cache, str):
        raise UsageError(f"{space.cache} is not a local folder; gc goes by the times of local files")
    show_garbage(collect_garbage(space.cache, space.folder / "results", days, delete), delete)


@cache_app.command("cp")
@takes(space=workspace)
def cp(
    space: Workspace,
    group: Group,
    destination: Annotated[str, typer.Argument(help="Another cache root: a folder or an address such as s3://...")],
    move: Annotated[bool, typer.Option("--move", help="Delete the original when the copy was checked.")] = False,
) -> None:
    """Copy a group to another cache; every file is read back; goes on where it stopped."""
    from pipeline.cachecare import copy_group
    from pipeline.cachetool import find_group
    from pipeline.console import progress
    from pipeline.show_cache import show_copied

    with progress(f"copying {group}") as bar:
        copied = copy_group(find_group(space.cache, group), destination, move=move, advance=bar.update)
    show_copied(copied)


@cache_app.command("pack")
@takes(space=workspace)
def pack(space: Workspace, groups: Groups = None, dataset: DatasetName = "") -> None:
    """Make one memory-mapped file per group, for reading a few rows fast."""
    load_torch()
    from pipeline.cachetool import pack_groups
    from pipeline.show_cache import show_exported

    show_exported(pack_groups(space.cache, groups or (), dataset))
