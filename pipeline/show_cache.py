"""What is printed about the feature cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from cache.convert import ImportReport
from cache.findings import CODES, Finding, VerifyReport, count_by_code
from cache.layout import Identity
from pipeline.cachecare import Copied, Garbage
from pipeline.cachediff import GroupDiff, flat
from pipeline.cachetool import STATES, GroupInfo, GroupRow
from pipeline.console import out, size

MOST_FINDINGS = 40  # lines per group; counts tell the rest
MOST_LISTED = 8  # clips in a list


def weights_text(identity: Identity) -> str:
    """Weights in a few words."""
    return identity.weights[:19] if identity.weights.startswith("sha256:") else identity.weights[:40]


def show_groups(rows: Sequence[GroupRow]) -> None:
    """A line per group, the sentences of notes under the table."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("data set", "modality", "backbone"):
        table.add_column(name, no_wrap=True)
    table.add_column("weights", overflow="fold", min_width=8)
    for name in ("views", *STATES, "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.identity is None:
            cells = [row.group.dataset, row.group.modality, row.group.name, "cannot be read", *[""] * 5]
            table.add_row(*map(escape, cells), size(row.num_bytes))
            continue
        known = row.identity
        counts = [str(row.counts.get(state, 0)) for state in STATES]
        cells = [known.dataset, known.modality, known.backbone, weights_text(known), str(len(known.views)), *counts]
        table.add_row(*map(escape, cells), size(row.num_bytes))
    out.print(table)
    for row in rows:
        if row.problem:
            out.print(escape(f"{row.group}: {row.problem}"))
    total = sum(row.num_bytes for row in rows)
    out.print(f"{len(rows)} groups, {size(total)}. `pipe cache info DATASET/MODALITY` tells all about one.")
    show_declared([row.identity for row in rows if row.identity is not None])


def show_declared(identities: Iterable[Identity]) -> None:
    """The sentence that belongs under every table that has imported features in it."""
    declared = [k for k in identities if k.weights.startswith("declared:")]
    for known in declared:
        text = (
            f"{known.dataset}/{known.modality} {known.backbone}: imported, its provenance is declared and not checked"
        )
        out.print(escape(f"Note: {text}"))


def show_info(info: GroupInfo) -> None:
    """Everything about one group."""
    lines = {f"identity {name}": str(value) for name, value in flat(info.identity.to_json()).items()}
    lines["identity views"] = ", ".join(info.identity.views)
    lines |= {f"note {name}": text for name, text in info.notes.items() if text}
    lines["made with"] = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    lines["features"] = f"{sum(info.counts.values())} clips x {len(info.identity.views)} views x {info.dim} values"
    lines["clips"] = ", ".join(f"{info.counts[state]} {state}" for state in STATES)
    lines["units"] = f"{info.units} of {info.unit} clips, {info.todo_units} of them todo"
    lines["decoders"] = ", ".join(f"{name}: {count} clips" for name, count in info.decoders.items()) or "not recorded"
    lines["size"] = size(info.num_bytes)
    lines["digest"] = info.digest
    lines["place"] = str(info.group.place)
    width = max(map(len, lines))
    for name, text in lines.items():
        out.print(escape(f"{name:<{width}}  {text}"))
    for (state, code), count in info.reasons.items():
        out.print(escape(f"{count} clips {state}{f', {code}' if code else ''} ({info.examples[state, code]})"))
    show_declared([info.identity])


def _finding_line(finding: Finding) -> str:
    where = "" if finding.unit is None else f"unit {finding.unit} "
    clip = f"{finding.clip_id}: " if finding.clip_id else ""
    return f"  {finding.severity:<7}  {finding.code:<20}  {where}{clip}{finding.detail}"


def show_verified(report: VerifyReport, repair: bool) -> None:
    """What was found in one group, what was done, and what to do."""
    rate = report.num_bytes / max(report.seconds, 1e-9) / 1e6
    name = f"{report.path.parent.name}/{report.path.name}"
    found = f"{len(report.findings)} findings" if report.findings else "nothing wrong"
    read = f"{report.units} units, {size(report.num_bytes)} in {report.seconds:.1f} s ({rate:.0f} MB/s)"
    out.print(escape(f"{name}: {found}; {read}"))
    for finding in report.findings[:MOST_FINDINGS]:
        out.print(escape(_finding_line(finding)))
    if len(report.findings) > MOST_FINDINGS:
        counts = ", ".join(f"{count} {code}" for code, count in count_by_code(report.findings).items())
        out.print(f"  ... of {len(report.findings)}: {counts}")
    for code in count_by_code(report.findings):
        out.print(escape(f"  {code}: {CODES.get(code, '')}"))
    for sentence in report.repaired:
        out.print(escape(f"  repaired: {sentence}"))
    left = [f for f in report.left if f.severity == "error"]
    if repair and any("todo" in sentence for sentence in report.repaired):
        out.print("  `pipe extract` makes the units anew that are todo")
    elif not repair and any(f.repairable for f in report.left):
        out.print("  `pipe cache verify --repair` mends what can be mended")
    if any(not f.repairable for f in left):
        out.print("  What cannot be mended: delete the group and extract it again, or take it from a copy")


def show_exported(paths: Sequence[Path]) -> None:
    """Where an export lies."""
    for path in paths:
        out.print(escape(f"Wrote {path}"))


def show_imported(report: ImportReport) -> None:
    """What an import took, and what not."""
    out.print(escape(f"{report.path}: {report.present} clips present, {len(report.failed)} failed"))
    for record in report.failed[:MOST_LISTED]:
        out.print(escape(f"  {record.clip_id}: {record.code} ({record.detail})"))
    if len(report.failed) > MOST_LISTED:
        out.print(f"  ... and {len(report.failed) - MOST_LISTED} more; `pipe cache info` counts them by reason")
    if report.dropped:
        out.print(escape(f"{len(report.dropped)} clips of the file were left out: {_some(report.dropped)}"))
    if report.rounding or report.underflowed:
        out.print(
            f"Rounded to {report.identity.dtype}: largest relative error {report.rounding:.2g}, "
            f"{report.underflowed} values underflowed"
        )
    out.print(f"Digest {report.digest}")
    show_declared([report.identity])


def show_diff(diff: GroupDiff) -> None:
    """What two groups differ in."""
    out.print(escape(f"A: {diff.first}"))
    out.print(escape(f"B: {diff.second}"))
    if diff.same_digest:
        out.print("Digests are equal: the same features and states of the same clips.")
        return
    for field, one, other in diff.identity:
        out.print(escape(f"identity {field}: {one!r} in A, {other!r} in B"))
    for label, ids in (("A", diff.only_first), ("B", diff.only_second)):
        if ids:
            out.print(escape(f"{len(ids)} clips only in {label}: {_some(ids)}"))
    for clip_id, one, other in diff.status[:MOST_LISTED]:
        out.print(escape(f"status of {clip_id}: {one} in A, {other} in B"))
    if len(diff.status) > MOST_LISTED:
        out.print(f"... and {len(diff.status) - MOST_LISTED} more clips of another status")
    if diff.note:
        out.print(escape(diff.note))
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("view", no_wrap=True)
    for name in ("clips", "equal", "largest difference", "lowest cosine", "mean cosine"):
        table.add_column(name, justify="right")
    table.add_column("clip of the largest", overflow="fold")
    for v in diff.views:
        numbers = (f"{v.clips}", f"{v.equal}", f"{v.largest:.3g}", f"{v.lowest_cosine:.6f}", f"{v.mean_cosine:.6f}")
        table.add_row(escape(v.view), *numbers, escape(v.largest_clip if v.largest > 0 else ""))
    out.print(table)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MOST_LISTED]) + (f" and {len(ids) - MOST_LISTED} more" if len(ids) > MOST_LISTED else "")


def show_garbage(rows: Sequence[Garbage], deleted: bool) -> None:
    """What nothing uses, and what became of it."""
    for row in rows:
        state = f"kept, {row.kept}" if row.kept else "deleted" if row.deleted else "unused"
        out.print(escape(f"{state:<8}  {size(row.num_bytes):>9}  {row.kind}: {row.path}: {row.reason}"))
    total = sum(row.num_bytes for row in rows if row.deleted or (not deleted and not row.kept))
    if not rows:
        out.print("Nothing in the cache is unused.")
    elif deleted:
        out.print(f"{size(total)} freed")
    else:
        out.print(f"{size(total)} can be freed: `pipe cache gc --delete`")


def show_copied(copied: Copied) -> None:
    """What was copied or moved."""
    verb = "Moved" if copied.moved else "Copied"
    out.print(escape(f"{verb} {copied.source} to {copied.target}"))
    out.print(
        f"{copied.files} files, {size(copied.num_bytes)}, all read back; {copied.files - copied.copied} of them were "
        f"there already. Digest {copied.digest}"
    )
