"""What `pipe verify-decode` prints."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipeline.console import out
from pipeline.verify_decode import ClipVerdict, Difference, VerifyReport

MOST_CLIPS = 10  # worst ones that are listed


def show_verification(report: VerifyReport) -> None:
    """Decoders against the reference, then the clips that differ most."""
    frames = sum(clip.num_frames for clip in report.clips)
    out.print(
        escape(
            f"{report.dataset}: {len(report.clips)} clips, {frames} frames, compared with {report.reference} in grey "
            "levels"
        )
    )
    table = Table(box=SIMPLE_HEAD)
    for name in ("decoder", "device"):
        table.add_column(name)
    for name in ("largest", "mean", "frames that differ"):
        table.add_column(name, justify="right")
    table.add_column("failures of one alone", overflow="fold")
    for row in report.summary():
        numbers = (f"{row.largest:g}", f"{row.mean:.3g}", f"{row.differing:.0%}")
        table.add_row(*(escape(cell) for cell in (row.decoder, row.decode_device, *numbers, _alone(row))))
    out.print(table)
    for name, why in report.unavailable.items():
        out.print(escape(f"Not compared: {name}: {why}"))
    bad = [clip for clip in report.clips if any(d.only_one or d.largest for d in clip.frames)]
    for clip in bad[:MOST_CLIPS]:
        out.print(escape(f"  {_sentence(clip)}"))
    if len(bad) > MOST_CLIPS:
        out.print(f"  ... and {len(bad) - MOST_CLIPS} more")
    failed = [clip for clip in report.clips if clip.reference_failure and clip not in bad]
    for clip in failed[:MOST_CLIPS]:
        out.print(escape(f"  {clip.clip_id}: no decoder reads it ({clip.reference_failure})"))
    if report.identical:
        out.print("All decoders give the same frames.")


def _alone(row: Difference) -> str:
    if not row.only_one:
        return "none"
    return row.failure or "only the reference fails"


def _sentence(clip: ClipVerdict) -> str:
    """A clip and what is odd about it."""
    parts = []
    for difference in clip.frames:
        if difference.only_one:
            parts.append(f"{difference.decoder}: {difference.failure or f'reads it, not so {clip.reference_failure}'}")
        elif difference.largest:
            parts.append(f"{difference.decoder}: up to {difference.largest:g} levels, mean {difference.mean:.3g}")
    return f"{clip.clip_id}: {'; '.join(parts)}"
