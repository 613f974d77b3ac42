"""Baselines against one or two training steps by hand, from the formulas of their papers, and their random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from heads.fusion import FUSIONS
from heads.method import Method
from heads.network import FUSED, Labeled, Unlabeled
from heads.optimiser import Rate, StackedOptimiser
from heads.randomness import RunStreams
from pipeline.bank import FeatureBank
from pipeline.train import StackTrainer
from pipeline.types import Manifest
from tests.contract import conftest as small
from tests.unit.test_fusion import (
    CLASSES,
    DIMS,
    EXACT,
    PAIR,
    SEEDS,
    PlainModel,
    build,
    labeled_batch,
    of_run,
    own_loss,
    two_and_three,
    unlabeled_batch,
)

manifest, bank = small.manifest, small.bank  # fixtures

CPU = torch.device("cpu")
RATE, DECAY = 0.1, 0.01

some_fusions = pytest.mark.parametrize("fusion", ["concat", "sum", "film"])


@dataclass
class Pass:
    """What one plain model says about the views of one run."""

    alone: Mapping[str, Tensor]  # unimodal logits (batch, classes)
    fused: Tensor  # (batch, classes)

    @property
    def logits(self) -> dict[str, Tensor]:
        return {FUSED: self.fused, **self.alone}


def forward(model: PlainModel, x: Mapping[str, Tensor], present: Mapping[str, Tensor], run: int) -> Pass:
    h = model.embed(of_run(x, run), of_run(present, run))
    return Pass(model.alone(h), model.fuse(h))


def labeled_loss(model: PlainModel, batch: Labeled, run: int) -> Tensor:
    """Mean cross-entropy of the fused head and of each unimodal head over the clips that have the modality."""
    out = forward(model, batch.x, batch.present, run)
    loss = functional.cross_entropy(out.fused, batch.y[run])
    for m, logits in out.alone.items():
        loss = loss + own_loss(logits, batch.y[run], batch.present[m][run])
    return loss


def pseudo_label_loss(out: Pass, labels: Tensor, accepted: Tensor, present: Mapping[str, Tensor], run: int) -> Tensor:
    """Cross-entropy of all heads against pseudo-labels: sum over accepted clips divided by the batch size."""
    total = torch.zeros((), dtype=torch.float64)
    for head, logits in out.logits.items():
        for i in range(len(labels)):
            if accepted[i] and (head == FUSED or present[head][run, i]):
                total = total - torch.log_softmax(logits[i], 0)[labels[i]]
    return total / len(labels)


def confident(out: Pass, threshold: float) -> tuple[Tensor, Tensor]:
    """Pseudo-labels of the fused prediction and which of them are confident."""
    probs = functional.softmax(out.fused.detach(), 1)
    return probs.argmax(1), probs.max(1).values >= threshold


def check_steps(
    method: Method,
    steps: Sequence[int],
    objective: Callable[[PlainModel, Labeled, Unlabeled, int, int], Tensor],
) -> None:
    """Train the stack and a plain model per run side by side and compare every parameter after every step.

    Args:
        method: the stack.
        steps: numbers of the training steps.
        objective: loss of a plain model from both batches, the run and the step.
    """
    dims = dict(method.shape.dims)
    models = [PlainModel(method, run) for run in range(len(SEEDS))]
    optimiser = StackedOptimiser("sgd", list(method.parameters()), [Rate(RATE, DECAY)] * len(SEEDS))
    for step in steps:
        labeled, unlabeled = labeled_batch(dims, seed=step), unlabeled_batch(dims, seed=1000 + step)
        terms = method.losses(labeled, unlabeled if method.uses_unlabeled else None, None, step)
        method.combine(method.objectives(terms))
        optimiser.step(step)
        for run, model in enumerate(models):
            loss = objective(model, labeled, unlabeled, run, step)
            model.descend(model.gradients(loss), RATE, DECAY)
            for name, parameter in method.named_parameters():
                torch.testing.assert_close(parameter[run], model.parameters[name], **EXACT, msg=f"{step} {run} {name}")


@some_fusions
@two_and_three
def test_labeled_only_equals_a_step_by_hand(fusion: str, dims: dict[str, int]) -> None:
    check_steps(
        build("erm", dims, fusion=fusion), [0, 1], lambda model, labeled, _, run, __: labeled_loss(model, labeled, run)
    )


@some_fusions
@two_and_three
def test_fixmatch_equals_a_step_by_hand(fusion: str, dims: dict[str, int]) -> None:
    """Confident pseudo-labels of the weak view for the strong view of the same clips; each run has its values."""
    thresholds, weights = [0.4, 0.55, 0.7], [1.0, 0.5, 2.0]
    numbers: list[int] = []

    def objective(model: PlainModel, labeled: Labeled, unlabeled: Unlabeled, run: int, step: int) -> Tensor:
        labels, accepted = confident(forward(model, unlabeled.weak, unlabeled.present, run), thresholds[run])
        numbers.append(int(accepted.sum()))
        strong = forward(model, unlabeled.strong, unlabeled.present, run)
        extra = pseudo_label_loss(strong, labels, accepted, unlabeled.present, run)
        return labeled_loss(model, labeled, run) + weights[run] * extra

    method = build("fixmatch", dims, {"threshold": thresholds, "weight_consistency": weights}, fusion=fusion)
    check_steps(method, [0, 1], objective)
    assert sum(0 < n < 17 for n in numbers) > len(numbers) / 2  # some clips are confident and some are not


@some_fusions
@two_and_three
def test_pseudolabel_equals_steps_by_hand_along_its_ramp(fusion: str, dims: dict[str, int]) -> None:
    """The weak view is its own teacher; the weight rises from 0 at step 0 to its full value at ``ramp_steps``."""
    thresholds, weights, ramps = [0.4, 0.55, 0.6], [1.0, 0.5, 2.0], [8.0, 4.0, 0.0]
    numbers: list[int] = []

    def objective(model: PlainModel, labeled: Labeled, unlabeled: Unlabeled, run: int, step: int) -> Tensor:
        weak = forward(model, unlabeled.weak, unlabeled.present, run)
        labels, accepted = confident(weak, thresholds[run])
        numbers.append(int(accepted.sum()))
        ramp = {0: (0.0, 0.0, 1.0), 2: (0.25, 0.5, 1.0), 5: (0.625, 1.0, 1.0), 100: (1.0, 1.0, 1.0)}[step][run]
        extra = pseudo_label_loss(weak, labels, accepted, unlabeled.present, run)
        return labeled_loss(model, labeled, run) + weights[run] * ramp * extra

    per_run = {"threshold": thresholds, "weight_consistency": weights, "ramp_steps": ramps}
    check_steps(build("pseudolabel", dims, per_run, fusion=fusion), [0, 2, 5, 100], objective)
    assert sum(0 < n < 17 for n in numbers) > len(numbers) / 2  # some clips are confident and some are not


class FreeMatchByHand:
    """FreeMatch of one run as the paper defines it (arXiv 2205.07246, eq. 6 to 13), class by class and clip by clip."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.tau = 1 / CLASSES  # global threshold, eq. 6
        self.expected = [1 / CLASSES] * CLASSES  # mean prediction, eq. 7
        self.histogram = [1 / CLASSES] * CLASSES  # of pseudo-labels, eq. 12
        self.accepted: list[bool] = []
        self.thresholds: list[float] = []

    def moved(self, old: float, new: float) -> float:
        return self.decay * old + (1 - self.decay) * new

    def pseudo_labels(self, weak: Tensor) -> Tensor:
        """Move the averages by a batch of weak fused logits, then label it."""
        q = functional.softmax(weak.detach(), 1).tolist()
        labels = [row.index(max(row)) for row in q]
        size = len(q)
        self.tau = self.moved(self.tau, sum(max(row) for row in q) / size)
        for c in range(CLASSES):
            self.expected[c] = self.moved(self.expected[c], sum(row[c] for row in q) / size)
            self.histogram[c] = self.moved(self.histogram[c], labels.count(c) / size)
        self.thresholds = [self.tau * value / max(self.expected) for value in self.expected]  # eq. 8
        self.accepted = [max(row) >= self.thresholds[label] for row, label in zip(q, labels, strict=True)]
        return torch.tensor(labels)

    def fairness(self, strong: Tensor) -> Tensor:
        """Eq. 11 to 13; a class without any accepted strong prediction has no part in the sum of logarithms."""
        kept = [row for row, ok in zip(functional.softmax(strong, 1), self.accepted, strict=True) if ok]
        size = len(strong)
        mean = [torch.stack([row[c] for row in kept]).sum() / size for c in range(CLASSES)]
        share = [sum(int(row.argmax()) == c for row in kept) / size for c in range(CLASSES)]
        own = [mean[c] / share[c] if share[c] else None for c in range(CLASSES)]
        own_sum = sum(value for value in own if value is not None)
        target = [e / h for e, h in zip(self.expected, self.histogram, strict=True)]
        total = torch.zeros((), dtype=torch.float64)
        for c, value in enumerate(own):
            if value is not None:
                total = total + target[c] / sum(target) * torch.log(value / own_sum)
        return total  # minus the cross-entropy


