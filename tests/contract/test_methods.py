"""What every method keeps with every adapter: named finite terms, gradients where they belong, limiting cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heads.adapters import ADAPTERS
from heads.method import Method
from heads.methods import METHODS
from heads.network import FUSED, HeadShape, Labeled, Unlabeled
from heads.optimiser import Rate, StackedOptimiser
from heads.randomness import RunStreams
from pipeline.classical import CLASSICAL
from pipeline.hparams import resolve_hparams
from pipeline.reports.settings import METHOD_NAMES, SELECTION_RULES, UPPER_BOUNDS
from pipeline.select import SELECTION
from tests.contract.conftest import tensors

CPU = torch.device("cpu")
DIMS = {"video": 12, "flow": 10, "audio": 8}
HEADS = (FUSED, *DIMS)
SEEDS = (3, 4)
DOMAINS = 2
LABELED = {f"labeled/{h}" for h in HEADS}
CONSISTENT = LABELED | {f"consistency/{h}" for h in HEADS}
EXPECTED_TERMS = {
    **dict.fromkeys(("erm", "supervised", "mm", "bmm", "ogm-ge"), LABELED),
    **dict.fromkeys(("fixmatch", "pseudolabel"), CONSISTENT),
    "freematch": CONSISTENT | {"fairness"},
    "ssmdg": {f"{kind}/{h}" for kind in ("labeled", "consensus") for h in HEADS}
    | {f"gce/{h}/{view}" for h in HEADS for view in ("weak", "strong")}
    | {"prototype", "translation/weak", "translation/strong"},
}

every_method = pytest.mark.parametrize("name", METHODS)
every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build(
    name: str,
    adapter: str = "residual",
    threshold: Iterable[float] = (0.0, 0.0),
    classes: int = 3,
    noise: float = 0.0,
    **changes: float | str,
) -> Method:
    """A stack of two runs; ``noise`` moves all parameters away from their start, where some gradients are zero."""
    values = {**resolve_hparams(name, list(DIMS.items()), {}), **changes}
    shape = HeadShape(
        tuple(DIMS.items()),
        classes,
        DOMAINS,
        adapter,
        fused_hidden=16,
        translator_hidden=14,
        fusion=str(values["fusion"]),
        adapter_width=9,
        mixing=str(values["mixing"]),
    )
    hparams = tensors(values, len(SEEDS))
    if "threshold" in hparams:
        hparams["threshold"] = torch.tensor(list(threshold))
    method = METHODS[name].build(shape, hparams, SEEDS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return method


def batches(size: int = 40, classes: int = 3) -> tuple[Labeled, Unlabeled]:
    """A labeled and an unlabeled batch in which every modality is present."""
    generator = torch.Generator().manual_seed(2)

    def features() -> dict[str, Tensor]:
        return {m: torch.randn(len(SEEDS), size, dim, generator=generator) for m, dim in DIMS.items()}

    def integers(below: int) -> Tensor:
        return torch.randint(below, (len(SEEDS), size), generator=generator)

    present = {m: torch.ones(len(SEEDS), size, dtype=torch.bool) for m in DIMS}
    labeled = Labeled(features(), present, integers(classes), integers(DOMAINS))
    return labeled, Unlabeled(features(), features(), present, integers(DOMAINS))


def without(x: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Tensor]:
    return {m: value * present[m][..., None] for m, value in x.items()}


def only(batch: tuple[Labeled, Unlabeled], present: dict[str, Tensor]) -> tuple[Labeled, Unlabeled]:
    """The batch with this presence; absent features are zero, as the bank gives them."""
    labeled, unlabeled = batch
    return (
        replace(labeled, x=without(labeled.x, present), present=present),  # type: ignore[arg-type]
        replace(
            unlabeled,
            weak=without(unlabeled.weak, present),  # type: ignore[arg-type]
            strong=without(unlabeled.strong, present),  # type: ignore[arg-type]
            present=present,
        ),
    )


def losses(method: Method, batch: tuple[Labeled, Unlabeled], dropout: bool = True) -> dict[str, Tensor]:
    streams = RunStreams(SEEDS, CPU) if dropout else None
    return method.losses(batch[0], batch[1] if method.uses_unlabeled else None, streams, step=1)


def gradients(method: Method, batch: tuple[Labeled, Unlabeled]) -> dict[str, Tensor]:
    method.combine(method.objectives(losses(method, batch)))
    found = {}
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return found


@every_method
@every_adapter
def test_terms_are_named_finite_and_one_per_run(name: str, adapter: str) -> None:
    terms = losses(build(name, adapter), batches())
    assert terms.keys() == EXPECTED_TERMS[name]
    for term, value in terms.items():
        assert value.shape == (len(SEEDS),), term
        assert value.isfinite().all(), term
        assert (value != 0).all(), term


@every_method
def test_every_term_is_in_the_objective_with_a_positive_weight(name: str) -> None:
    method = build(name)
    terms = {term: torch.ones(len(SEEDS), requires_grad=True) for term in EXPECTED_TERMS[name]}
    torch.stack(method.objectives(terms)).sum().backward()
    for term, value in terms.items():
        assert value.grad is not None, term
        assert (value.grad > 0).all(), term


def belongs(term: str, parameter: str) -> bool:
    """Whether a term is meant to move a parameter."""
    kind, *rest = term.split("/")
    if kind == "fairness":
        return parameter.startswith(("network.adapters.", "network.fusion."))
    if kind == "prototype":
        return parameter.startswith("network.adapters.")
    if kind == "translation":
        return parameter.startswith(("network.adapters.", "translators."))
    head = rest[0]
    if head == FUSED:
        return parameter.startswith(("network.adapters.", "network.fusion."))
    return parameter.startswith((f"network.adapters.{head}.", f"network.unimodal.{head}."))


def moved(method: Method, value: Tensor) -> dict[str, Tensor]:
    """For every parameter whether a term's gradient is not zero, per run ``(runs,)``."""
    names, parameters = zip(*method.named_parameters(), strict=True)
    if not value.requires_grad:
        return {name: torch.zeros(len(SEEDS), dtype=torch.bool) for name in names}
    found = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros(len(SEEDS), dtype=torch.bool) if g is None else g.flatten(1).any(1)
        for name, g in zip(names, found, strict=True)
    }


