"""MM and B-MM against computations by hand, and where they must be plain empirical risk minimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pipeline.train
from heads.fusion import FUSIONS
from heads.method import Method
from heads.mixing import SCORE_ROWS, SCORE_UNITS, Mixed, Mixer
from heads.network import FUSED, Labeled
from heads.optimiser import Rate, StackedOptimiser
from heads.randomness import RunStreams
from pipeline.bank import FeatureBank
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunSpec
from tests.contract import conftest as small
from tests.unit.test_fusion import (
    CLASSES,
    DIMS,
    EXACT,
    PAIR,
    SEEDS,
    PlainModel,
    build,
    draw_features,
    draw_present,
    labeled_batch,
    of_run,
    own_loss,
    two_and_three,
)

manifest, bank = small.manifest, small.bank  # fixtures

CPU = torch.device("cpu")
SIZE = 13
LAMBDAS = (0.75, 0.3125, 1.0)  # exact in float32


class Dealt(RunStreams):
    """Streams whose partners and Beta draws are given, and that note what was asked for."""

    def __init__(self, partner: Tensor, draws: Sequence[float] = LAMBDAS) -> None:
        super().__init__(SEEDS, CPU)
        self.partner, self.draws = partner, draws
        self.concentrations: list[list[float]] = []
        self.asked: list[tuple[int, str]] = []

    def permutation(self, step: int, place: str, size: int) -> Tensor:
        assert size == self.partner.shape[1]
        self.asked.append((step, place))
        return self.partner

    def beta(self, step: int, place: str, concentration: Sequence[float]) -> Tensor:
        self.asked.append((step, place))
        self.concentrations.append(list(concentration))
        return torch.tensor(self.draws, dtype=torch.float32)


def partners(size: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(size, generator=generator) for _ in SEEDS])


def mixer(kind: str, modalities: Sequence[str], **values: Sequence[float]) -> Mixer:
    """A mixer of its own in float64; choices are positions."""
    runs = len(next(iter(values.values())))
    defaults = {"mix_alpha": 1.0}
    if kind == "bmm":
        defaults |= {"mix_warmup_epochs": 0.0, "mix_ratio_form": 0.0, "mix_label_degree": 0.0, "mix_max_degree": 1.0}
    filled = {name: values.get(name, [value] * runs) for name, value in defaults.items()}
    return Mixer(kind, modalities, {k: torch.tensor(v, dtype=torch.float64) for k, v in filled.items()}).double()


def end_epoch(
    mixer: Mixer, means: Sequence[Sequence[float]], counts: int | Sequence[Sequence[int]] = 1024, ended: object = True
) -> None:
    """End an epoch with these mean scores per run and modality."""
    number = np.broadcast_to(np.array(counts, dtype=np.int64), np.shape(means)).copy()
    sums = np.round(np.array(means) * number * SCORE_UNITS).astype(np.int64)
    where = np.broadcast_to(np.array(ended), len(sums)).copy()
    mixer.end_epoch(torch.from_numpy(sums), torch.from_numpy(number), torch.from_numpy(where))


def here_everywhere(dims: Mapping[str, int], runs: int = len(SEEDS), size: int = SIZE) -> dict[str, Tensor]:
    return {m: torch.ones(runs, size, dtype=torch.bool) for m in dims}


def everyone(size: int = SIZE) -> Tensor:
    return torch.ones(len(SEEDS), size, dtype=torch.bool)


def gradients(method: Method, batch: Labeled, streams: RunStreams, step: int = 1) -> dict[str, Tensor]:
    method.combine(method.objectives(method.losses(batch, None, streams, step)))
    found = {}
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad
    return found


def hand_mixed(
    z: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    partner: Tensor,
    degrees: Mapping[str, float],
    all_alike: bool,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Mixed embeddings of one run, clip by clip, and the degrees each clip's modalities were mixed with.

    Args:
        z: per modality ``(batch, dim)``.
        present: per modality ``(batch,)``.
        partner: ``(batch,)``.
        degrees: per modality.
        all_alike: leave pairs alone that do not have the same modalities (MM).
    """
    rows: dict[str, list[Tensor]] = {m: [] for m in z}
    used = []
    for i, j in enumerate(partner.tolist()):
        alike = all(bool(p[i]) == bool(p[j]) for p in present.values())
        degree = {
            m: g if present[m][i] and present[m][j] and (alike or not all_alike) else 0.0 for m, g in degrees.items()
        }
        for m in z:
            rows[m].append((1 - degree[m]) * z[m][i] + degree[m] * z[m][j])
        used.append(degree)
    return {m: torch.stack(values) for m, values in rows.items()}, used