@some_fusions
@two_and_three
def test_freematch_equals_consecutive_steps_by_hand(fusion: str, dims: dict[str, int]) -> None:
    """Later steps see the moving averages of earlier ones; a wrong decay shows from the first."""
    decays, unsupervised, fair = [0.9, 0.5, 0.99], [1.0, 0.5, 2.0], [0.05, 1.0, 0.3]
    by_hand = [FreeMatchByHand(decay) for decay in decays]
    shares: list[float] = []
    spread: list[float] = []

    def objective(model: PlainModel, labeled: Labeled, unlabeled: Unlabeled, run: int, step: int) -> Tensor:
        hand = by_hand[run]
        labels = hand.pseudo_labels(forward(model, unlabeled.weak, unlabeled.present, run).fused)
        strong = forward(model, unlabeled.strong, unlabeled.present, run)
        accepted = torch.tensor(hand.accepted)
        shares.append(accepted.double().mean().item())
        spread.append(max(hand.thresholds) - min(hand.thresholds))
        extra = pseudo_label_loss(strong, labels, accepted, unlabeled.present, run)
        return labeled_loss(model, labeled, run) + unsupervised[run] * extra + fair[run] * hand.fairness(strong.fused)

    per_run = {"ema_decay": decays, "weight_consistency": unsupervised, "weight_fairness": fair}
    method = build("freematch", dims, per_run, fusion=fusion)
    check_steps(method, [0, 1, 2], objective)
    for run, hand in enumerate(by_hand):
        assert method.confidence[run].item() == pytest.approx(hand.tau, rel=1e-10)
        assert method.expected[run].tolist() == pytest.approx(hand.expected, rel=1e-10)
        assert method.histogram[run].tolist() == pytest.approx(hand.histogram, rel=1e-10)
    assert min(shares) < 1  # some clips are not accepted
    assert max(shares) > 0
    assert max(spread) > 0.02