@every_method
@every_adapter
def test_every_term_moves_what_it_should_and_nothing_else(name: str, adapter: str) -> None:
    """With threshold 0 some clips are in consensus and some are not, so that no term is empty."""
    method = build(name, adapter, noise=0.1)
    for term, value in losses(method, batches()).items():
        for parameter, hit in moved(method, value).items():
            assert hit.tolist() == [belongs(term, parameter)] * len(SEEDS), (term, parameter)


@pytest.mark.parametrize("only_modality", DIMS)
def test_translation_starts_from_present_modalities(only_modality: str) -> None:
    method = build("ssmdg", noise=0.1)
    labeled, unlabeled = batches()
    present = {m: torch.full_like(here, m == only_modality) for m, here in unlabeled.present.items()}
    _, unlabeled = only((labeled, unlabeled), present)
    starts = (f"translators.{only_modality}_to_", f"network.adapters.{only_modality}.")
    terms = losses(method, (labeled, unlabeled))
    for view in ("weak", "strong"):
        for parameter, hit in moved(method, terms[f"translation/{view}"]).items():
            assert hit.tolist() == [parameter.startswith(starts)] * len(SEEDS), (view, parameter)


@every_method
def test_a_run_is_not_moved_by_another_runs_loss(name: str) -> None:
    method = build(name, noise=0.1)
    for term, value in losses(method, batches()).items():
        found = torch.autograd.grad(value[0], list(method.parameters()), retain_graph=True, allow_unused=True)
        assert not any(g[1].any() for g in found if g is not None), term


def first_clip_without_media(batch: tuple[Labeled, Unlabeled]) -> tuple[Labeled, Unlabeled]:
    present = {m: here.clone() for m, here in batch[0].present.items()}
    for here in present.values():
        here[:, 0] = False
    return only(batch, present)


def no_audio(batch: tuple[Labeled, Unlabeled]) -> tuple[Labeled, Unlabeled]:
    return only(batch, {m: torch.full_like(here, m != "audio") for m, here in batch[0].present.items()})


def nothing_at_all(batch: tuple[Labeled, Unlabeled]) -> tuple[Labeled, Unlabeled]:
    return only(batch, {m: torch.zeros_like(here) for m, here in batch[0].present.items()})


def scaled(factor: float) -> Callable[[tuple[Labeled, Unlabeled]], tuple[Labeled, Unlabeled]]:
    def change(batch: tuple[Labeled, Unlabeled]) -> tuple[Labeled, Unlabeled]:
        labeled, unlabeled = batch
        x, weak, strong = (
            {m: value * factor for m, value in part.items()} for part in (labeled.x, unlabeled.weak, unlabeled.strong)
        )
        return replace(labeled, x=x), replace(unlabeled, weak=weak, strong=strong)

    return change


def zero_unlabeled(batch: tuple[Labeled, Unlabeled]) -> tuple[Labeled, Unlabeled]:
    return batch[0], scaled(0)(batch)[1]


