"""Label budget and seed -> which clips a run may use for what."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from pipeline.errors import UsageError, choose
from pipeline.types import Budget, Manifest, PerClass, Split


def named_generator(*parts: object) -> np.random.Generator:
    """Return a generator that depends on every part; one name, one stream, so draws never shift each other."""
    text = "\x1f".join(str(part) for part in parts)
    return np.random.Generator(np.random.Philox(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")))


def make_split(
    manifest: Manifest,
    sources: Sequence[str],
    target: str,
    budget: Budget,
    seed: int,
    usable: Collection[str] | None = None,
    target_part: str = "all",
) -> Split:
    """Draw the labeled set and lay out the strict protocol.

    Training clips of the sources are labeled or unlabeled: the seed shuffles every (domain, class) once and the budget
    takes the first ones, so a smaller budget is a subset of a larger one. Validation is every source's ``val`` part, or
    its ``test`` part where it has no ``val``. Test is the target domain, whole or its ``test`` part. A group
    (clips of one source video, one person) is on one side only: clips of validation and test whose group is in
    training are left out and counted in the notes.

    Args:
        manifest: the data set.
        sources: names of the source domains.
        target: name of the unseen domain.
        budget: labeled clips per class and source domain.
        seed: of the draw.
        usable: clip ids with features in at least one modality; ``None`` means all.
        target_part: ``all`` or ``test``.

    Raises:
        UsageError: no source or one twice, unknown domain, target among the sources, a source without training clips.
    """
    if not sources or len(set(sources)) < len(sources):
        raise UsageError(f"sources {tuple(sources)}: name at least one source domain, each once")
    for name in (*sources, target):
        choose(f"domain of {manifest.dataset}", name, manifest.domains)
    if target in sources:
        raise UsageError(f"target {target!r} is also a source; a target domain is in no training set")
    notes: list[str] = []
    clips = [(i, c) for i, c in enumerate(manifest.clips) if usable is None or c.clip_id in usable]
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, clip in clips:
        if clip.domain in sources and clip.split == "train":
            cells[clip.domain, clip.label].append(i)
    labeled: list[int] = []
    unlabeled: list[int] = []
    for domain in sources:
        if not any(d == domain for d, _ in cells):
            raise UsageError(f"source domain {domain!r} of {manifest.dataset} has no usable training clips")
        for label in manifest.classes:
            members = cells.get((domain, label), [])
            count = _budgeted(budget, len(members))
            if isinstance(budget, PerClass) and len(members) < budget.count:
                notes.append(f"{domain}/{label} has {len(members)} training clips for a budget of {budget.count}")
            elif not members:
                notes.append(f"{domain}/{label} has no training clips")
            order = named_generator("labels", seed, domain, label).permutation(len(members))
            labeled += [members[k] for k in order[:count]]
            unlabeled += [members[k] for k in order[count:]]
    training_groups = {manifest.clips[i].group for i in (*labeled, *unlabeled)}
    with_val = {c.domain for _, c in clips if c.split == "val"}
    val = [i for i, c in clips if c.domain in sources and c.split == ("val" if c.domain in with_val else "test")]
    test = [i for i, c in clips if c.domain == target and (target_part == "all" or c.split == "test")]
    held_out = {manifest.clips[i].group for i in val if manifest.clips[i].group not in training_groups}
    kept_val = [i for i in val if manifest.clips[i].group not in training_groups]
    kept_test = [i for i in test if manifest.clips[i].group not in training_groups | held_out]
    for name, before, after in (("validation", val, kept_val), ("test", test, kept_test)):
        if len(after) < len(before):
            notes.append(f"{len(before) - len(after)} {name} clips left out: their group is on another side")
    if not kept_test:
        raise UsageError(f"target domain {target!r} of {manifest.dataset} has no usable clips to test on")
    return Split(
        sources=tuple(sources),
        target=target,
        labeled=tuple(sorted(labeled)),
        unlabeled=tuple(sorted(unlabeled)),
        val=tuple(kept_val),
        test=tuple(kept_test),
        notes=tuple(notes),
    )


def _budgeted(budget: Budget, size: int) -> int:
    """Number of labeled clips of a class with ``size`` training clips."""
    if isinstance(budget, PerClass):
        return min(budget.count, size)
    # The tiny addition keeps 29 % of 100 at 29: the product of the floats is a hair below it.
    return min(max(1, int(size * budget.share + 1e-9)), size)
