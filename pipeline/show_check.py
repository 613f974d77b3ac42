"""What `pipe data` and `pipe splits` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipeline.console import out
from pipeline.datacheck import DatasetCheck, Problem, Spread
from pipeline.datasets import Dataset
from pipeline.labelsets import LabelSet
from pipeline.types import Manifest

MOST_LISTED = 8  # examples of one kind
MOST_FAILURES = 40
MOST_CLASSES = 60  # rows of the table of counts
SPLITS = ("train", "val", "test")


def show_check(check: DatasetCheck) -> None:
    """Everything a check found, what to do about it, and a verdict."""
    decoded = "of every track the first, middle and last picture, or all sound, decoded"
    how = decoded if check.deep else "headers read, videos and sound not decoded (--deep does)"
    out.print(
        escape(
            f"{check.dataset}: {check.clips} clips, {len(check.classes)} classes, domains "
            f"{', '.join(check.domains)}, in {check.root}; {how}, {check.elapsed_seconds:.1f} s"
        )
    )
    _show_media(check)
    _show_counts(check)
    _show_spreads(check)
    for domain, classes in check.absent_classes.items():
        out.print(escape(f"Domain {domain} has no clip of {len(classes)} classes: {_some(classes)}"))
    _show_shared_groups(check.shared_groups)
    _show_clips("Clips without sound", check.without_sound)
    _show_clips("Clips whose video has no pictures", check.without_pictures)
    _show_problems("Stretches that end later than their file", check.cut_short, MOST_LISTED)
    for key, media in check.media.items():
        _show_problems(f"Missing {key}", media.missing, MOST_LISTED)
        _show_problems(f"Empty {key} (0 bytes)", media.zero_bytes, MOST_LISTED)
    _show_clips("Clips without any of their files", check.without_media)
    _show_problems("Cannot be read", check.failures, MOST_FAILURES)
    if any(media.missing or media.zero_bytes for media in check.media.values()):
        _show_remedy(check)
    out.print(escape(_verdict(check)))


def _show_media(check: DatasetCheck) -> None:
    columns = ("media", "clips", "files or folders", "there", "missing", "0 bytes")
    table = Table(title="Media", title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="left" if column == "media" else "right")
    for key, media in check.media.items():
        gone = media.named - media.there
        empty = len(media.zero_bytes)
        table.add_row(key, *map(str, (media.clips, media.named, media.there, gone, empty)))
    out.print(table)


def _show_counts(check: DatasetCheck) -> None:
    """Classes x domains, every cell as train / val / test."""
    title = "Clips: train / val / test"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("class")
    for domain in check.domains:
        table.add_column(escape(domain), justify="right", no_wrap=True)
    for label in check.classes[:MOST_CLASSES]:
        cells = [[check.counts.get((label, domain, split), 0) for split in SPLITS] for domain in check.domains]
        table.add_row(escape(label), *(_cell(cell) for cell in cells))
    if len(check.classes) > MOST_CLASSES:
        table.add_row(f"... {len(check.classes) - MOST_CLASSES} more", *("" for _ in check.domains))
    totals = {
        domain: [sum(check.counts.get((label, domain, split), 0) for label in check.classes) for split in SPLITS]
        for domain in check.domains
    }
    table.add_section()
    table.add_row("all", *(_cell(totals[domain]) for domain in check.domains))
    out.print(table)


def _cell(counts: Sequence[int]) -> str:
    return " / ".join(map(str, counts)) if any(counts) else "-"


def _show_spreads(check: DatasetCheck) -> None:
    """Lengths of the clips."""
    for key, spread in check.seconds.items():
        unknown = check.unknown_seconds.get(key, 0)
        rest = f"; {unknown} clips of a length no header states" if unknown else ""
        out.print(f"Seconds of {key} per clip: {_spread(spread, '.2f')}, {spread.total / 3600:.2f} h in all{rest}")
    for key, unknown in check.unknown_seconds.items():
        if unknown and key not in check.seconds:
            out.print(f"Seconds of {key} per clip: no header states them ({unknown} clips)")
    for key, spread in check.pictures.items():
        out.print(f"Pictures of {key} per clip: {_spread(spread, 'g')}")


def _spread(spread: Spread, form: str) -> str:
    low, median, high = (format(value, form) for value in (spread.low, spread.median, spread.high))
    return f"{low} at least, {median} median, {high} at most ({spread.count} clips)"


def _show_shared_groups(groups: Mapping[str, Sequence[str]]) -> None:
    if not groups:
        return
    out.print(
        f"Groups with clips in both train and test: {len(groups)}; strict splits leave out their clips of the other "
        "side"
    )
    for group, clips in list(groups.items())[:MOST_LISTED]:
        out.print(escape(f"  {group}: {_some(clips)}"))
    _show_rest(len(groups), MOST_LISTED)


def _show_clips(title: str, clips: Sequence[str]) -> None:
    if clips:
        out.print(escape(f"{title}: {len(clips)} ({_some(clips)})"))


def _show_problems(title: str, problems: Sequence[Problem], most: int) -> None:
    """List problems; tracks of one clip with one reason share a line."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        together.setdefault((problem.clip_id, problem.code, problem.detail), []).append(problem.key)
    if not together:
        return
    clips = len({clip for clip, _, _ in together})
    out.print(escape(f"{title}: {len(problems)} tracks of {clips} clips"))
    for (clip_id, code, detail), keys in list(together.items())[:most]:
        out.print(escape(f"  {clip_id} {'+'.join(keys)}: {code} ({detail})"))
    _show_rest(len(together), most)


