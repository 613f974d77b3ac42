"""Missing modalities at test time: every subset of modalities, every filler, on trained runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

from cache.layout import write_atomically
from heads.fillers import FILLERS, FillerState, predict_missing
from heads.layers import initialise, unit
from heads.method import Method
from heads.methods import METHODS
from heads.optimiser import Rate, StackedOptimiser
from heads.randomness import RunStreams
from heads.translators import build_translators, pair_name
from pipeline.bank import FeatureBank, Sampler
from pipeline.compact import compact_bank, fitted_projections
from pipeline.environment import environment
from pipeline.errors import UsageError, choose
from pipeline.evaluate import accuracy, class_mean_accuracy
from pipeline.extraction import ExtractSettings
from pipeline.hparams import head_shape, stacked_hparams
from pipeline.projection import CompactBank
from pipeline.records import ResultStore
from pipeline.running import STACK_BYTES_CPU, load_bank, stack_dims, stack_runs
from pipeline.stack import StackData, check_clips
from pipeline.types import Manifest, RunSpec
from pipeline.weights import load_weights
from pipeline.workers import Advance

ROWS = 512  # clips per forward pass


@dataclass(frozen=True)
class Finetuning:
    """Training of the translators alone, after everything else (SimMMDG's authors, arXiv 2310.19795).

    Minimises the mean distance of a translation to the target modality's embedding, neither of them normalised, over
    all source training clips that have both; no label is used and no other parameter moves.
    """

    steps: int
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    dropout: float = 0.5


@dataclass(frozen=True)
class MissingRow:
    """Accuracy of one run on the target clips, had they only some modalities."""

    kept: tuple[str, ...]  # modalities that are not taken away, in fusion order
    filler: str  # what stands in for the others, a key of ``FILLERS``
    accuracy: float | None  # 0..1, over ``clips``
    class_mean: float | None  # 0..1, mean over the classes that occur
    clips: int  # target clips that have at least one of the kept modalities


def kept_subsets(modalities: Sequence[str], missing: str) -> list[tuple[str, ...]]:
    """Subsets of modalities to evaluate, the full one first.

    Args:
        modalities: of the runs, in fusion order.
        missing: ``all`` for every non-empty subset, or names of modalities that are taken away, together.

    Raises:
        UsageError: an unknown modality, or all of them.
    """
    full = tuple(modalities)
    if missing == "all":
        return [kept for size in range(len(full), 0, -1) for kept in combinations(full, size)]
    gone = {choose("modality of these runs", name.strip(), full) for name in missing.split(",") if name.strip()}
    kept = tuple(name for name in full if name not in gone)
    if not kept:
        raise UsageError(f"missing {missing!r}: that is every modality of these runs ({', '.join(full)}); leave one")
    return [full, kept] if gone else [full]


class MissingEvaluation:
    """A stack of trained runs of one shape, evaluated with missing modalities.

    Args:
        specs: the runs.
        manifest: their data set.
        bank: its features.
        weights: state of the method, every tensor ``(runs, ...)``.
        finetuning: how to fine-tune translators; ``None`` leaves the filler out.
        advance: called with numbers of fine-tuning steps done.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        manifest: Manifest,
        bank: FeatureBank | CompactBank,
        weights: Mapping[str, Tensor],
        finetuning: Finetuning | None = None,
        advance: Advance = lambda amount: None,
    ) -> None:
        self.data = StackData(specs, manifest, bank)
        self.seeds = [s.init_seed for s in specs]
        self.shape = head_shape(specs[0], bank.dims)
        self.method: Method = METHODS[specs[0].method].build(self.shape, stacked_hparams(specs), self.seeds)
        self.method.load_state_dict(weights)
        self.method.to(self.data.device).requires_grad_(False)
        mean, length = self._statistics()
        translators = getattr(self.method, "translators", nn.ModuleDict())
        finetuned = self._finetuned(finetuning, advance) if finetuning else nn.ModuleDict()
        self.state = FillerState(mean, length, self._prototypes(), translators, finetuned)

    def _pools(self) -> list[list[int]]:
        return [sorted((*split.labeled, *split.unlabeled)) for split in self.data.splits]

    @torch.no_grad()
    def _embeddings(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings of the clean view and presence of clips ``(runs, clips)``."""
        x, present = self.data.take(rows, torch.full_like(rows, self.data.clean))
        return self.method.network.embed(x, present), present

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean embedding and mean length of an embedding per modality, over the source training clips."""
        clips = self.data.padded(self._pools())
        sums: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for rows, mask in zip(torch.split(clips.rows, ROWS, 1), torch.split(clips.mask, ROWS, 1), strict=True):
            embeddings, present = self._embeddings(rows)
            for name, z in embeddings.items():
                here = (present[name] & mask)[..., None]
                values = z.double() * here
                sums[name] = sums.get(name, 0) + values.sum(1)
                lengths[name] = lengths.get(name, 0) + torch.linalg.vector_norm(values, dim=-1).sum(1)
                counts[name] = counts.get(name, 0) + here.sum(1)
        numbers = {name: count.clamp(min=1) for name, count in counts.items()}
        mean = {name: (total / numbers[name]).float() for name, total in sums.items()}
        return mean, {name: (total / numbers[name][:, 0]).float() for name, total in lengths.items()}

    def _prototypes(self) -> dict[str, Tensor]:
        """Unit class prototypes ``(runs, classes, dim)``: the method's own, or class means of the labeled clips."""
        own = getattr(self.method, "prototypes", None)
        if own is not None:
            return {m: unit((own.vectors(m) * (own.counts(m) > 0)[..., None]).sum(1)) for m in self.shape.modalities}
        clips = self.data.padded([split.labeled for split in self.data.splits])
        embeddings, present = self._embeddings(clips.rows)
        members = nn.functional.one_hot(clips.labels, self.shape.classes)
        found = {}
        for name, z in embeddings.items():
            of_class = (members * (present[name] & clips.mask)[..., None]).to(z.dtype)
            found[name] = unit(torch.bmm(of_class.transpose(1, 2), unit(z)))
        return found

    def _finetuned(self, settings: Finetuning, advance: Advance) -> nn.ModuleDict:
        """Translators of the stack, trained alone; they start from the method's own, if it has some."""
        network, runs = self.method.network, len(self.seeds)
        if len(network.modalities) < 2:
            return nn.ModuleDict()
        translators = build_translators(runs, network.embedding_dims, self.shape.translator_hidden)
        initialise(translators, self.seeds, "translators")
        translators.to(self.data.device)
        own = getattr(self.method, "translators", None)
        if own is not None:
            translators.load_state_dict(own.state_dict())
        parameters = list(translators.parameters())
        rates = [Rate(settings.learning_rate, settings.weight_decay)] * runs
        optimiser = StackedOptimiser("adamw", parameters, rates)
        sampler = Sampler("finetune", self._pools(), self.seeds, settings.batch, len(self.data.weak))
        streams = RunStreams(self.seeds, self.data.device)
        probability = torch.full((runs,), settings.dropout, device=self.data.device)
        for step in range(settings.steps):
            clips, views = (torch.from_numpy(part[0]).to(self.data.device) for part in sampler.block(step, 1))
            x, present = self.data.take(clips, torch.tensor(self.data.weak, device=self.data.device)[views])
            embeddings = network.embed(x, present)
            losses = []
            for source, target in ((a, b) for a in embeddings for b in embeddings if a != b):
                name = pair_name(source, target)
                translated = translators[name](embeddings[source], probability, streams, step, f"finetune/{name}")
                both = (present[source] & present[target]).to(translated.dtype)
                distance = (translated - embeddings[target]).square().sum(-1).clamp(min=1e-12).sqrt()
                losses.append((distance * both).sum(1) / both.sum(1).clamp(min=1))
            gradients = torch.autograd.grad(sum(losses[1:], losses[0]).sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step(step)
            advance(1)
        return translators.requires_grad_(False)

    def rows(self, kept_sets: Sequence[Sequence[str]], fillers: Sequence[str] | None = None) -> list[list[MissingRow]]:
        """Evaluate all subsets and fillers on the target clips; one list of rows per run.

        Args:
            kept_sets: modalities that are not taken away, per subset.
            fillers: names; ``None`` means all that the method has.
        """
        clips = self.data.padded([split.test for split in self.data.splits])
        found: list[list[MissingRow]] = [[] for _ in self.seeds]
        for kept in kept_sets:
            for filler in self.state.fillers() if fillers is None else fillers:
                predicted, usable = self._predict(clips.rows, kept, filler)
                mask = clips.mask & usable
                values = accuracy(predicted, clips.labels, mask).tolist()
                means = class_mean_accuracy(predicted, clips.labels, mask, self.shape.classes).tolist()
                counts = mask.sum(1).tolist()
                for run, rows in enumerate(found):
                    some = counts[run] > 0
                    rows.append(
                        MissingRow(
                            tuple(kept),
                            filler,
                            values[run] if some else None,
                            means[run] if some else None,
                            counts[run],
                        )
                    )
        return found

    def _predict(self, rows: Tensor, kept: Sequence[str], filler: str) -> tuple[Tensor, Tensor]:
        """Predicted classes, and which clips have at least one of the kept modalities; both ``(runs, clips)``."""
        predicted, usable = [], []
        for part in torch.split(rows, ROWS, 1):
            x, here = self.data.take(part, torch.full_like(part, self.data.clean))
            present = {m: value if m in kept else torch.zeros_like(value) for m, value in here.items()}
            probs = predict_missing(self.method.network, x, present, filler, self.state)
            predicted.append(probs.argmax(-1))
            usable.append(torch.stack([present[m] for m in kept]).any(0))
        return torch.cat(predicted, 1), torch.cat(usable, 1)


def write_missing(
    folder: Path, spec: RunSpec, rows: Sequence[MissingRow], finetuning: Finetuning | None, device: torch.device
) -> Path:
    """Write a run's rows as JSON, with what they depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1,
        "run_id": spec.run_id,
        "fillers": {row.filler: FILLERS[row.filler] for row in rows},
        "finetuning": asdict(finetuning) if finetuning else None,
        "rows": [asdict(row) for row in rows],
        "environment": environment(device, 1),
    }
    path = folder / f"{spec.run_id}.json"
    write_atomically(path, json.dumps(record, allow_nan=False, indent=1))
    return path


def read_missing(folder: Path, run_ids: Sequence[str]) -> dict[str, list[MissingRow]]:
    """Rows of the runs that were evaluated with missing modalities; those that cannot be read are passed over."""
    found: dict[str, list[MissingRow]] = {}
    for run_id in run_ids:
        try:
            plain = json.loads((folder / f"{run_id}.json").read_text(encoding="utf-8"))
            found[run_id] = [MissingRow(**{**row, "kept": tuple(row["kept"])}) for row in plain["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def evaluate_runs(
    specs: Sequence[RunSpec],
    manifest: Manifest,
    settings: ExtractSettings,
    cache: Path | str,
    results: Path,
    missing: str,
    fillers: Sequence[str],
    finetuning: Finetuning | None,
    on_start: Callable[[int], None],
    advance: Advance,
) -> dict[str, list[MissingRow]]:
    """Evaluate trained runs with missing modalities, in stacks, and write a record for each.

    Args:
        specs: runs with kept weights.
        manifest: their data set.
        settings: how the features were extracted; the modalities are taken from the runs.
        cache: root folder of all caches.
        results: folder of the runs; records go to its folder ``missing``.
        missing: see ``kept_subsets``.
        fillers: names; empty means all that a method has.
        finetuning: see ``Finetuning``; ``None`` for none.
        on_start: called once with the number of stacks' fine-tuning steps and evaluations.
        advance: called with numbers of them done.

    Returns:
        Rows per run id.
    """
    groups: dict[tuple[tuple[str, ...], str], list[RunSpec]] = {}
    for spec in specs:
        check_clips(spec, manifest)
        groups.setdefault((spec.modalities, spec.projection), []).append(spec)
    plan = []
    for (modalities, _), members in groups.items():
        kept_subsets(modalities, missing)  # refuses before anything is computed
        bank = load_bank(members, manifest, dataclasses.replace(settings, modalities=modalities), cache)
        projections = fitted_projections(members, manifest, bank, results / "projections")
        stacks = stack_runs(members, stack_dims(bank, projections), 1, STACK_BYTES_CPU)
        plan += [(stack.specs, bank, projections) for stack in stacks]
    on_start(len(plan) * (1 + (finetuning.steps if finetuning else 0)))
    store = ResultStore(results)
    found: dict[str, list[MissingRow]] = {}
    for stack, bank, projections in plan:
        features = compact_bank(bank, projections, stack)
        weights = load_weights({spec.run_id: store.weights_path(spec.run_id) for spec in stack})
        evaluation = MissingEvaluation(stack, manifest, features, weights, finetuning, advance)
        names = [name for name in evaluation.state.fillers() if not fillers or name in fillers]
        rows = evaluation.rows(kept_subsets(stack[0].modalities, missing), names)
        for spec, of_run in zip(stack, rows, strict=True):
            write_missing(results / "missing", spec, of_run, finetuning, evaluation.data.device)
            found[spec.run_id] = of_run
        advance(1)
    return {spec.run_id: found[spec.run_id] for spec in specs}
