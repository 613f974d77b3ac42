"""Label subsets as small JSON files with a digest, so that others can use exactly the same clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.layout import write_atomically
from pipeline.errors import UsageError, choose
from pipeline.splits import Labels, make_split
from pipeline.types import Manifest, Protocol, Split, digest, parse_budget

SCHEMA = 1


@dataclass(frozen=True)
class LabelSet:
    """Which clips of a data set are labeled for one target and one seed."""

    dataset: str
    manifest_digest: str
    protocol: str
    sources: tuple[str, ...]
    target: str
    budget: str
    seed: int
    labeled: tuple[str, ...]  # clip ids, sorted

    @property
    def digest(self) -> str:
        """sha256 of everything in it."""
        return digest({"schema": SCHEMA, **{k: getattr(self, k) for k in self.__dataclass_fields__}})

    @classmethod
    def of(cls, split: Split, manifest: Manifest, budget: str, seed: int) -> LabelSet:
        """The labeled clips of a split."""
        return cls(
            dataset=manifest.dataset,
            manifest_digest=manifest.digest,
            protocol=split.protocol,
            sources=split.sources,
            target=split.target,
            budget=budget,
            seed=seed,
            labeled=tuple(sorted(manifest.clips[i].clip_id for i in split.labeled)),
        )

    def write(self, folder: Path) -> Path:
        """Write ``<data set>-<target>-<budget>-seed<seed>.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = {"schema": SCHEMA, **{k: getattr(self, k) for k in self.__dataclass_fields__}, "digest": self.digest}
        safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{self.dataset}-{self.target}-{self.budget}")
        path = folder / f"{safe.replace('%', 'percent')}-seed{self.seed}.json"
        write_atomically(path, json.dumps(plain, indent=1, ensure_ascii=False))
        return path


def read_label_sets(paths: Sequence[Path], manifest: Manifest) -> list[LabelSet]:
    """Read label subsets from files, or from all JSON files of folders, and check them against a data set.

    Raises:
        UsageError: no file, a file that is none or was changed, another data set, clips it does not have, or two files
            for one target and seed.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise UsageError(f"there are no label subsets (*.json) in {', '.join(map(str, paths))}")
    known = {clip.clip_id for clip in manifest.clips}
    found: dict[tuple[str, int], LabelSet] = {}
    for file in files:
        given = _read(file)
        if given.dataset != manifest.dataset:
            raise UsageError(f"{file} is for the data set {given.dataset!r}, not for {manifest.dataset!r}")
        unknown = [name for name in given.labeled if name not in known]
        if unknown:
            raise UsageError(
                f"{file} names {len(unknown)} clips that {manifest.dataset} does not have, first {unknown[0]!r}; "
                "was it made from another version of the data set?"
            )
        key = (given.target, given.seed)
        if key in found:
            raise UsageError(f"{file}: target {given.target!r} with seed {given.seed} was given already")
        found[key] = given
    return list(found.values())


def _read(file: Path) -> LabelSet:
    """One file, its digest checked."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        stated = plain.pop("digest")
        if plain.pop("schema") != SCHEMA:
            raise ValueError(f"schema is not {SCHEMA}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        given = LabelSet(**values)
        parse_budget(given.budget)
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist; `pipe splits export` writes such files") from None
    except (UsageError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"{file} is no label subset of this version ({error}); export it again") from None
    if given.digest != stated:
        raise UsageError(f"{file} was changed after it was written: its digest is not {stated[:12]}; get it again")
    return given


def draw_label_sets(
    manifest: Manifest,
    labels: str,
    seeds: int,
    targets: Sequence[str],
    protocol: str,
    unlabeled_domains: Sequence[str],
) -> list[LabelSet]:
    """The labeled clips of every target and seed, drawn from all listed clips whether they have features or not."""
    choose("protocol", protocol, ("strict", "paper"))
    inside = len(manifest.domains) == 1
    found = []
    for target in targets or manifest.domains:
        sources = [d for d in manifest.domains if d != target or inside]
        unlabeled = tuple(choose(f"domain of {manifest.dataset}", d, manifest.domains) for d in unlabeled_domains)
        for seed in range(seeds):
            chosen = Labels(parse_budget(labels), seed, tuple(d for d in unlabeled if d in sources))
            part = "test" if inside or protocol == "paper" else "all"
            rules: Protocol = "paper" if protocol == "paper" else "strict"
            split = make_split(manifest, sources, target, chosen, target_part=part, protocol=rules)
            found.append(LabelSet.of(split, manifest, labels, seed))
    return found
