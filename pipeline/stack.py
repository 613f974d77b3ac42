"""What a stack of runs reads: splits, labels, and normalised features of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heads.methods import METHODS
from heads.network import Labeled, Unlabeled
from pipeline.bank import FeatureBank, Standardiser
from pipeline.errors import UsageError
from pipeline.projection import CompactBank
from pipeline.splits import Labels, make_split
from pipeline.types import Manifest, RunSpec, Split, parse_budget


def run_split(spec: RunSpec, manifest: Manifest, bank: FeatureBank | CompactBank) -> Split:
    """The split of a run; a method that is given all labels has every source training clip labeled.

    Raises:
        UsageError: the run selects or stops by validation clips, and there are none.
    """
    labels = Labels(
        parse_budget(spec.budget), spec.split_seed, spec.unlabeled_domains, spec.labeled_ids, spec.folds, spec.fold
    )
    usable = bank.usable(manifest)
    split = make_split(manifest, spec.sources, spec.target, labels, usable, spec.target_part, spec.protocol)
    recipe = METHODS.get(spec.method)  # none for methods that are fitted at once
    stops = recipe is not None and spec.patience > 0
    needs = "selection 'source-val'" if spec.selection == "source-val" else "early stopping" if stops else ""
    if needs and not split.val:
        raise UsageError(
            f"{needs} needs validation clips, and the sources {', '.join(spec.sources)} have neither a val nor a test "
            "part; use --selection last without --patience"
        )
    if recipe is None or not recipe.all_labels:
        return split
    return replace(split, labeled=tuple(sorted((*split.labeled, *split.unlabeled))), unlabeled=())


def check_clips(spec: RunSpec, manifest: Manifest) -> None:
    """Check that a run was trained on the clips, labels and splits that a data set has now.

    Raises:
        UsageError: it was not.
    """
    if spec.manifest_digest != manifest.digest:
        raise UsageError(
            f"run {spec.run_id} was trained on other clips, labels or splits than {manifest.dataset} has now; "
            "train it again, or give the data set it was trained on"
        )


@dataclass(frozen=True)
class Clips:
    """A padded set of clips per run."""

    rows: Tensor  # (runs, clips) int64, positions in the manifest
    mask: Tensor  # (runs, clips) bool, False where padded
    labels: Tensor  # (runs, clips) int64


def _clean_view(bank: FeatureBank | CompactBank) -> int:
    found = bank.view_positions("clean")
    if not found:
        raise UsageError(
            f"the features have no clean view, only {', '.join(bank.views)}; evaluation needs one: extract it, or "
            "import features with --views clean0,..."
        )
    return found[0]


class StackData:
    """The data of a stack of runs, as each run may see them.

    Args:
        specs: runs with the same modalities.
        manifest: the data set.
        bank: its features on the training device.
    """

    def __init__(self, specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank | CompactBank) -> None:
        self.specs, self.manifest, self.bank = specs, manifest, bank
        self.device = next(iter(bank.features.values())).device
        self.splits = [run_split(spec, manifest, bank) for spec in specs]
        self.labels = torch.tensor(manifest.label_indices(), device=self.device)
        self.domains = self._domain_positions()
        self.clean = _clean_view(bank)
        # Other people's features have one view of a clip; it stands for the augmented ones.
        self.weak = bank.view_positions("weak") or [self.clean]
        self.strong = bank.view_positions("strong") or self.weak
        self.sets, self.standardise = None, None
        if isinstance(bank, CompactBank):
            self.sets = torch.tensor([bank.sets.index(s.sources) for s in specs], device=self.device)[:, None]
        else:
            self.standardise = Standardiser(bank, [sorted((*s.labeled, *s.unlabeled)) for s in self.splits])

    def _domain_positions(self) -> Tensor:
        """Position of every domain among each run's sources, ``(runs, domains)``; -1 for others."""
        table = torch.full((len(self.specs), len(self.manifest.domains)), -1)
        for run, spec in enumerate(self.specs):
            for position, name in enumerate(spec.sources):
                table[run, self.manifest.domains.index(name)] = position
        return table.to(self.device)[:, torch.tensor(self.manifest.domain_indices(), device=self.device)]

    def take(self, rows: Tensor, views: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Normalised features and presence; clips and positions on the view axis are ``(runs, batch)``."""
        x, present = {}, {}
        for modality, features in self.bank.features.items():
            present[modality] = self.bank.present[modality][rows]
            if self.standardise is None:
                x[modality] = features[self.sets, rows, views].float()
            else:
                x[modality] = self.standardise(modality, features[rows, views], present[modality])
        return x, present

    def labeled(self, clips: Tensor, views: Tensor) -> Labeled:
        """A labeled batch; ``clips`` and numbers of weak ``views`` are ``(runs, batch)``."""
        x, present = self.take(clips, torch.tensor(self.weak, device=self.device)[views])
        return Labeled(x, present, self.labels[clips], self.domains.gather(1, clips))

    def unlabeled(self, clips: Tensor, views: Tensor) -> Unlabeled:
        """An unlabeled batch: weak view i and strong view i of the same clips."""
        weak, present = self.take(clips, torch.tensor(self.weak, device=self.device)[views])
        strong, _ = self.take(clips, torch.tensor(self.strong, device=self.device)[views])
        return Unlabeled(weak, strong, present, self.domains.gather(1, clips))

    def padded(self, parts: Sequence[Sequence[int]], multiple: int = 1) -> Clips:
        """Sets of clips of different sizes as one tensor, its length a multiple of ``multiple``."""
        longest = -(-max(len(part) for part in parts) // multiple) * multiple
        rows = torch.zeros(len(parts), longest, dtype=torch.int64)
        mask = torch.zeros(len(parts), longest, dtype=torch.bool)
        for run, part in enumerate(parts):
            rows[run, : len(part)] = torch.tensor(part, dtype=torch.int64)
            mask[run, : len(part)] = True
        rows, mask = rows.to(self.device), mask.to(self.device)
        return Clips(rows, mask, self.labels[rows])
