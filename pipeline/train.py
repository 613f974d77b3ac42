"""The training loop: a stack of resolved run specs -> results. One run is a stack of one."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.losses import add_up
from heads.method import Method
from heads.methods import METHODS
from heads.mixing import SCORE_ROWS
from heads.network import FUSED
from heads.optimiser import StackedOptimiser
from heads.randomness import RunStreams
from pipeline.bank import FeatureBank, Sampler
from pipeline.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.environment import environment
from pipeline.errors import UsageError
from pipeline.evaluate import (
    Evaluation,
    accuracy,
    class_mean_accuracy,
    confusion_matrix,
    pseudo_label_quality,
    quality_per_class,
    quality_per_domain,
)
from pipeline.hparams import head_shape, rate, stacked_hparams
from pipeline.projection import CompactBank
from pipeline.select import picks_latest, selected
from pipeline.stack import Clips, StackData
from pipeline.types import Manifest, RunResult, RunSpec, Split
from pipeline.workers import Advance

EVALUATION_ROWS = 512  # clips per forward pass of an evaluation
CHECKPOINT_SECONDS = 20.0  # least time between two checkpoints of a stack


class StackTrainer:
    """A stack of runs in training.

    Args:
        specs: runs of one shape, same method, steps and batch sizes.
        manifest: the data set.
        bank: its features on the training device.
        fold_curves: for the selection rule label-honest, per run id the mean accuracy of its folds at every evaluation.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        manifest: Manifest,
        bank: FeatureBank | CompactBank,
        fold_curves: Mapping[str, Sequence[float | None]] = MappingProxyType({}),
    ) -> None:
        self.fold_curves = fold_curves
        self.specs, self.data = specs, StackData(specs, manifest, bank)
        first, splits = specs[0], self.data.splits
        self.device = self.data.device
        seeds = [s.init_seed for s in specs]
        self.method: Method = METHODS[first.method].build(head_shape(first, bank.dims), stacked_hparams(specs), seeds)
        self.method.to(self.device)
        self.streams = RunStreams(seeds, self.device)
        kind = str(first.hparams["optimizer"])
        self.optimiser = StackedOptimiser(kind, list(self.method.parameters()), [rate(s) for s in specs])
        views = len(self.data.weak)
        self.sampler = Sampler("labeled", [s.labeled for s in splits], seeds, first.batch_labeled, views)
        self.unlabeled_sampler = self._unlabeled_sampler(seeds)
        self.epoch_steps = [self._epoch_steps(split) for split in splits]
        confusion = torch.zeros(len(specs), *[len(manifest.classes)] * 2, dtype=torch.int64)
        self.progress = Progress(0, [{} for _ in specs], [False] * len(specs), confusion)
        # Copies of the selected evaluation's state, where that need not be the state at the end.
        self.kept: dict[str, Tensor] = {}
        if first.patience or any(s.selection != "last" for s in specs):
            self.kept = {name: value.clone() for name, value in self.method.state_dict().items()}

    def _epoch_steps(self, split: Split) -> int:
        """Steps of an epoch: one pass over the longer of the lists that are used (SSMDG's release), at least one."""
        first = self.specs[0]
        labeled = len(split.labeled) // first.batch_labeled
        unlabeled = len(split.unlabeled) // first.batch_unlabeled if self.method.uses_unlabeled else 0
        return max(labeled, unlabeled, 1)

    def _unlabeled_sampler(self, seeds: Sequence[int]) -> Sampler | None:
        if not self.method.uses_unlabeled:
            return None
        pools = [s.unlabeled for s in self.data.splits]
        if not all(pools):
            raise UsageError(
                f"method {self.specs[0].method!r} needs unlabeled clips, and with --labels {self.specs[0].budget} "
                "every training clip is labeled; use fewer labels or the method erm"
            )
        return Sampler("unlabeled", pools, seeds, self.specs[0].batch_unlabeled, len(self.data.strong))

    def train(self, advance: Advance, checkpoint: Path | None = None) -> list[RunResult]:
        """Run all steps and return one result per spec.

        Args:
            advance: called with numbers of steps done.
            checkpoint: file that the state is saved to and taken up from.
        """
        start = time.perf_counter()
        steps = self.specs[0].steps
        if checkpoint is not None:
            restored = load_checkpoint(checkpoint, self.method, self.optimiser, self.kept)
            if restored is not None:
                self.progress = restored
                advance(restored.step)
        saved = time.perf_counter()
        evaluation = self._evaluation_sets()
        while self.progress.step < steps and not all(self.progress.stopped):
            count = min(self.specs[0].eval_every, steps - self.progress.step)
            means = self._train_block(self.progress.step, count, advance)
            self.progress = replace(self.progress, step=self.progress.step + count)
            found = self._evaluate(evaluation)
            found.values.update(means)
            self._record(found)
            if checkpoint and self.progress.step < steps and time.perf_counter() - saved > CHECKPOINT_SECONDS:
                save_checkpoint(checkpoint, self.method, self.optimiser, self.kept, self.progress)
                saved = time.perf_counter()
        if self.progress.step < steps:
            advance(steps - self.progress.step)  # all runs have stopped early
        seconds = (time.perf_counter() - start) / len(self.specs)
        return [self._result(run, seconds) for run in range(len(self.specs))]

    def _record(self, evaluation: Evaluation) -> None:
        """Append an evaluation to the curves of the runs that have not stopped, and keep what they select."""
        confusion = evaluation.confusion.cpu()
        for run, (spec, values) in enumerate(zip(self.specs, evaluation.rows(), strict=True)):
            if self.progress.stopped[run]:
                continue
            curves = self.progress.curves[run]
            curves.setdefault("step", []).append(self.progress.step)
            for name, value in values.items():
                if self.data.splits[run].val or not name.startswith("val"):
                    curves.setdefault(name, []).append(value if math.isfinite(value) else None)
            if spec.run_id in self.fold_curves:
                number = len(curves["step"]) - 1
                of_folds = self.fold_curves[spec.run_id]  # empty where every fold diverged
                curves.setdefault("folds/fused", []).append(of_folds[number] if number < len(of_folds) else None)
            if picks_latest(curves, spec.selection):
                self.progress.confusion[run] = confusion[run]
                for name, state in self.method.state_dict().items() if self.kept else ():
                    self.kept[name][run] = state[run]
            self.progress.stopped[run] = spec.patience > 0 and _evaluations_since_best(curves) >= spec.patience

    def weights(self, run: int) -> dict[str, Tensor]:
        """Parameters and buffers of one run at its selected evaluation, without the ``runs`` axis, on the CPU."""
        state = self.kept or self.method.state_dict()
        return {name: value[run].detach().cpu().contiguous() for name, value in state.items()}

    def _train_block(self, first: int, count: int, advance: Advance) -> dict[str, Tensor]:
        """Train from one evaluation to the next; returns the mean of every loss term, ``(runs,)``."""
        labeled = self._on_device(self.sampler.block(first, count))
        unlabeled = self._on_device(self.unlabeled_sampler.block(first, count)) if self.unlabeled_sampler else None
        sums: dict[str, Tensor] = {}
        for k in range(count):
            batch = self.data.labeled(labeled[0][k], labeled[1][k])
            extra = self.data.unlabeled(unlabeled[0][k], unlabeled[1][k]) if unlabeled else None
            half = self.specs[0].precision == "bfloat16"
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                terms = self.method.losses(batch, extra, self.streams, first + k)
            self.method.combine(self.method.objectives(terms))
            self.optimiser.step(first + k)
            for name, value in terms.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            self._end_epochs(first + k + 1)
            advance(1)
        return {f"loss/{name}": value / count for name, value in sums.items()}

    @cached_property
    def _scored(self) -> Clips:
        """The labeled clips, in whole parts of ``SCORE_ROWS``."""
        return self.data.padded([split.labeled for split in self.data.splits], SCORE_ROWS)

    def _end_epochs(self, done: int) -> None:
        """Score the modalities on the labeled set for the runs whose epoch has just ended (B-MM)."""
        mixer = self.method.mixer
        ended = [done % steps == 0 for steps in self.epoch_steps]
        if mixer is None or not mixer.needs_scores or not any(ended):
            return
        clips = self._scored
        scores, counts = [], []
        for part in range(0, clips.rows.shape[1], SCORE_ROWS):
            rows = clips.rows[:, part : part + SCORE_ROWS]
            x, present = self.data.take(rows, torch.full_like(rows, self.data.clean))
            mask = clips.mask[:, part : part + SCORE_ROWS]
            score, number = self.method.modality_scores(x, present, self.data.labels[rows], mask)
            scores.append(score)
            counts.append(number)
        mixer.end_epoch(add_up(scores), add_up(counts), torch.tensor(ended, device=self.device))

    def _on_device(self, block: tuple[NDArray[np.int64], NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(block[0]).to(self.device), torch.from_numpy(block[1]).to(self.device)

    def _evaluation_sets(self) -> dict[str, Clips]:
        """Padded clips of target, validation and unlabeled pool."""
        members = {"target": [s.test for s in self.data.splits]}
        if any(s.val for s in self.data.splits):
            members["val"] = [s.val for s in self.data.splits]
        if self.method.uses_unlabeled:
            members["pseudo"] = [s.unlabeled for s in self.data.splits]
        return {name: self.data.padded(parts) for name, parts in members.items()}

    def _predict(self, rows: Tensor, view: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits of every head and presence for clips ``(runs, clips)`` in one view."""
        logits: dict[str, list[Tensor]] = {}
        present: dict[str, list[Tensor]] = {}
        for part in torch.split(rows, EVALUATION_ROWS, dim=1):
            x, here = self.data.take(part, torch.full_like(part, view))
            for name, value in self.method.predict(x, here).items():
                logits.setdefault(name, []).append(value)
            for name, value in here.items():
                present.setdefault(name, []).append(value)
        return {k: torch.cat(v, 1) for k, v in logits.items()}, {k: torch.cat(v, 1) for k, v in present.items()}

    def _evaluate(self, sets: Mapping[str, Clips]) -> Evaluation:
        """Accuracies on the clean view of target and validation, and pseudo-label quality on the weak view."""
        values: dict[str, Tensor] = {}
        target = sets["target"]
        predicted = {name: self._accuracies(name, sets[name], values) for name in ("target", "val") if name in sets}
        classes = len(self.data.manifest.classes)
        confusion = confusion_matrix(predicted["target"], target.labels, target.mask, classes)
        evaluation = Evaluation(confusion, values)
        if "pseudo" in sets:
            self._pseudo_label_quality(sets["pseudo"], evaluation)
        return evaluation

    def _accuracies(self, name: str, clips: Clips, values: dict[str, Tensor]) -> Tensor:
        """Add the accuracies of every head to ``values``; returns the fused prediction ``(runs, clips)``."""
        logits, present = self._predict(clips.rows, self.data.clean)
        for head, value in logits.items():
            mask = clips.mask & present[head] if head in present else clips.mask
            values[f"{name}/{head}"] = accuracy(value.argmax(-1), clips.labels, mask)
        predicted = logits[FUSED].argmax(-1)
        classes = len(self.data.manifest.classes)
        values[f"{name}_class_mean/fused"] = class_mean_accuracy(predicted, clips.labels, clips.mask, classes)
        return predicted

    def _pseudo_label_quality(self, clips: Clips, found: Evaluation) -> None:
        """Add what the whole unlabeled pool says: hidden labels are used here and nowhere in training."""
        logits, present = self._predict(clips.rows, self.data.weak[0])
        pseudo = self.method.pseudo_labels(logits, present)
        if pseudo is None:
            return
        classes, sources = self.data.manifest.classes, [spec.sources for spec in self.specs]
        domain = self.data.domains.gather(1, clips.rows)
        for name, accepted in pseudo.masks.items():
            inputs = (pseudo.labels, accepted, clips.labels, clips.mask)
            qualities = (
                pseudo_label_quality(*inputs),
                quality_per_class(*inputs, len(classes)),
                quality_per_domain(*inputs, domain, len(sources[0])),
            )
            for position, kind in enumerate(("coverage", "precision")):
                total, per_class, per_domain = (quality[position] for quality in qualities)
                found.values[f"pseudo/{name}/{kind}"] = total
                of_class = [f"pseudo/{name}/class/{label}/{kind}" for label in classes]
                found.grouped.append(([of_class] * len(sources), per_class))
                of_domain = [[f"pseudo/{name}/domain/{source}/{kind}" for source in own] for own in sources]
                found.grouped.append((of_domain, per_domain))
        for modality, here in present.items():
            own, mask = logits[modality].argmax(-1), clips.mask & here
            found.values[f"pseudo/agree/{modality}"] = accuracy(own, pseudo.labels, mask & pseudo.accepted)
            found.values[f"pseudo/right/{modality}"] = accuracy(own, clips.labels, mask)

    def _result(self, run: int, seconds: float) -> RunResult:
        spec, split, curves = self.specs[run], self.data.splits[run], self.progress.curves[run]
        losses = [v for name, series in curves.items() if name.startswith("loss/") for v in series]
        of_folds = curves.get("folds/fused", [0.0])
        lost = all(value is None for value in of_folds)
        diverged = lost or any(v is None for v in losses)
        metrics = {} if diverged else selected(curves, spec.selection)
        return RunResult(
            spec=spec,
            metrics=metrics,
            curves=curves,
            selection=spec.selection,
            environment=environment(self.device, len(self.specs)),
            seconds=seconds,
            status="diverged" if diverged else "finished",
            notes=(*split.notes, *(("every fold diverged, so no evaluation can be selected",) if lost else ())),
            sizes={part: len(getattr(split, part)) for part in ("labeled", "unlabeled", "val", "test")},
            confusion=() if diverged else tuple(tuple(row) for row in self.progress.confusion[run].tolist()),
        )


def _evaluations_since_best(curves: Mapping[str, Sequence[float | None]]) -> int:
    """Evaluations since the validation accuracy was last higher than ever before."""
    values = [-1.0 if value is None else value for value in curves["val/fused"]]
    return len(values) - 1 - values.index(max(values))