def hand_loss(model: PlainModel, mixed: Mapping[str, Tensor], y: Tensor, partner: Tensor, degree: Tensor) -> Tensor:
    """Cross-entropy of the fused prediction against mixed one-hot labels, mean over the batch."""
    hot = functional.one_hot(y, CLASSES).double()
    target = (1 - degree[:, None]) * hot + degree[:, None] * hot[partner]
    return functional.cross_entropy(model.fuse(mixed), target)


def hand_label_degree(used: Sequence[Mapping[str, float]], mean: bool = False) -> Tensor:
    """Share of the partner's label per clip: the largest degree, or the mean over the mixed modalities."""
    out = []
    for degree in used:
        mixed = [g for g in degree.values() if g > 0]
        out.append(0.0 if not mixed else sum(mixed) / len(mixed) if mean else max(mixed))
    return torch.tensor(out, dtype=torch.float64)


@two_and_three
def test_mm_mixes_all_embeddings_and_the_labels_of_a_batch_with_one_lambda_and_one_partner(
    dims: dict[str, int],
) -> None:
    method, streams = build("mm", dims), Dealt(partners())
    z, present = draw_features(dims, SIZE, 5), here_everywhere(dims)
    mixed = method.mixer.mix(z, present, everyone(), streams, 4, "here")
    for run, lam in enumerate(LAMBDAS):
        for i in range(SIZE):
            j = int(streams.partner[run, i])
            assert int(mixed.partner[run, i]) == j
            assert mixed.label_degree[run, i].item() == 1 - lam
            for m in dims:
                torch.testing.assert_close(mixed.embeddings[m][run, i], lam * z[m][run, i] + (1 - lam) * z[m][run, j])


@two_and_three
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_terms_of_mm_are_those_computed_by_hand(dims: dict[str, int], missing: float) -> None:
    """Only the fused prediction is of mixed embeddings; pairs with different modalities are left alone."""
    method, streams, batch = build("mm", dims), Dealt(partners()), labeled_batch(dims, SIZE, missing=missing)
    terms = method.losses(batch, None, streams, 4)
    assert set(terms) == {f"labeled/{head}" for head in (FUSED, *dims)}
    for run, lam in enumerate(LAMBDAS):
        model, present, partner = PlainModel(method, run), of_run(batch.present, run), streams.partner[run]
        h = model.embed(of_run(batch.x, run), present)
        mixed, used = hand_mixed(h, present, partner, dict.fromkeys(dims, 1 - lam), all_alike=True)
        assert missing == 0 or len({tuple(u.values()) for u in used}) > 1 or lam == 1
        expected = hand_loss(model, mixed, batch.y[run], partner, hand_label_degree(used))
        torch.testing.assert_close(terms["labeled/fused"][run], expected, **EXACT)
        for m, logits in model.alone(h).items():
            torch.testing.assert_close(terms[f"labeled/{m}"][run], own_loss(logits, batch.y[run], present[m]), **EXACT)


def test_mm_does_not_mix_a_pair_with_different_modalities() -> None:
    method, streams = build("mm", PAIR), Dealt(partners(seed=3))
    z, present = draw_features(PAIR, SIZE, 5), draw_present(PAIR, SIZE, 6, missing=0.5)
    mixed = method.mixer.mix(z, present, everyone(), streams, 4, "here")
    kinds = set()
    for run, lam in enumerate(LAMBDAS):
        for i in range(SIZE):
            j = int(streams.partner[run, i])
            own, other = ([bool(present[m][run, k]) for m in PAIR] for k in (i, j))
            kinds.add((own == other, any(own)))
            share = 1 - lam if own == other and any(own) else 0.0
            assert mixed.label_degree[run, i].item() == share
            for m, has in zip(PAIR, own, strict=True):
                g = share if has else 0.0
                expected = (1 - g) * z[m][run, i] + g * z[m][run, j]
                torch.testing.assert_close(mixed.embeddings[m][run, i], expected, **EXACT)
    assert len(kinds) == 4  # all cases occurred


@pytest.mark.parametrize("kind", ["mm", "bmm"])
def test_a_pair_with_a_clip_that_is_not_allowed_is_left_alone(kind: str) -> None:
    method, streams = build(kind, PAIR), Dealt(partners(), draws=(0.5, 0.5, 0.5))
    method.mixer.degrees.fill_(0.5)
    z, allowed = draw_features(PAIR, SIZE, 5), draw_present({"any": 1}, SIZE, 8, missing=0.4)["any"]
    mixed = method.mixer.mix(z, here_everywhere(PAIR), allowed, streams, 4, "here")
    for run in range(len(SEEDS)):
        for i in range(SIZE):
            j = int(streams.partner[run, i])
            g = 0.5 if allowed[run, i] and allowed[run, j] else 0.0
            assert mixed.label_degree[run, i].item() == g
            for m in PAIR:
                expected = (1 - g) * z[m][run, i] + g * z[m][run, j]
                torch.testing.assert_close(mixed.embeddings[m][run, i], expected, **EXACT)


