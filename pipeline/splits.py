"""Label budget and seed -> which clips a run may use for what."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UsageError, choose
from pipeline.types import Budget, Manifest, PerClass, Protocol, Split


def named_generator(*parts: object) -> np.random.Generator:
    """Return a generator that depends on every part; one name, one stream, so draws never shift each other."""
    text = "\x1f".join(str(part) for part in parts)
    return np.random.Generator(np.random.Philox(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")))


@dataclass(frozen=True)
class Labels:
    """How the labeled clips of a run are chosen."""

    budget: Budget
    seed: int = 0  # of the draw; the paper protocol's draw has its own
    unlabeled_domains: Sequence[str] = ()  # sources of which no clip is labeled
    ids: Sequence[str] = ()  # the labeled clips themselves: nothing is drawn
    folds: int = 0  # parts of the labeled clips
    fold: int = -1  # the part that is held back as validation; -1: none


def make_split(
    manifest: Manifest,
    sources: Sequence[str],
    target: str,
    labels: Labels,
    usable: Collection[str] | None = None,
    target_part: str = "all",
    protocol: Protocol = "strict",
) -> Split:
    """Lay out a protocol and draw the labeled set.

    Training clips of the sources are labeled or unlabeled. Validation is every source's ``val`` part, or its ``test``
    part where it has no ``val``. Test is the target domain, whole or its ``test`` part. A data set of one domain is
    trained on its ``train`` part and tested on its ``test`` part; validation is then its ``val`` part alone. Without a
    target (the empty name) there is no test: the run is trained, and judged elsewhere.

    ``strict``: the seed shuffles every (domain, class) once and the budget takes the first ones, so a smaller budget is
    a subset of a larger one. A group (clips of one source video, one person) is on one side only: clips of validation
    and test whose group is in training are left out and counted in the notes.

    ``paper``: as SSMDG's release draws EPIC-Kitchens: the same labeled clips for every seed (``reference_draw``),
    validation on the sources' test parts, groups not looked at.

    Args:
        manifest: the data set.
        sources: names of the source domains.
        target: name of the unseen domain; of a data set of one domain, that one; "" for none.
        labels: which clips are labeled.
        usable: clip ids with features in at least one modality; ``None`` means all.
        target_part: ``all`` or ``test``.
        protocol: ``strict`` or ``paper``.

    Raises:
        UsageError: no source or one twice, unknown domain, target among the sources, a source without training clips,
            a listed labeled clip that is no training clip of the sources, no clip to test on.
    """
    inside = _check_domains(manifest, sources, target, target_part, labels.unlabeled_domains)
    notes: list[str] = []
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, clip in enumerate(manifest.clips):
        if clip.domain in sources and clip.split == "train":
            cells[clip.domain, clip.label].append(i)
    if protocol == "strict" and not labels.ids:  # the release draws from all rows of its lists
        cells = {key: _usable(manifest, members, usable) for key, members in cells.items()}
    labeled = (
        _listed(manifest, cells, labels) if labels.ids else _drawn(manifest, sources, cells, labels, protocol, notes)
    )
    chosen = set(labeled)
    unlabeled = [i for members in cells.values() for i in members if i not in chosen]
    labeled, unlabeled = _usable(manifest, labeled, usable), _usable(manifest, unlabeled, usable)
    if len(labeled) < len(chosen):
        notes.append(f"{len(chosen) - len(labeled)} labeled clips left out: they have no features")
    if not labeled:
        raise UsageError(f"no clip of {', '.join(sources)} is labeled; give more labels, or fewer unlabeled domains")
    val, test = _held_out(manifest, sources, target, target_part, usable, inside)
    if protocol == "strict":
        val, test = _groups_apart(manifest, (*labeled, *unlabeled), val, test, notes)
    if target and not test:
        raise UsageError(f"target domain {target!r} of {manifest.dataset} has no usable clips to test on")
    if inside:
        notes.append(f"{target} is the only domain: trained on its train part, tested on its test part, no new domain")
    if labels.fold >= 0:
        val = _fold(manifest, labeled, labels)
        labeled = [i for i in labeled if i not in set(val)]
        if not labeled or not val:
            raise UsageError(f"{len(chosen)} labeled clips cannot be cut into {labels.folds} folds; give more labels")
    return Split(
        sources=tuple(sources),
        target=target,
        labeled=tuple(sorted(labeled)),
        unlabeled=tuple(sorted(unlabeled)),
        val=tuple(val),
        test=tuple(test),
        protocol=protocol,
        notes=tuple(notes),
    )


def _check_domains(
    manifest: Manifest, sources: Sequence[str], target: str, target_part: str, unlabeled: Sequence[str]
) -> bool:
    """Refuse domains that make no protocol; returns whether the target is the only domain there is."""
    if not sources or len(set(sources)) < len(sources):
        raise UsageError(f"sources {tuple(sources)}: name at least one source domain, each once")
    for name in (*sources, *([target] if target else []), *unlabeled):
        choose(f"domain of {manifest.dataset}", name, manifest.domains)
    inside = tuple(sources) == (target,) == tuple(manifest.domains)
    if target in sources and not inside:
        raise UsageError(f"target {target!r} is also a source; a target domain is in no training set")
    if inside and target_part != "test":
        raise UsageError(
            f"{manifest.dataset} has one domain, {target!r}: it can only be tested on its own test part; use "
            "--target-part test"
        )
    return inside


def _usable(manifest: Manifest, members: Iterable[int], usable: Collection[str] | None) -> list[int]:
    return [i for i in members if usable is None or manifest.clips[i].clip_id in usable]


def _drawn(
    manifest: Manifest,
    sources: Sequence[str],
    cells: Mapping[tuple[str, str], Sequence[int]],
    labels: Labels,
    protocol: Protocol,
    notes: list[str],
) -> list[int]:
    """Labeled clips by the budget, per (domain, class)."""
    budget, labeled = labels.budget, []
    for domain in sources:
        if not any(d == domain and members for (d, _), members in cells.items()):
            raise UsageError(f"source domain {domain!r} of {manifest.dataset} has no usable training clips")
        if domain in labels.unlabeled_domains:
            notes.append(f"no clip of {domain} is labeled")
            continue
        for label in manifest.classes:
            members = cells.get((domain, label), [])
            if isinstance(budget, PerClass) and len(members) < budget.count:
                notes.append(f"{domain}/{label} has {len(members)} training clips for a budget of {budget.count}")
            elif not members:
                notes.append(f"{domain}/{label} has no training clips")
            if protocol == "paper":
                order = reference_draw(len(members), budget)
            else:
                shuffled = named_generator("labels", labels.seed, domain, label).permutation(len(members))
                order = shuffled[: _budgeted(budget, len(members))].tolist()
            labeled += [members[k] for k in order]
    return labeled


def reference_draw(size: int, budget: Budget) -> list[int]:
    """Positions, among the ``size`` clips of one class of one domain, that SSMDG's release labels, in its order.

    A fresh generator with seed 42 for every class, whatever the run's seed; all clips where there are too few.
    """
    count = min(budget.count, size) if isinstance(budget, PerClass) else min(max(1, int(size * budget.share)), size)
    if isinstance(budget, PerClass) and size < budget.count:
        return list(range(size))
    chosen: list[int] = np.random.RandomState(42).choice(size, size=count, replace=False).tolist() if size else []
    return chosen


def _listed(manifest: Manifest, cells: Mapping[tuple[str, str], Sequence[int]], labels: Labels) -> list[int]:
    """Labeled clips by their ids."""
    position = {manifest.clips[i].clip_id: i for members in cells.values() for i in members}
    unknown = [name for name in labels.ids if name not in position]
    if unknown:
        raise UsageError(
            f"{len(unknown)} listed labeled clips are no training clips of the sources with features, first "
            f"{unknown[0]!r}; is the list for this data set and these domains?"
        )
    return [position[name] for name in labels.ids]


def _held_out(
    manifest: Manifest,
    sources: Sequence[str],
    target: str,
    target_part: str,
    usable: Collection[str] | None,
    inside: bool,
) -> tuple[list[int], list[int]]:
    """Validation and test before groups are looked at."""
    clips = [(i, manifest.clips[i]) for i in _usable(manifest, range(len(manifest.clips)), usable)]
    with_val = {c.domain for _, c in clips if c.split == "val"} | ({target} if inside else set())
    val = [i for i, c in clips if c.domain in sources and c.split == ("val" if c.domain in with_val else "test")]
    test = [i for i, c in clips if c.domain == target and (target_part == "all" or c.split == "test")]
    return val, test


def _groups_apart(
    manifest: Manifest, training: Sequence[int], val: Sequence[int], test: Sequence[int], notes: list[str]
) -> tuple[list[int], list[int]]:
    """Validation and test without clips whose group is on another side."""
    training_groups = {manifest.clips[i].group for i in training}
    kept_val = [i for i in val if manifest.clips[i].group not in training_groups]
    held_out = {manifest.clips[i].group for i in kept_val}
    kept_test = [i for i in test if manifest.clips[i].group not in training_groups | held_out]
    for name, before, after in (("validation", val, kept_val), ("test", test, kept_test)):
        if len(after) < len(before):
            notes.append(f"{len(before) - len(after)} {name} clips left out: their group is on another side")
    return kept_val, kept_test


def _fold(manifest: Manifest, labeled: Sequence[int], labels: Labels) -> list[int]:
    """The labeled clips of one fold: every (domain, class) is dealt out in turn, a group whole."""
    fold_of: dict[str, int] = {}
    turns: dict[tuple[str, str], int] = defaultdict(int)
    held = []
    for i in sorted(labeled):
        clip = manifest.clips[i]
        cell = (clip.domain, clip.label)
        if clip.group not in fold_of:
            fold_of[clip.group] = turns[cell] % labels.folds
            turns[cell] += 1
        if fold_of[clip.group] == labels.fold:
            held.append(i)
    return held


def _budgeted(budget: Budget, size: int) -> int:
    """Number of labeled clips of a class with ``size`` training clips."""
    if isinstance(budget, PerClass):
        return min(budget.count, size)
    # The tiny addition keeps 29 % of 100 at 29: the product of the floats is a hair below it.
    return min(max(1, int(size * budget.share + 1e-9)), size)