def test_freematch_accepts_by_the_threshold_of_the_predicted_class() -> None:
    """With averages given: threshold = mean confidence x share of the largest expected probability."""
    method = build("freematch", PAIR)
    method.confidence.fill_(0.8)
    method.expected.copy_(torch.tensor([[0.6, 0.3, 0.1, 0.0]] * len(SEEDS)))
    rows = [[0.79, 0.2, 0.01, 0], [0.81, 0.18, 0.01, 0], [0.3, 0.39, 0.31, 0], [0.29, 0.41, 0.3, 0], [0.3, 0.3, 0.4, 0]]
    probs = torch.tensor(rows, dtype=torch.float64)
    logits = {FUSED: probs.log().expand(len(SEEDS), -1, -1)}
    pseudo = method.pseudo_labels(logits, {})
    assert pseudo.labels.tolist() == [[0, 0, 1, 1, 2]] * len(SEEDS)
    assert pseudo.accepted.tolist() == [[False, True, False, True, True]] * len(SEEDS)


@pytest.mark.parametrize("name", ["fixmatch", "pseudolabel", "freematch"])
def test_pseudo_labels_carry_no_gradient_and_the_weak_view_of_a_consistency_loss_none(name: str) -> None:
    method, unlabeled = build(name, **({"threshold": 0.4} if name != "freematch" else {})), unlabeled_batch()
    weak = {m: x.clone().requires_grad_() for m, x in unlabeled.weak.items()}
    strong = {m: x.clone().requires_grad_() for m, x in unlabeled.strong.items()}
    terms = method.losses(labeled_batch(), replace(unlabeled, weak=weak, strong=strong), None, 200)
    sum(value.sum() for key, value in terms.items() if not key.startswith("labeled/")).backward()
    learns, teaches = (weak, strong) if name == "pseudolabel" else (strong, weak)
    for m in DIMS:
        assert learns[m].grad is not None
        assert learns[m].grad.any()
        assert teaches[m].grad is None