def _show_rest(count: int, most: int) -> None:
    if count > most:
        out.print(f"  ... and {count - most} more")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _show_remedy(check: DatasetCheck) -> None:
    """How to get what is missing."""
    if check.published:
        out.print(escape(f"Where to get it: {check.published}"))
    else:
        out.print(escape(f"Paths start at {check.root}; put the files there, correct the manifest, or give --root"))
    if check.layout:
        out.print(escape(f"Expected below {check.root}:"))
        for line in check.layout.splitlines():
            out.print(escape(f"  {line}"))


def _verdict(check: DatasetCheck) -> str:
    if check.ok:
        return "Complete: every file is there" + (" and decodes" if check.deep else "")
    missing = sum(len(media.missing) for media in check.media.values())
    empty = sum(len(media.zero_bytes) for media in check.media.values())
    return f"Not complete: {missing} tracks missing, {empty} empty, {len(check.failures)} cannot be read"


def show_manifest(path: Path, root: Path, clips: int, skipped: Mapping[str, Sequence[str]]) -> None:
    """A manifest that was written, and what was left out of it."""
    out.print(escape(f"Written: {path} ({clips} clips)"))
    for reason, paths in skipped.items():
        out.print(
            escape(f"Skipped, {reason}: {len(paths)} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})")
        )
    elsewhere = "" if path.resolve().parent == root.resolve() else f" --root {root}"
    out.print(escape(f"Next: pipe data check --dataset {path}{elsewhere}"))


def show_datasets(datasets: Mapping[str, Dataset]) -> None:
    """Every data set known by name: options, layout, where it is published."""
    for name, known in datasets.items():
        out.print(escape(f"{name}: {known.title}"))
        for option, values in known.options.items():
            out.print(escape(f"  --data-option {option}={'|'.join(values)} (default {values[0]})"))
        for line in known.layout.splitlines():
            out.print(escape(f"    {line}"))
        if known.published:
            out.print(escape(f"  {known.published}"))
        if known.note:
            out.print(escape(f"  Note: {known.note}"))


def show_label_sets(sets: Sequence[LabelSet], manifest: Manifest) -> None:
    """One line per label subset: what it is for, how many clips of how many classes, its digest."""
    label = {clip.clip_id: clip.label for clip in manifest.clips}
    table = Table("target", "sources", "budget", "seed", "protocol", "labeled", "classes", "digest", box=SIMPLE_HEAD)
    for given in sets:
        classes = len({label[name] for name in given.labeled})
        row = (given.target, " ".join(given.sources), given.budget, str(given.seed), given.protocol)
        table.add_row(
            *map(escape, row), str(len(given.labeled)), f"{classes}/{len(manifest.classes)}", given.digest[:12]
        )
    out.print(table)