def test_the_mixed_loss_is_the_mean_over_its_mask_alone() -> None:
    """As on a batch with pseudo-labels, of which some are not accepted."""
    method, batch = build("mm", PAIR), labeled_batch(PAIR, SIZE, missing=0)
    streams, mask = Dealt(partners()), draw_present({"any": 1}, SIZE, 8, missing=0.4)["any"]
    out = method.network(batch.x, batch.present)
    loss = method.fused_loss(out, batch.y, mask, batch.present, streams, 4, "here", mixes=True)
    for run, lam in enumerate(LAMBDAS):
        model, partner = PlainModel(method, run), streams.partner[run]
        h = model.embed(of_run(batch.x, run), of_run(batch.present, run))
        total = torch.zeros((), dtype=torch.float64)
        for i in torch.nonzero(mask[run])[:, 0].tolist():
            j = int(partner[i])
            g = 1 - lam if mask[run, j] else 0.0
            logits = model.fuse({m: ((1 - g) * v[i] + g * v[j])[None] for m, v in h.items()})
            log_probs = torch.log_softmax(logits, 1)[0]
            total = total - (1 - g) * log_probs[batch.y[run, i]] - g * log_probs[batch.y[run, j]]
        torch.testing.assert_close(loss[run], total / mask[run].sum(), **EXACT)


def recovered(mixed: Mixed, run: int, m: str) -> tuple[list[int], list[float]]:
    """Partner and degree of every clip, read off mixed unit vectors; -1 for a clip that is its own partner."""
    matrix = mixed.embeddings[m][run]
    off = matrix - torch.diag(matrix.diag())
    return [int(r.argmax()) if r.any() else -1 for r in off], [float(r.max()) for r in off]


def test_every_step_and_run_draws_one_lambda_and_one_permutation_for_all_modalities() -> None:
    size, steps = 9, 6
    method, streams = build("mm", mix_alpha=1.0), RunStreams(SEEDS, CPU)
    unit_vectors = {m: torch.eye(size, dtype=torch.float64).expand(len(SEEDS), -1, -1) for m in DIMS}
    seen_lambdas, seen_partners = set(), set()
    for step in range(steps):
        for place in ("labeled", "consensus"):
            mixed = method.mixer.mix(
                unit_vectors, here_everywhere(DIMS, size=size), everyone(size), streams, step, place
            )
            for run in range(len(SEEDS)):
                partner, degrees = recovered(mixed, run, "video")
                assert all(recovered(mixed, run, m) == (partner, degrees) for m in DIMS)
                others = {round(g, 7) for p, g in zip(partner, degrees, strict=True) if p >= 0}
                assert len(others) == 1
                complete = [i if p < 0 else p for i, p in enumerate(partner)]
                assert sorted(complete) == list(range(size))
                assert mixed.partner[run].tolist() == complete
                assert {round(g, 7) for g in mixed.label_degree[run].tolist()} == others
                seen_lambdas |= others
                seen_partners.add(tuple(complete))
    assert len(seen_lambdas) == len(seen_partners) == steps * 2 * len(SEEDS)


def test_lambda_follows_a_beta_distribution_with_the_alpha_of_each_run() -> None:
    """Mean 1/2, variance 1/(4 (2a + 1)), fourth central moment 3/(16 (2a + 1) (2a + 3))."""
    steps, alphas = 2500, [0.2, 2.0, 0.2, 2.0, 1.0, 0.0]
    streams = RunStreams(range(len(alphas)), CPU)
    mixing = mixer("mm", ["video"], mix_alpha=alphas)
    z, here = {"video": torch.zeros(len(alphas), 2, 1)}, here_everywhere({"video": 1}, len(alphas), 2)
    draws = [mixing.mix(z, here, here["video"], streams, step, "here").label_degree[:, 0] for step in range(steps)]
    lam = 1 - torch.stack(draws).double().numpy()
    assert ((lam >= 0) & (lam <= 1)).all()
    for run, a in enumerate(alphas[:-1]):
        centred = lam[:, run] - 0.5
        variance, fourth = 1 / (4 * (2 * a + 1)), 3 / (16 * (2 * a + 1) * (2 * a + 3))
        assert abs(centred.mean()) < 4 * math.sqrt(variance / steps)
        assert abs((centred**2).mean() - variance) < 4 * math.sqrt((fourth - variance**2) / steps)
        assert abs((centred**4).mean() - fourth) < 4 / 32 / math.sqrt(steps)  # (l - 1/2)^4 is in [0, 1/16]
    assert abs(np.corrcoef(lam[:, 0], lam[:, 2])[0, 1]) < 4 / math.sqrt(steps)  # two runs
    assert abs(np.corrcoef(lam[1:, 0], lam[:-1, 0])[0, 1]) < 4 / math.sqrt(steps)  # two steps
    assert (lam[:, -1] == 1).all()


