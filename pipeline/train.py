"""The training loop: a stack of resolved run specs -> results. One run is a stack of one."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.adapters import ADAPTERS
from heads.method import SHARED_HPARAMS, Method
from heads.methods import METHODS
from heads.network import FUSED, HeadShape, Labeled, Unlabeled
from heads.optimiser import StackedAdamW
from heads.randomness import RunStreams
from pipeline.bank import FeatureBank, Sampler, Standardiser
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import UsageError, choose
from pipeline.evaluate import accuracy, class_mean_accuracy, pseudo_label_quality
from pipeline.select import selected
from pipeline.splits import make_split
from pipeline.types import Manifest, RunResult, RunSpec, parse_budget
from pipeline.workers import Advance

Curves = dict[str, list[list[float | None]]]  # name -> evaluations -> runs
EVALUATION_ROWS = 512  # clips per forward pass of an evaluation
CHECKPOINT_SECONDS = 20.0  # least time between two checkpoints of a stack
STRUCTURE = ("adapter", "fused_hidden", "translator_hidden")  # hyperparameters that decide shapes


def resolve_hparams(
    method: str, dims: Sequence[tuple[str, int]], overrides: Mapping[str, float | str]
) -> dict[str, float | str]:
    """Every hyperparameter of a run with its value.

    Hidden sizes default to the paper's 512 and 1028, or to the summed and the largest feature dim where those are
    smaller.

    Raises:
        UsageError: unknown method, hyperparameter or adapter, or a value that is not a number.
    """
    recipe = METHODS[choose("method", method, METHODS)]
    sizes = [dim for _, dim in dims]
    known: dict[str, float | str] = {
        "adapter": "residual",
        "fused_hidden": min(512, sum(sizes)),
        "translator_hidden": min(1028, max(sizes)),
        **SHARED_HPARAMS,
        **recipe.hparams,
    }
    for name, value in overrides.items():
        choose(f"hyperparameter of {method}", name, known)
        if name == "adapter":
            known[name] = choose("adapter", str(value), ADAPTERS)
        elif isinstance(value, str) or not math.isfinite(value):
            raise UsageError(f"hyperparameter {name} is {value!r}; it must be a finite number")
        else:
            known[name] = int(value) if name in STRUCTURE else float(value)
    return known


def head_shape(spec: RunSpec, dims: Sequence[tuple[str, int]]) -> HeadShape:
    """The shape that runs of a stack share."""
    return HeadShape(
        dims=tuple(dims),
        classes=len(spec.classes),
        domains=len(spec.sources),
        adapter=str(spec.hparams["adapter"]),
        fused_hidden=int(spec.hparams["fused_hidden"]),
        translator_hidden=int(spec.hparams["translator_hidden"]),
    )


@dataclass(frozen=True)
class _Clips:
    """A padded set of clips per run."""

    rows: Tensor  # (runs, clips) int64, positions in the manifest
    mask: Tensor  # (runs, clips) bool, False where padded
    labels: Tensor  # (runs, clips) int64


class StackTrainer:
    """A stack of runs in training.

    Args:
        specs: runs of one shape, same method, steps and batch sizes.
        manifest: the data set.
        bank: its features on the training device.
    """

    def __init__(self, specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank) -> None:
        self.specs, self.manifest, self.bank = specs, manifest, bank
        first = specs[0]
        self.device = next(iter(bank.features.values())).device
        usable = bank.usable(manifest)
        self.splits = [
            make_split(manifest, s.sources, s.target, parse_budget(s.budget), s.split_seed, usable, s.target_part)
            for s in specs
        ]
        for spec, split in zip(specs, self.splits, strict=True):
            if spec.selection == "source-val" and not split.val:
                raise UsageError(
                    f"selection 'source-val' needs validation clips, and the sources {', '.join(spec.sources)} have "
                    "neither a val nor a test part; use --selection last"
                )
        self.labels = torch.tensor(manifest.label_indices(), device=self.device)
        self.domains = self._domain_positions()
        seeds = [s.init_seed for s in specs]
        names = [k for k in first.hparams if k not in STRUCTURE]
        hparams = {k: torch.tensor([float(s.hparams[k]) for s in specs]) for k in names}
        recipe = METHODS[first.method]
        self.method: Method = recipe.build(head_shape(first, bank.dims), hparams, seeds).to(self.device)
        self.streams = RunStreams(seeds, self.device)
        self.standardise = Standardiser(bank, [(*s.labeled, *s.unlabeled) for s in self.splits])
        self.optimiser = StackedAdamW(
            list(self.method.parameters()),
            [float(s.hparams["learning_rate"]) for s in specs],
            [float(s.hparams["weight_decay"]) for s in specs],
        )
        self.weak, self.strong = bank.view_positions("weak"), bank.view_positions("strong")
        self.clean = bank.view_positions("clean")[0]
        self.sampler = Sampler("labeled", [s.labeled for s in self.splits], seeds, first.batch_labeled, len(self.weak))
        self.unlabeled_sampler = self._unlabeled_sampler(seeds)

    def _unlabeled_sampler(self, seeds: Sequence[int]) -> Sampler | None:
        if not self.method.uses_unlabeled:
            return None
        pools = [s.unlabeled for s in self.splits]
        if not all(pools):
            raise UsageError(
                f"method {self.specs[0].method!r} needs unlabeled clips, and with --labels {self.specs[0].budget} "
                "every training clip is labeled; use fewer labels or the method erm"
            )
        return Sampler("unlabeled", pools, seeds, self.specs[0].batch_unlabeled, len(self.strong))

    def _domain_positions(self) -> Tensor:
        """Position of every domain among each run's sources, ``(runs, domains)``; -1 for others."""
        table = torch.full((len(self.specs), len(self.manifest.domains)), -1)
        for run, spec in enumerate(self.specs):
            for position, name in enumerate(spec.sources):
                table[run, self.manifest.domains.index(name)] = position
        return table.to(self.device)[:, torch.tensor(self.manifest.domain_indices(), device=self.device)]

    def _take(self, rows: Tensor, views: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Normalised features and presence; clips and positions on the view axis are ``(runs, batch)``."""
        x, present = {}, {}
        for modality, features in self.bank.features.items():
            present[modality] = self.bank.present[modality][rows]
            x[modality] = self.standardise(modality, features[rows, views], present[modality])
        return x, present

    def _labeled(self, clips: Tensor, views: Tensor) -> Labeled:
        x, present = self._take(clips, torch.tensor(self.weak, device=self.device)[views])
        return Labeled(x, present, self.labels[clips], self.domains.gather(1, clips))

    def _unlabeled(self, clips: Tensor, views: Tensor) -> Unlabeled:
        weak, present = self._take(clips, torch.tensor(self.weak, device=self.device)[views])
        strong, _ = self._take(clips, torch.tensor(self.strong, device=self.device)[views])
        return Unlabeled(weak, strong, present, self.domains.gather(1, clips))

    def train(self, advance: Advance, checkpoint: Path | None = None) -> list[RunResult]:
        """Run all steps and return one result per spec.

        Args:
            advance: called with numbers of steps done.
            checkpoint: file that the state is saved to and taken up from.
        """
        start = time.perf_counter()
        first = self.specs[0]
        done = 0
        curves: Curves = {}
        restored = load_checkpoint(checkpoint, self.method, self.optimiser) if checkpoint else None
        if restored is not None:
            done, curves = restored
            advance(done)
        saved = time.perf_counter()
        evaluation = self._evaluation_sets()
        while done < first.steps:
            count = min(first.eval_every, first.steps - done)
            means = self._train_block(done, count, advance)
            done += count
            values = {**means, **self._evaluate(evaluation)}
            curves.setdefault("step", []).append([done] * len(self.specs))
            for name, value in values.items():
                curves.setdefault(name, []).append([v if math.isfinite(v) else None for v in value.tolist()])
            if checkpoint and done < first.steps and time.perf_counter() - saved > CHECKPOINT_SECONDS:
                save_checkpoint(checkpoint, self.method, self.optimiser, done, curves)
                saved = time.perf_counter()
        seconds = (time.perf_counter() - start) / len(self.specs)
        return [self._result(run, curves, seconds) for run in range(len(self.specs))]

    def _train_block(self, first: int, count: int, advance: Advance) -> dict[str, Tensor]:
        """Train from one evaluation to the next; returns the mean of every loss term, ``(runs,)``."""
        labeled = self._on_device(self.sampler.block(first, count))
        unlabeled = self._on_device(self.unlabeled_sampler.block(first, count)) if self.unlabeled_sampler else None
        sums: dict[str, Tensor] = {}
        for k in range(count):
            batch = self._labeled(labeled[0][k], labeled[1][k])
            extra = self._unlabeled(unlabeled[0][k], unlabeled[1][k]) if unlabeled else None
            terms = self.method.losses(batch, extra, self.streams, first + k)
            self.method.combine(self.method.objectives(terms))
            self.optimiser.step()
            for name, value in terms.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            advance(1)
        return {f"loss/{name}": value / count for name, value in sums.items()}

    def _on_device(self, block: tuple[NDArray[np.int64], NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(block[0]).to(self.device), torch.from_numpy(block[1]).to(self.device)

    def _evaluation_sets(self) -> dict[str, _Clips]:
        """Padded clips of target, validation and unlabeled pool."""
        members = {"target": [s.test for s in self.splits]}
        if any(s.val for s in self.splits):
            members["val"] = [s.val for s in self.splits]
        if self.method.uses_unlabeled:
            members["pseudo"] = [s.unlabeled for s in self.splits]
        return {name: self._padded(parts) for name, parts in members.items()}

    def _padded(self, parts: Sequence[Sequence[int]]) -> _Clips:
        longest = max(len(part) for part in parts)
        rows = torch.zeros(len(parts), longest, dtype=torch.int64)
        mask = torch.zeros(len(parts), longest, dtype=torch.bool)
        for run, part in enumerate(parts):
            rows[run, : len(part)] = torch.tensor(part, dtype=torch.int64)
            mask[run, : len(part)] = True
        rows, mask = rows.to(self.device), mask.to(self.device)
        return _Clips(rows, mask, self.labels[rows])

    def _predict(self, rows: Tensor, view: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits of every head and presence for clips ``(runs, clips)`` in one view."""
        logits: dict[str, list[Tensor]] = {}
        present: dict[str, list[Tensor]] = {}
        for part in torch.split(rows, EVALUATION_ROWS, dim=1):
            x, here = self._take(part, torch.full_like(part, view))
            for name, value in self.method.predict(x, here).items():
                logits.setdefault(name, []).append(value)
            for name, value in here.items():
                present.setdefault(name, []).append(value)
        return {k: torch.cat(v, 1) for k, v in logits.items()}, {k: torch.cat(v, 1) for k, v in present.items()}

    def _evaluate(self, sets: Mapping[str, _Clips]) -> dict[str, Tensor]:
        """Accuracies on the clean view of target and validation, and pseudo-label quality on the weak view."""
        values: dict[str, Tensor] = {}
        for name in ("target", "val"):
            if name not in sets:
                continue
            clips = sets[name]
            logits, present = self._predict(clips.rows, self.clean)
            for head, value in logits.items():
                mask = clips.mask & present[head] if head in present else clips.mask
                values[f"{name}/{head}"] = accuracy(value.argmax(-1), clips.labels, mask)
            predicted = logits[FUSED].argmax(-1)
            classes = len(self.manifest.classes)
            values[f"{name}_class_mean/fused"] = class_mean_accuracy(predicted, clips.labels, clips.mask, classes)
        if "pseudo" in sets:
            values |= self._pseudo_label_quality(sets["pseudo"])
        return values

    def _pseudo_label_quality(self, clips: _Clips) -> dict[str, Tensor]:
        """Coverage and precision over the whole unlabeled pool: hidden labels are used here and nowhere in training."""
        logits, present = self._predict(clips.rows, self.weak[0])
        pseudo = self.method.pseudo_labels(logits, present)
        values: dict[str, Tensor] = {}
        if pseudo is None:
            return values
        for name, accepted in pseudo.masks.items():
            coverage, precision = pseudo_label_quality(pseudo.labels, accepted, clips.labels, clips.mask)
            values[f"pseudo/{name}/coverage"], values[f"pseudo/{name}/precision"] = coverage, precision
        return values

    def _result(self, run: int, stacked: Curves, seconds: float) -> RunResult:
        spec, split = self.specs[run], self.splits[run]
        curves = {
            name: [row[run] for row in rows]
            for name, rows in stacked.items()
            if split.val or not name.startswith("val")
        }
        losses = [v for name, series in curves.items() if name.startswith("loss/") for v in series]
        diverged = any(v is None for v in losses)
        metrics = {} if diverged else selected(curves, spec.selection)
        return RunResult(
            spec=spec,
            metrics=metrics,
            curves=curves,
            selection=spec.selection,
            environment=environment(self.device, len(self.specs)),
            seconds=seconds,
            status="diverged" if diverged else "finished",
            notes=split.notes,
            sizes={part: len(getattr(split, part)) for part in ("labeled", "unlabeled", "val", "test")},
        )


def environment(device: torch.device, stack: int) -> dict[str, Any]:
    """What a number may depend on beside its spec."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "pipe": version("pipe-features"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "stack": stack,
    }