def hand_factors(
    model: PlainModel, batch: Labeled, run: int, alpha: float
) -> tuple[dict[str, float], dict[str, float]]:
    """OGM's factors and ratios of one run: 1 - tanh(alpha rho) where rho > 1, else 1."""
    out = forward(model, batch.x, batch.present, run)
    scores = {}
    for m, logits in out.alone.items():
        probs = functional.softmax(logits.detach(), 1)
        clips = [i for i in range(len(probs)) if batch.present[m][run, i]]
        scores[m] = sum(float(probs[i, batch.y[run, i]]) for i in clips) / len(clips)
    ratios = {m: s / (sum(v for k, v in scores.items() if k != m) / (len(scores) - 1)) for m, s in scores.items()}
    return {m: 1 - math.tanh(alpha * r) if r > 1 else 1.0 for m, r in ratios.items()}, ratios


def matrix_rows(fusion: str, name: str, dims: Mapping[str, int]) -> list[tuple[str, slice]]:
    """By hand: the matrices of a fusion that one modality's embedding is multiplied with, and which of their rows."""
    whole, names, place = slice(None), list(dims), list(dims).index(name)
    start = sum(list(dims.values())[:place])
    rows = slice(start, start + dims[name])
    if fusion == "film":
        first = dims[names[0]]
        rows = slice(start - first, start - first + dims[name])
        return [("last.weight", whole)] if place == 0 else [("condition.weight", rows)]
    return {
        "concat": [("first.weight", rows)],
        "concat-linear": [("linear.weight", rows)],
        "sum": [(f"linear.{name}.weight", whole)],
        "decision": [(f"linear.{name}.weight", whole)],
        "bi-gated": [(f"gate.{name}.weight", whole), (f"value.{name}.weight", whole)],
    }[fusion]


def undecided(name: str, fusion: str) -> bool:
    """Biases of a modality's own layers in the fusion: whether they are modulated is another test's question."""
    return (
        fusion in ("sum", "decision", "bi-gated")
        and name.startswith("network.fusion.")
        and (name.endswith("bias") and ".last." not in name)
    )


def multiplied(
    gradients: Mapping[str, Tensor], factors: Mapping[str, float], fusion: str, dims: Mapping[str, int]
) -> dict[str, Tensor]:
    """Gradients of one plain model after OGM's modulation."""
    out = {name: g.clone() for name, g in gradients.items()}
    for m, factor in factors.items():
        for name in out:
            if name.startswith(f"network.adapters.{m}."):
                out[name] = out[name] * factor
        for name, rows in matrix_rows(fusion, m, dims):
            out[f"network.fusion.{name}"][rows] *= factor
    return out


@pytest.mark.parametrize("fusion", FUSIONS)
@two_and_three
def test_ogm_ge_without_noise_multiplies_the_gradients_of_the_leading_modality_and_no_other(
    fusion: str, dims: dict[str, int]
) -> None:
    """Two steps of SGD by hand; streams are given, but each run's noise is 0."""
    alphas = [0.1, 0.3, 1.0]
    method = build("ogm-ge", dims, {"ogm_alpha": alphas}, fusion=fusion, ogm_noise=0.0)
    models = [PlainModel(method, run) for run in range(len(SEEDS))]
    optimiser = StackedOptimiser("sgd", list(method.parameters()), [Rate(RATE)] * len(SEEDS))
    leading = set()
    for step in range(2):
        batch = labeled_batch(dims, seed=step)
        method.combine(method.objectives(method.losses(batch, None, RunStreams(SEEDS, CPU), step)))
        found = {name: p.grad.clone() for name, p in method.named_parameters()}
        optimiser.step(step)
        for run, model in enumerate(models):
            plain = model.gradients(labeled_loss(model, batch, run))
            factors, ratios = hand_factors(model, batch, run, alphas[run])
            leading |= {m for m, ratio in ratios.items() if ratio > 1}
            expected = multiplied(plain, factors, fusion, dims)
            for name in expected:
                if undecided(name, fusion):
                    expected[name] = found[name][run]
                torch.testing.assert_close(found[name][run], expected[name], **EXACT, msg=f"{step} {run} {name}")
            model.descend(expected, RATE)
            for name, parameter in method.named_parameters():
                torch.testing.assert_close(parameter[run], model.parameters[name], **EXACT, msg=name)
    assert len(leading) > 1