UNEQUAL = [[0.6, 0.2, 0.3]] * len(SEEDS)


def like_erm(case: str, dims: Mapping[str, int], fusion: str, dtype: torch.dtype, **dropout: float) -> Method:
    """A method that mixes in principle but not in this case."""
    common = {"fusion": fusion, "dtype": dtype, **dropout}
    if case == "MM with alpha 0":
        return build("mm", dims, mix_alpha=0.0, **common)
    changes = {
        "B-MM with alpha 0": {"mix_alpha": 0.0, "mix_warmup_epochs": 0.0},
        "B-MM with balanced scores": {"mix_warmup_epochs": 0.0},
        "B-MM with balanced scores and the raw ratio": {"mix_warmup_epochs": 0.0, "mix_ratio_form": "raw"},
        "B-MM during warm-up": {"mix_warmup_epochs": 2.0},
        "B-MM before the first scores": {"mix_warmup_epochs": 0.0},
    }[case]
    method = build("bmm", dims, **changes, **common)
    if case != "B-MM before the first scores":
        balanced = "balanced" in case
        end_epoch(method.mixer, [[0.25] * len(dims) if balanced else u[: len(dims)] for u in UNEQUAL])
    return method


LIKE_ERM = (
    "MM with alpha 0",
    "B-MM with alpha 0",
    "B-MM with balanced scores",
    "B-MM with balanced scores and the raw ratio",
    "B-MM during warm-up",
    "B-MM before the first scores",
)


def beside_labeled_only(
    case: str, dims: Mapping[str, int], fusion: str, dtype: torch.dtype, **dropout: float
) -> list[tuple[str, Tensor, Tensor]]:
    """Names, gradients of labeled only, and gradients of the method that does not mix in this case."""
    batch, streams = labeled_batch(dims, SIZE, dtype=dtype), RunStreams(SEEDS, CPU)
    plain = gradients(build("erm", dims, fusion=fusion, dtype=dtype, **dropout), batch, streams)
    found = gradients(like_erm(case, dims, fusion, dtype, **dropout), batch, streams)
    assert plain.keys() == found.keys()
    return [(name, gradient, found[name]) for name, gradient in plain.items()]


EXACTLY = list(FUSIONS)


@pytest.mark.parametrize("case", LIKE_ERM)
@pytest.mark.parametrize("fusion", EXACTLY)
@two_and_three
def test_without_anything_to_mix_the_gradients_are_exactly_those_of_labeled_only(
    case: str, fusion: str, dims: dict[str, int]
) -> None:
    """With dropout of the embeddings, whose masks are the same."""
    for name, plain, found in beside_labeled_only(case, dims, fusion, torch.float32, dropout_embedding=0.5):
        assert torch.equal(plain, found), name