def one_domain(batch: tuple[Labeled, Unlabeled]) -> tuple[Labeled, Unlabeled]:
    """The other source domain has no labels at all."""
    return replace(batch[0], domain=torch.zeros_like(batch[0].domain)), batch[1]


def one_label(batch: tuple[Labeled, Unlabeled]) -> tuple[Labeled, Unlabeled]:
    return replace(batch[0], y=torch.ones_like(batch[0].y)), batch[1]


CASES: dict[str, tuple[dict[str, int], tuple[float, float], Callable | None]] = {
    "a clip without any modality": ({}, (0.0, 0.0), first_clip_without_media),
    "a batch without audio": ({}, (0.0, 0.0), no_audio),
    "no modality anywhere": ({}, (0.0, 0.0), nothing_at_all),
    "an empty consensus": ({}, (2.0, 2.0), None),
    "a batch of one": ({"size": 1}, (0.0, 0.0), None),
    "a batch of one without any modality": ({"size": 1}, (0.0, 0.0), first_clip_without_media),
    "a single class": ({"classes": 1}, (0.0, 0.0), None),
    "a domain without labels": ({}, (0.0, 0.0), one_domain),
    "one label in the batch": ({}, (0.0, 0.0), one_label),
    "zero features": ({}, (0.0, 0.0), scaled(0)),
    "zero unlabeled features": ({}, (0.0, 0.0), zero_unlabeled),
    "huge features": ({}, (0.0, 0.0), scaled(1e4)),
}


@every_method
@every_adapter
@pytest.mark.parametrize("case", CASES)
def test_training_stays_finite_with(name: str, adapter: str, case: str) -> None:
    sizes, threshold, change = CASES[case]
    method = build(name, adapter, threshold, sizes.get("classes", 3))
    batch = batches(**sizes)
    batch = change(batch) if change else batch
    optimiser = StackedOptimiser("adamw", list(method.parameters()), [Rate(1e-2), Rate(1e-2)])
    for _ in range(2):
        assert all(value.isfinite().all() for value in losses(method, batch).values())
        for parameter, gradient in gradients(method, batch).items():
            assert gradient.isfinite().all(), parameter
        optimiser.step()
    for parameter, value in method.state_dict().items():
        assert value.isfinite().all(), parameter
    for head, logits in method.predict(batch[1].weak, batch[1].present).items():
        assert logits.isfinite().all(), head


@every_method
def test_prediction_has_no_dropout_and_a_row_stands_alone(name: str) -> None:
    method = build(name, noise=0.1)
    _, batch = batches()
    together = method.predict(batch.weak, batch.present)
    assert together.keys() == set(HEADS)
    alone = method.predict(
        {m: x[:, 7:8] for m, x in batch.weak.items()}, {m: p[:, 7:8] for m, p in batch.present.items()}
    )
    for head, logits in together.items():
        assert logits.shape == (len(SEEDS), 40, 3)
        assert torch.allclose(logits[:, 7:8], alone[head], rtol=1e-5, atol=1e-6)


@every_method
def test_an_absent_modality_says_nothing(name: str) -> None:
    """Whatever stands in the row of an absent modality, the fused prediction is the same."""
    method = build(name, noise=0.1)
    _, batch = batches()
    present = {**batch.present, "flow": torch.zeros_like(batch.present["flow"])}
    noise = {**batch.weak, "flow": batch.weak["flow"] + 3}
    assert torch.equal(method.predict(batch.weak, present)[FUSED], method.predict(noise, present)[FUSED])
    assert not torch.equal(method.predict(batch.weak, batch.present)[FUSED], method.predict(noise, present)[FUSED])


@every_adapter
@pytest.mark.parametrize("name", [name for name, recipe in METHODS.items() if "threshold" in recipe.hparams])
def test_a_run_that_accepts_nothing_has_the_gradients_of_labeled_only(name: str, adapter: str) -> None:
    """The run beside it accepts clips, and so has others."""
    plain = gradients(build("erm", adapter, noise=0.1), batches())
    found = gradients(build(name, adapter, threshold=(2.0, 0.0), noise=0.1), batches())
    assert plain.keys() <= found.keys()
    for parameter, gradient in found.items():
        expected = plain[parameter][0] if parameter in plain else torch.zeros_like(gradient[0])
        assert torch.equal(gradient[0], expected), parameter
        if parameter.startswith("network.fusion."):
            assert not torch.equal(gradient[1], plain[parameter][1]), parameter


def test_every_method_and_selection_rule_has_its_name_in_the_report() -> None:
    assert {name: recipe.title for name, recipe in (METHODS | CLASSICAL).items()} == METHOD_NAMES
    assert set(SELECTION) == set(SELECTION_RULES)
    assert {name for name, recipe in METHODS.items() if recipe.all_labels} == UPPER_BOUNDS