def test_ogm_factors_of_given_scores() -> None:
    """Two modalities: 0.6 against 0.2 of the true class is a ratio of 3; three: 0.6 against the mean of 0.2 and 0.3."""

    def logits(p: float) -> Tensor:
        return torch.tensor([p] + [(1 - p) / 3] * 3, dtype=torch.float64).log().expand(len(SEEDS), 4, CLASSES)

    cases = [
        (PAIR, {"video": 0.2, "audio": 0.6}, {"video": 1.0, "audio": 1 - math.tanh(0.9)}),
        (PAIR, {"video": 0.5, "audio": 0.5}, {"video": 1.0, "audio": 1.0}),
        (DIMS, {"video": 0.2, "flow": 0.6, "audio": 0.3}, {"video": 1.0, "flow": 1 - math.tanh(0.72), "audio": 1.0}),
        (
            DIMS,
            {"video": 0.1, "flow": 0.6, "audio": 0.4},
            {"video": 1.0, "flow": 1 - math.tanh(0.3 * 0.6 / 0.25), "audio": 1 - math.tanh(0.3 * 0.4 / 0.35)},
        ),
    ]
    for dims, probs, expected in cases:
        batch = labeled_batch(dims, 4, missing=0)
        batch = replace(batch, y=torch.zeros_like(batch.y))
        found = build("ogm-ge", dims, ogm_alpha=0.3).factors({m: logits(p) for m, p in probs.items()}, batch)
        for m, factor in expected.items():
            assert found[m].tolist() == pytest.approx([factor] * len(SEEDS), rel=1e-12), (dims, m)


def test_a_clip_without_a_modality_does_not_count_in_its_ogm_score() -> None:
    """Whatever is predicted for it."""
    batch, method = labeled_batch(PAIR, 12, missing=0.4), build("ogm-ge", PAIR, ogm_alpha=0.3)
    out = method.network(batch.x, batch.present)
    other = {
        m: torch.where(batch.present[m][..., None], out.logits[m], torch.randn_like(out.logits[m]) * 9) for m in PAIR
    }
    one, two = method.factors(out.logits, batch), method.factors(other, batch)
    for m in PAIR:
        assert torch.equal(one[m], two[m])


class Ones(RunStreams):
    """Streams whose normal numbers are all 1."""

    def normal(self, step: int, place: str, *shape: int) -> Tensor:
        return torch.ones(len(self.keys), *shape)


def modulated_pieces(
    method: Method, fusion: str, dims: Mapping[str, int], gradients: Mapping[str, Tensor]
) -> list[tuple[str, str, slice, Tensor]]:
    """Modality, parameter, rows and gradient ``(runs, ...)`` of everything that OGM-GE modulates, biases aside."""
    out = []
    for m in dims:
        for name in gradients:
            if name.startswith(f"network.adapters.{m}."):
                out.append((m, name, slice(None), gradients[name]))
        for short, rows in matrix_rows(fusion, m, dims):
            name = f"network.fusion.{short}"
            out.append((m, name, rows, gradients[name][:, rows]))
    return out


@pytest.mark.parametrize("fusion", FUSIONS)
@two_and_three
def test_ogm_ge_adds_the_standard_deviation_of_the_gradient_before_modulation(
    fusion: str, dims: dict[str, int]
) -> None:
    """With all normal numbers 1 and noise of each run's strength; what is not modulated stays as it is."""
    strength = [1.0, 0.5, 0.0]
    method = build("ogm-ge", dims, {"ogm_noise": strength}, fusion=fusion, ogm_alpha=0.5)
    batch = labeled_batch(dims)
    method.combine(method.objectives(method.losses(batch, None, Ones(SEEDS, CPU), 3)))
    found = {name: p.grad for name, p in method.named_parameters()}
    for run in range(len(SEEDS)):
        model = PlainModel(method, run)
        plain = model.gradients(labeled_loss(model, batch, run))
        factors, _ = hand_factors(model, batch, run, 0.5)
        expected = multiplied(plain, factors, fusion, dims)
        for _, name, rows, gradient in modulated_pieces(method, fusion, dims, {k: v[None] for k, v in plain.items()}):
            expected[name][rows] += strength[run] * float(np.std(gradient.numpy()))
        for name, value in expected.items():
            if not undecided(name, fusion):
                torch.testing.assert_close(found[name][run], value, **EXACT, msg=f"{run} {name}")