@pytest.mark.parametrize("case", LIKE_ERM)
@two_and_three
def test_without_anything_to_mix_the_gradients_of_gates_are_those_of_labeled_only_up_to_rounding(
    case: str, dims: dict[str, int]
) -> None:
    for name, plain, found in beside_labeled_only(case, dims, "bi-gated", torch.float64, dropout_embedding=0.5):
        torch.testing.assert_close(plain, found, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("case", LIKE_ERM)
@pytest.mark.parametrize("fusion", ["concat", "bi-gated"])
def test_without_anything_to_mix_dropout_of_the_fused_layer_is_that_of_labeled_only(case: str, fusion: str) -> None:
    for name, plain, found in beside_labeled_only(case, DIMS, fusion, torch.float64, dropout_fused=0.5):
        torch.testing.assert_close(plain, found, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("kind", ["mm", "bmm"])
def test_a_run_that_does_not_mix_is_labeled_only_also_beside_one_that_does(kind: str) -> None:
    batch, streams = labeled_batch(size=SIZE, dtype=torch.float32), RunStreams(SEEDS, CPU)
    warm = {"mix_warmup_epochs": 0.0} if kind == "bmm" else {}
    method = build(kind, per_run={"mix_alpha": [0.0, 1.0, 0.0]}, dtype=torch.float32, **warm)
    if kind == "bmm":
        end_epoch(method.mixer, UNEQUAL)
    plain, found = gradients(build("erm", dtype=torch.float32), batch, streams), gradients(method, batch, streams)
    for name, gradient in plain.items():
        assert torch.equal(gradient[[0, 2]], found[name][[0, 2]]), name
    for name in ("network.fusion.first.weight", "network.adapters.flow.expand_weight"):
        assert not torch.equal(plain[name][1], found[name][1]), name


def excess(alpha: float, strong: float, weak: float, limit: float = 1.0) -> float:
    return min(math.tanh(alpha * (strong / weak - 1)), limit)


def raw(alpha: float, strong: float, weak: float, limit: float = 1.0) -> float:
    return min(math.tanh(alpha * strong / weak), limit)


@pytest.mark.parametrize("form", [excess, raw])
@pytest.mark.parametrize("limit", [1.0, 0.4])
def test_degrees_of_two_modalities_follow_the_formula(form: Callable[..., float], limit: float) -> None:
    rng = np.random.default_rng(1)
    runs = 40
    means, alphas = rng.uniform(0.05, 0.9, (runs, 2)), rng.uniform(0, 2, runs)
    position = float(form is raw)
    mixing = mixer("bmm", ["a", "v"], mix_alpha=alphas, mix_ratio_form=[position] * runs, mix_max_degree=[limit] * runs)
    end_epoch(mixing, means)
    expected = np.zeros((runs, 2))
    for run, (first, second) in enumerate(means):
        weak = 0 if first < second else 1
        expected[run, weak] = form(alphas[run], max(first, second), min(first, second), limit)
    np.testing.assert_allclose(mixing.degrees.numpy(), expected, rtol=1e-6)
    assert (expected == limit).any() == (limit < 1)
    assert set((expected > 0).sum(1)) == {1}


@pytest.mark.parametrize("form", [excess, raw])
def test_with_three_modalities_each_is_compared_with_the_mean_of_the_others(form: Callable[..., float]) -> None:
    rng = np.random.default_rng(2)
    runs, alpha = 40, 0.8
    means, counts = rng.uniform(0.05, 0.9, (runs, 3)), rng.integers(5, 90, (runs, 3))  # some clips miss some modality
    mixing = mixer("bmm", ["a", "v", "f"], mix_alpha=[alpha] * runs, mix_ratio_form=[float(form is raw)] * runs)
    end_epoch(mixing, means, counts)
    number_weak = set()
    for run in range(runs):
        expected = []
        for k in range(3):
            others = (means[run].sum() - means[run, k]) / 2
            rho = means[run, k] / others
            expected.append(form(alpha, others, means[run, k]) if rho < 1 else 0.0)
        np.testing.assert_allclose(mixing.degrees[run].numpy(), expected, rtol=1e-6)
        number_weak.add(sum(g > 0 for g in expected))
    assert number_weak == {1, 2}


def test_a_modality_that_no_clip_has_takes_no_part_in_the_comparison() -> None:
    mixing = mixer("bmm", ["a", "v", "f"], mix_alpha=[1.0] * 3)
    end_epoch(mixing, [[0.5, 0.25, 0.9], [0.5, 0.9, 0.25], [0.5, 0.9, 0.9]], [[64, 64, 0], [64, 0, 64], [64, 0, 0]])
    g = math.tanh(1)
    np.testing.assert_allclose(mixing.degrees.numpy(), [[0, g, 0], [0, 0, g], [0, 0, 0]], rtol=1e-9)


def test_only_runs_whose_epoch_ended_get_new_degrees_and_count_an_epoch() -> None:
    mixing = mixer("bmm", ["a", "v"], mix_alpha=[1.0] * 4)
    end_epoch(mixing, [[0.2, 0.4]] * 4)
    before = mixing.degrees.clone()
    end_epoch(mixing, [[0.9, 0.3]] * 4, ended=[True, False, False, True])
    assert torch.equal(mixing.degrees[1:3], before[1:3])
    np.testing.assert_allclose(mixing.degrees[[0, 3]].numpy(), [[0, math.tanh(2)]] * 2, rtol=1e-9)
    assert mixing.epochs.tolist() == [2, 1, 1, 2]


def test_the_first_epochs_of_each_run_are_without_mixing() -> None:
    warmups = [0.0, 1.0, 2.0, 3.0]
    mixing = mixer("bmm", ["a", "v"], mix_alpha=[1.0] * 4, mix_warmup_epochs=warmups)
    assert not mixing.degrees.any()  # in the first epoch there are no scores yet
    for done in (1, 2, 3):
        end_epoch(mixing, [[0.2, 0.4]] * 4)
        for run, warmup in enumerate(warmups):
            assert mixing.degrees[run].tolist() == pytest.approx([math.tanh(1) if done >= warmup else 0.0, 0.0])


def test_epochs_that_a_run_has_not_ended_do_not_count_as_warm_up() -> None:
    mixing = mixer("bmm", ["a", "v"], mix_alpha=[1.0] * 2, mix_warmup_epochs=[2.0] * 2)
    for ended in ([True, False], [True, True]):
        end_epoch(mixing, [[0.2, 0.4]] * 2, ended=ended)
    assert (mixing.degrees > 0).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("form", ["excess", "raw"])
def test_degrees_are_at_least_0_and_less_than_1(form: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        method = build("bmm", mix_warmup_epochs=0.0, mix_ratio_form=form, dtype=torch.float32)
        end_epoch(method.mixer, rng.uniform(0.15, 0.95, (len(SEEDS), 3)))
        assert ((method.mixer.degrees >= 0) & (method.mixer.degrees < 1)).all()
        assert method.mixer.degrees.any()


def test_degrees_are_less_than_1_also_where_a_modality_knows_almost_nothing() -> None:
    method = build("bmm", PAIR, mix_warmup_epochs=0.0, dtype=torch.float32)
    end_epoch(method.mixer, [[0.95, 0.05]] * len(SEEDS))
    assert (method.mixer.degrees < 1).all()


@pytest.mark.parametrize("form", ["excess", "raw"])
def test_three_equal_scores_are_balanced_whatever_their_value(form: str) -> None:
    method = build("bmm", mix_warmup_epochs=0.0, mix_ratio_form=form)
    end_epoch(method.mixer, [[0.1] * 3] * len(SEEDS), 10)
    assert not method.mixer.degrees.any()


@two_and_three
def test_a_modality_that_knows_nothing_leaves_finite_degrees(dims: dict[str, int]) -> None:
    mixing = mixer("bmm", list(dims), mix_alpha=[1.0])
    end_epoch(mixing, [[0.0] * len(dims)])
    assert not mixing.degrees.any()
    end_epoch(mixing, [[0.5] + [0.0] * (len(dims) - 1)])
    assert mixing.degrees.isfinite().all()
    assert (mixing.degrees > 0).tolist() == [[False] + [True] * (len(dims) - 1)]


def test_the_weak_modality_is_mixed_and_the_strong_one_is_left_as_it_is_while_the_label_is_mixed() -> None:
    method, streams = build("bmm", PAIR, mix_warmup_epochs=0.0), Dealt(partners())
    end_epoch(method.mixer, [[0.6, 0.5], [0.5, 0.6], [0.6, 0.4]])
    z = draw_features(PAIR, SIZE, 5)
    mixed = method.mixer.mix(z, here_everywhere(PAIR), everyone(), streams, 4, "here")
    g = [math.tanh(0.2), math.tanh(0.2), math.tanh(0.5)]
    for run, weak in enumerate(["audio", "video", "audio"]):
        (strong,) = set(PAIR) - {weak}
        assert torch.equal(mixed.embeddings[strong][run], z[strong][run])
        expected = (1 - g[run]) * z[weak][run] + g[run] * z[weak][run][streams.partner[run]]
        torch.testing.assert_close(mixed.embeddings[weak][run], expected, rtol=1e-7, atol=1e-9)
        assert torch.equal(mixed.partner[run], streams.partner[run])
        assert mixed.label_degree[run].tolist() == pytest.approx([g[run]] * SIZE, rel=1e-7)
    assert streams.concentrations == []  # B-MM draws no lambda


@pytest.mark.parametrize("rule", ["max", "mean"])
@pytest.mark.parametrize("missing", [0.0, 0.35])
def test_bmm_mixes_a_modality_where_both_clips_have_it_and_the_label_by_what_was_mixed(
    rule: str, missing: float
) -> None:
    method, streams = build("bmm", mix_label_degree=rule), Dealt(partners(seed=2))
    per_run = [dict(zip(DIMS, g, strict=True)) for g in ([0.7, 0.0, 0.3], [0.0, 0.2, 0.0], [0.5, 0.4, 0.25])]
    method.mixer.degrees.copy_(torch.tensor([list(g.values()) for g in per_run], dtype=torch.float64))
    batch = labeled_batch(size=SIZE, missing=missing)
    terms = method.losses(batch, None, streams, 4)
    z = draw_features(DIMS, SIZE, 5)
    mixed = method.mixer.mix(z, batch.present, everyone(), streams, 4, "here")
    for run, degrees in enumerate(per_run):
        present, partner, model = of_run(batch.present, run), streams.partner[run], PlainModel(method, run)
        wanted, used = hand_mixed(of_run(z, run), present, partner, degrees, all_alike=False)
        for m in DIMS:
            torch.testing.assert_close(mixed.embeddings[m][run], wanted[m], **EXACT)
        label = hand_label_degree(used, mean=rule == "mean")
        torch.testing.assert_close(mixed.label_degree[run], label, **EXACT)
        embedded = model.embed(of_run(batch.x, run), present)
        together, _ = hand_mixed(embedded, present, partner, degrees, all_alike=False)
        expected = hand_loss(model, together, batch.y[run], partner, label)
        torch.testing.assert_close(terms["labeled/fused"][run], expected, **EXACT)
    if missing:
        assert len({tuple(u.values()) for u in used}) > 3


def hand_scores(model: PlainModel, batch: Labeled, run: int, mask: Tensor) -> tuple[list[float], list[int]]:
    """Sum of the true class's probability with the other embeddings zeroed, and number of clips, per modality."""
    present = of_run(batch.present, run)
    h = model.embed(of_run(batch.x, run), present)
    sums, counts = [], []
    for m in h:
        logits = model.fuse({k: v if k == m else torch.zeros_like(v) for k, v in h.items()}).detach().numpy()
        powers = np.exp(logits - logits.max(1, keepdims=True))
        probs = powers / powers.sum(1, keepdims=True)
        clips = [i for i in range(len(mask)) if mask[i] and present[m][i]]
        sums.append(float(sum(probs[i, int(batch.y[run, i])] for i in clips)))
        counts.append(len(clips))
    return sums, counts


@pytest.mark.parametrize("fusion", FUSIONS)
@two_and_three
def test_a_modality_is_scored_by_the_true_class_with_the_others_zeroed_over_the_clips_that_have_it(
    fusion: str, dims: dict[str, int]
) -> None:
    """Without dropout, whatever its probability in training."""
    method, batch = build("bmm", dims, fusion=fusion, dropout_embedding=0.5, dropout_fused=0.5), labeled_batch(dims)
    mask = draw_present({"any": 1}, SIZE, 8, missing=0.3)["any"]
    scores, counts = method.modality_scores(batch.x, batch.present, batch.y, mask)
    for run in range(len(SEEDS)):
        sums, numbers = hand_scores(PlainModel(method, run), batch, run, mask[run])
        assert counts[run].tolist() == numbers
        assert (scores[run].double() / SCORE_UNITS).tolist() == pytest.approx(sums, abs=SIZE / SCORE_UNITS)


def test_the_score_of_a_run_does_not_depend_on_padding_or_on_who_is_beside_it() -> None:
    dims, size = {"video": 13, "flow": 10, "audio": 7}, 41
    batch = labeled_batch(dims, SCORE_ROWS, dtype=torch.float32)
    mask = torch.arange(SCORE_ROWS).expand(len(SEEDS), -1) < size
    method = build("bmm", dims, dtype=torch.float32, fused_hidden=19.0)
    scores, counts = method.modality_scores(batch.x, batch.present, batch.y, mask)
    other = labeled_batch(dims, SCORE_ROWS, seed=9, dtype=torch.float32)
    for run in range(len(SEEDS)):
        beside = mask[..., None] & (torch.arange(len(SEEDS)) == run)[:, None, None]
        x = {m: torch.where(beside, batch.x[m], other.x[m]) for m in dims}
        present = {m: torch.where(beside[..., 0], batch.present[m], other.present[m]) for m in dims}
        y = torch.where(beside[..., 0], batch.y, other.y)
        again, number = method.modality_scores(x, present, y, mask)
        assert torch.equal(again[run], scores[run])
        assert torch.equal(number[run], counts[run])
        assert not torch.equal(again, scores)


def spec_without_fused_dropout(
    manifest: Manifest, bank: FeatureBank, method: str, seed: int, warmup: int = 0, **changes: object
) -> RunSpec:
    hparams = {"learning_rate": 1e-2, "dropout_fused": 0.0}
    if method == "bmm":
        hparams["mix_warmup_epochs"] = float(warmup)
    return small.make_spec(manifest, bank, method, seed=seed, hparams=hparams, **changes)


def test_the_trainer_scores_every_labeled_clip_of_a_run_on_its_clean_view_and_no_other(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in several parts, beside a run with another number of clips, and bit for bit as alone."""
    monkeypatch.setattr(pipeline.train, "SCORE_ROWS", 16)
    few = spec_without_fused_dropout(manifest, bank, "bmm", 0, steps=2, eval_every=2)
    many = spec_without_fused_dropout(manifest, bank, "bmm", 1, budget="100%", target="yard", steps=2, eval_every=2)
    stack, alone = StackTrainer([few, many], manifest, bank), StackTrainer([few], manifest, bank)
    for trainer in (stack, alone):
        trainer.train(lambda amount: None)
    assert stack.epoch_steps == [2, 7]
    assert stack.method.mixer.epochs.tolist() == [1, 0]
    assert torch.equal(stack.method.mixer.degrees[0], alone.method.mixer.degrees[0])
    rows = torch.tensor([stack.data.splits[0].labeled])
    x, present = alone.data.take(rows, torch.full_like(rows, bank.views.index("clean0")))
    labels = torch.tensor(manifest.label_indices())[rows]
    batch = Labeled(x, present, labels, torch.zeros_like(labels))
    sums, counts = hand_scores(PlainModel(alone.method, 0), batch, 0, torch.ones(rows.shape[1], dtype=torch.bool))
    means = [s / n for s, n in zip(sums, counts, strict=True)]
    expected = []
    for k, own in enumerate(means):
        others = (sum(means[:k]) + sum(means[k + 1 :])) / 2
        expected.append(excess(1.0, others, own) if own < others else 0.0)
    assert max(expected) > 0.01
    assert alone.method.mixer.degrees[0].tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("steps", [4, 6])
def test_bmm_in_training_is_labeled_only_until_its_warm_up_is_over(
    manifest: Manifest, bank: FeatureBank, steps: int
) -> None:
    """Two steps are an epoch; with a warm-up of two epochs the fifth step is the first that mixes."""
    sizes = {"steps": steps, "eval_every": steps}
    specs = [spec_without_fused_dropout(manifest, bank, method, 0, warmup=2, **sizes) for method in ("bmm", "erm")]
    mixes, plain = (StackTrainer([spec], manifest, bank) for spec in specs)
    for trainer in (mixes, plain):
        assert trainer.epoch_steps == [2]
        trainer.train(lambda amount: None)
    same = [torch.equal(a, b) for a, b in zip(mixes.method.parameters(), plain.method.parameters(), strict=True)]
    assert all(same) if steps == 4 else not any(same)


@pytest.mark.parametrize("kind", ["mm", "bmm"])
@pytest.mark.parametrize("fusion", FUSIONS)
@two_and_three
def test_training_steps_equal_updates_of_a_plain_model_by_hand(kind: str, fusion: str, dims: dict[str, int]) -> None:
    """Two steps of SGD with weight decay; between them B-MM scores the batch, so that its second step mixes."""
    rate, decay, alphas = 0.1, 0.01, [1.0, 0.3, 2.0]
    warm = {"mix_warmup_epochs": 0.0} if kind == "bmm" else {}
    method = build(kind, dims, fusion=fusion, per_run={"mix_alpha": alphas}, **warm)
    models = [PlainModel(method, run) for run in range(len(SEEDS))]
    degrees = [dict.fromkeys(dims, 0.0) for _ in SEEDS]
    optimiser = StackedOptimiser("sgd", list(method.parameters()), [Rate(rate, decay)] * len(SEEDS))
    for step in range(2):
        batch, streams = labeled_batch(dims, SIZE, seed=step), Dealt(partners(seed=step))
        gradients(method, batch, streams, step)
        optimiser.step(step)
        scored = method.modality_scores(batch.x, batch.present, batch.y, everyone())
        if kind == "bmm":
            method.mixer.end_epoch(*scored, torch.ones(len(SEEDS), dtype=torch.bool))
        else:
            assert streams.concentrations == [pytest.approx(alphas)]
        for run, model in enumerate(models):
            present, partner = of_run(batch.present, run), streams.partner[run]
            h = model.embed(of_run(batch.x, run), present)
            shares = degrees[run] if kind == "bmm" else dict.fromkeys(dims, 1 - LAMBDAS[run])
            mixed, used = hand_mixed(h, present, partner, shares, all_alike=kind == "mm")
            loss = hand_loss(model, mixed, batch.y[run], partner, hand_label_degree(used))
            for m, logits in model.alone(h).items():
                loss = loss + own_loss(logits, batch.y[run], present[m])
            model.descend(model.gradients(loss), rate, decay)
            for name, parameter in method.named_parameters():
                torch.testing.assert_close(parameter[run], model.parameters[name], rtol=1e-8, atol=1e-9, msg=name)
            sums, counts = hand_scores(model, batch, run, everyone()[run])
            means = {m: s / n for m, s, n in zip(dims, sums, counts, strict=True)}
            for m in dims:
                others = sum(v for k, v in means.items() if k != m) / (len(dims) - 1)
                degrees[run][m] = excess(alphas[run], others, means[m]) if means[m] < others else 0.0
    assert kind == "mm" or all(max(g.values()) > 0.01 for g in degrees)