def test_ogm_ge_noise_is_normal_with_the_deviation_of_the_gradient_before_modulation() -> None:
    """On layers large enough to measure; the factor is far from 1, so the modulated gradient would give another."""
    dims = {"video": 64, "audio": 48}
    noises, gradients = [], []
    for noise in (0.0, 1.0):
        method = build("ogm-ge", dims, ogm_noise=noise, ogm_alpha=1.0, fused_hidden=60.0)
        batch = labeled_batch(dims)
        method.combine(method.objectives(method.losses(batch, None, RunStreams(SEEDS, CPU), 3)))
        gradients.append({name: p.grad for name, p in method.named_parameters()})
    factors = method.factors(method.network(batch.x, batch.present).logits, batch)
    assert min(float(f.min()) for f in factors.values()) < 0.3
    quiet, loud = (modulated_pieces(method, "concat", dims, g) for g in gradients)
    for (m, name, _, modulated), (_, _, _, noisy) in zip(quiet, loud, strict=True):
        for run in range(len(SEEDS)):
            deviation = float((modulated[run] / factors[m][run]).std(correction=0))
            drawn = ((noisy[run] - modulated[run]) / deviation).flatten()
            assert abs(drawn.mean()) < 4 / math.sqrt(len(drawn)), name
            assert abs(drawn.square().mean() - 1) < 4 * math.sqrt(2 / len(drawn)), name
            if len(drawn) > 2000:
                noises.append(drawn[:2800])
    assert len(noises) == 6 * len(SEEDS)  # two matrices of each adapter, and its block of the fusion
    together = torch.corrcoef(torch.stack([n[:2000] for n in noises])) - torch.eye(len(noises))
    assert together.abs().max() < 5 / math.sqrt(2000)  # every place and run draws its own
    untouched = [n for n in gradients[0] if n.startswith(("network.fusion.last", "network.unimodal"))]
    for name in [*untouched, "network.fusion.first.bias"]:
        assert torch.equal(gradients[0][name], gradients[1][name]), name


def test_ogm_ge_noise_differs_between_steps() -> None:
    found = []
    for step in (3, 4, 4):
        method = build("ogm-ge")
        batch = labeled_batch()
        method.combine(method.objectives(method.losses(batch, None, RunStreams(SEEDS, CPU), step)))
        found.append(method.network.adapters["video"].expand_weight.grad)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_ogm_ge_at_balance_and_without_noise_is_labeled_only() -> None:
    """All unimodal heads say the same: no modality leads."""
    batch = labeled_batch(missing=0)
    found = []
    for name in ("ogm-ge", "erm"):
        method = build(name, **({"ogm_noise": 0.0} if name == "ogm-ge" else {}))
        with torch.no_grad():
            for head in method.network.unimodal.values():
                head.weight.zero_()
                head.bias.zero_()
        method.combine(method.objectives(method.losses(batch, None, RunStreams(SEEDS, CPU), 0)))
        found.append({n: p.grad for n, p in method.named_parameters()})
    for name, gradient in found[1].items():
        assert torch.equal(found[0][name], gradient), name


def trained(manifest: Manifest, bank: FeatureBank, method: str, budget: str) -> StackTrainer:
    specs = [
        small.make_spec(manifest, bank, method, target, seed, budget=budget, steps=9, eval_every=9)
        for seed, target in enumerate(("studio", "yard"))
    ]
    trainer = StackTrainer(specs, manifest, bank)
    trainer.train(lambda amount: None)
    return trainer


def test_supervised_equals_labeled_only_with_the_whole_budget(manifest: Manifest, bank: FeatureBank) -> None:
    """Whatever its own budget is."""
    few, all_of_them = trained(manifest, bank, "supervised", "3"), trained(manifest, bank, "erm", "100%")
    for run, target in enumerate(("studio", "yard")):
        split = few.data.splits[run]
        usable = bank.usable(manifest)
        wanted = [
            i
            for i, clip in enumerate(manifest.clips)
            if clip.domain != target and clip.split == "train" and clip.clip_id in usable
        ]
        assert list(split.labeled) == wanted
        assert split.unlabeled == ()
    assert few.progress.curves == all_of_them.progress.curves
    for name, value in few.method.state_dict().items():
        assert torch.equal(value, all_of_them.method.state_dict()[name]), name


def test_supervised_learns_from_the_labels_that_labeled_only_does_not_see(
    manifest: Manifest, bank: FeatureBank
) -> None:
    clips = list(manifest.clips)
    seen = {i for split in trained(manifest, bank, "erm", "3").data.splits for i in split.labeled}
    hidden = next(i for i, c in enumerate(clips) if i not in seen and c.domain == "kitchen" and c.split == "train")
    spec = small.make_spec(manifest, bank, "supervised", steps=9, eval_every=9)
    outcomes = []
    for wrong in (False, True):
        trainer = StackTrainer([spec], manifest, bank)
        labels = trainer.data.labels.clone()
        if wrong:
            labels[hidden] = (labels[hidden] + 1) % len(manifest.classes)
        trainer.data.labels = labels
        trainer.train(lambda amount: None)
        outcomes.append([p.detach().clone() for p in trainer.method.parameters()])
    assert not any(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


NUMBERS = 400_000


def test_normal_numbers_have_the_moments_and_the_distribution_of_a_standard_normal() -> None:
    """Mean 0, variance 1, skewness 0, kurtosis 3, each within four standard errors; odd lengths as well."""
    draws = RunStreams([5, 6], CPU).normal(3, "here", NUMBERS // 5, 5).double().flatten(1).numpy()
    assert draws.shape == (2, NUMBERS)
    for x in draws:
        assert abs(x.mean()) < 4 / math.sqrt(NUMBERS)
        assert abs((x**2).mean() - 1) < 4 * math.sqrt(2 / NUMBERS)
        assert abs((x**3).mean()) < 4 * math.sqrt(15 / NUMBERS)
        assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / NUMBERS)
        assert abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(NUMBERS)
        assert stats.kstest(x[:50_000], "norm").pvalue > 1e-3
    assert abs((draws[0] * draws[1]).mean()) < 4 / math.sqrt(NUMBERS)


def test_normal_numbers_are_those_of_seed_step_and_place() -> None:
    reference = RunStreams([5], CPU).normal(3, "here", 7, 3)
    assert reference.dtype == torch.float32
    assert torch.equal(RunStreams([4, 5, 6], CPU).normal(3, "here", 7, 3)[1], reference[0])
    for seed, step, place in ((6, 3, "here"), (5, 4, "here"), (5, 3, "there")):
        assert not (RunStreams([seed], CPU).normal(step, place, 7, 3) == reference).any()


@pytest.mark.parametrize("size", [1, 2, 7, 64, 501])
def test_a_permutation_is_one(size: int) -> None:
    streams = RunStreams(range(20), CPU)
    drawn = streams.permutation(3, "here", size)
    assert drawn.shape == (20, size)
    assert torch.equal(drawn.sort(1).values, torch.arange(size).expand(20, -1))
    if size > 2:
        assert len({tuple(row.tolist()) for row in drawn}) > 20 / 2
        assert not torch.equal(drawn, streams.permutation(4, "here", size))
        assert torch.equal(drawn[5:6], RunStreams([5], CPU).permutation(3, "here", size))


def test_all_permutations_are_equally_likely() -> None:
    draws = RunStreams(range(3000), CPU)
    codes = torch.cat([(draws.permutation(s, "here", 4) * torch.tensor([64, 16, 4, 1])).sum(1) for s in range(4)])
    counts = codes.unique(return_counts=True)[1].numpy()
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_beta_draws_follow_their_distribution_whoever_is_beside_them() -> None:
    runs, steps = 200, 20
    streams = RunStreams(range(runs), CPU)
    alphas = [0.2 if run % 2 else 2.0 for run in range(runs)]
    draws = torch.stack([streams.beta(step, "here", alphas) for step in range(steps)])
    assert draws.dtype == torch.float32
    for a, part in ((2.0, draws[:, 0::2]), (0.2, draws[:, 1::2])):
        x = part.double().flatten().numpy()
        variance, fourth = 1 / (4 * (2 * a + 1)), 3 / (16 * (2 * a + 1) * (2 * a + 3))
        assert abs(x.mean() - 0.5) < 4 * math.sqrt(variance / len(x))
        assert abs(((x - 0.5) ** 2).mean() - variance) < 4 * math.sqrt((fourth - variance**2) / len(x))
        assert stats.kstest(x, stats.beta(a, a).cdf).pvalue > 1e-3
    assert torch.equal(RunStreams([7], CPU).beta(3, "here", [alphas[7]]), draws[3, 7:8])
    assert RunStreams([7], CPU).beta(3, "there", [alphas[7]]) != draws[3, 7]
    assert RunStreams([7, 8], CPU).beta(3, "here", [0.0, 0.0]).tolist() == [1.0, 1.0]  # nothing is mixed
