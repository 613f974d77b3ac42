"""Adapters, fusions and unimodal predictions against their formulas, written with plain matrices for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from heads.adapters import ADAPTERS
from heads.fusion import FUSIONS, Fusion
from heads.losses import add_up
from heads.method import CHOICES, Method
from heads.methods import METHODS
from heads.network import FUSED, HeadNetwork, HeadShape, Labeled, Unlabeled
from heads.randomness import RunStreams
from pipeline.bank import FeatureBank
from pipeline.hparams import STRUCTURE, resolve_hparams
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunSpec
from tests.contract import conftest as small

manifest, bank = small.manifest, small.bank  # fixtures

CPU = torch.device("cpu")
SEEDS = (3, 4, 5)
DIMS = {"video": 7, "flow": 5, "audio": 6}
PAIR = {"video": 7, "audio": 6}
CLASSES, DOMAINS = 4, 2  # a uniform prediction over four classes is exact in every precision
WITHOUT_DROPOUT = {"dropout_embedding": 0.0, "dropout_audio": 0.0, "dropout_fused": 0.0}
EXACT = {"rtol": 1e-9, "atol": 1e-12}
ADDITIVE = ("concat-linear", "sum", "decision")

every_fusion = pytest.mark.parametrize("fusion", FUSIONS)
two_and_three = pytest.mark.parametrize("dims", [PAIR, DIMS], ids=["two", "three"])


def build(
    name: str = "erm",
    dims: Mapping[str, int] = DIMS,
    per_run: Mapping[str, Sequence[float]] | None = None,
    dtype: torch.dtype = torch.float64,
    **values: float | str,
) -> Method:
    """A stack without dropout, its parameters moved away from their start, where some gradients are zero.

    Args:
        name: of the method.
        dims: feature size per modality.
        per_run: hyperparameters that differ between the runs.
        dtype: of parameters and hyperparameters.
        values: hyperparameters that all runs share.
    """
    sizes = {"fused_hidden": 8.0, "translator_hidden": 6.0}
    hparams = resolve_hparams(name, list(dims.items()), {**sizes, **WITHOUT_DROPOUT, **values})
    shape = HeadShape(
        dims=tuple(dims.items()),
        classes=CLASSES,
        domains=DOMAINS,
        adapter=str(hparams["adapter"]),
        fused_hidden=int(hparams["fused_hidden"]),
        translator_hidden=int(hparams["translator_hidden"]),
        fusion=str(hparams["fusion"]),
        adapter_width=int(hparams.get("adapter_width", 256)),
        mixing=str(hparams["mixing"]),
    )
    stacked = {}
    for key, value in hparams.items():
        if key not in STRUCTURE:
            number = float(CHOICES[key].index(str(value))) if key in CHOICES else float(value)
            stacked[key] = torch.tensor((per_run or {}).get(key, [number] * len(SEEDS)), dtype=dtype)
    method = METHODS[name].build(shape, stacked, SEEDS).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return method


class PlainModel:
    """One run of a stack as a model of its own: plain matrices without a ``runs`` axis, and leaves for autograd."""

    def __init__(self, method: Method, run: int) -> None:
        self.shape = method.shape
        self.parameters = {n: p[run].detach().clone().requires_grad_() for n, p in method.named_parameters()}

    def value(self, name: str) -> Tensor:
        return self.parameters[f"network.{name}"]

    def linear(self, layer: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.value(f"{layer}.weight").T, self.value(f"{layer}.bias")[0])

    def layer_norm(self, layer: str, x: Tensor) -> Tensor:
        gain, offset = self.value(f"{layer}.weight")[0], self.value(f"{layer}.bias")[0]
        return functional.layer_norm(x, x.shape[-1:], gain, offset, eps=1e-5)

    def adapted(self, m: str, x: Tensor) -> Tensor:
        """Embedding ``(batch, dim)`` of one modality's features."""
        kind, place = self.shape.adapter, f"adapters.{m}"
        if kind == "scale":
            return x * self.value(f"{place}.scale")[0]
        if kind == "residual":
            hidden = functional.relu(self.linear(f"{place}.reduce", self.layer_norm(f"{place}.norm", x)))
            return x + hidden @ self.value(f"{place}.expand_weight")
        if kind == "project":
            return functional.relu(self.layer_norm(f"{place}.norm", self.linear(f"{place}.linear", x)))
        return x

    def embed(self, x: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings, zero where a clip does not have the modality."""
        out = {}
        for m in self.shape.modalities:
            h = self.adapted(m, x[m])
            out[m] = torch.where(present[m][:, None], h, torch.zeros_like(h))
        return out

    def fuse(self, h: Mapping[str, Tensor]) -> Tensor:
        """Fused logits ``(batch, classes)``."""
        names, kind = list(h), self.shape.fusion
        if kind == "concat":
            hidden = functional.relu(self.linear("fusion.first", torch.cat([h[m] for m in names], 1)))
            return self.linear("fusion.last", hidden)
        if kind == "concat-linear":
            return self.linear("fusion.linear", torch.cat([h[m] for m in names], 1))
        if kind in ("sum", "decision"):
            total = torch.stack([self.linear(f"fusion.linear.{m}", h[m]) for m in names])
            return total.sum(0) if kind == "sum" else total.mean(0)
        if kind == "film":
            base, *others = names
            size = h[base].shape[1]
            condition = self.linear("fusion.condition", torch.cat([h[m] for m in others], 1))
            return self.linear("fusion.last", condition[:, :size] * h[base] + condition[:, size:])
        inner = torch.zeros(len(h[names[0]]), self.shape.fused_hidden, dtype=torch.float64)
        for a in names:
            for b in names:
                if a != b:
                    gate = torch.sigmoid(self.linear(f"fusion.gate.{a}", h[a]))
                    inner = inner + gate * self.linear(f"fusion.value.{b}", h[b])
        return self.linear("fusion.last", inner)

    def alone(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unimodal logits ``(batch, classes)``."""
        if self.shape.fusion == "concat-linear":
            weight, bias = self.value("fusion.linear.weight"), self.value("fusion.linear.bias")
            blocks = torch.split(weight, [h[m].shape[1] for m in h])
            return {m: h[m] @ block + bias / len(h) for m, block in zip(h, blocks, strict=True)}
        layer = "fusion.linear" if self.shape.fusion in ADDITIVE else "unimodal"
        return {m: self.linear(f"{layer}.{m}", h[m]) for m in h}

    def gradients(self, objective: Tensor) -> dict[str, Tensor]:
        """Gradient of every parameter; zeros for one that has no part."""
        found = torch.autograd.grad(objective, list(self.parameters.values()), allow_unused=True, retain_graph=True)
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(self.parameters.items(), found, strict=True)
        }

    def descend(self, gradients: Mapping[str, Tensor], rate: float, decay: float = 0.0) -> None:
        """One step of SGD."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p -= rate * (gradients[name] + decay * p)


def mix_all(method: Method) -> None:
    """B-MM mixes nothing before its first scores; from here on it mixes every modality."""
    if method.mixer is not None:
        method.mixer.degrees.fill_(0.4)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the clips of a mask, 0 for none."""
    return values[mask].mean() if mask.any() else values.sum() * 0


def own_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over the clips of a mask."""
    return mean_over(functional.cross_entropy(logits, labels, reduction="none"), mask)


def draw_features(dims: Mapping[str, int], size: int, seed: int, dtype: torch.dtype = torch.float64) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        m: torch.randn(len(SEEDS), size, d, generator=generator, dtype=torch.float64).to(dtype) for m, d in dims.items()
    }


def draw_present(dims: Mapping[str, int], size: int, seed: int, missing: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.rand(len(SEEDS), size, generator=generator) >= missing for m in dims}


def draw_numbers(below: int, size: int, seed: int) -> Tensor:
    return torch.randint(below, (len(SEEDS), size), generator=torch.Generator().manual_seed(seed))


def labeled_batch(
    dims: Mapping[str, int] = DIMS,
    size: int = 13,
    seed: int = 0,
    missing: float = 0.2,
    dtype: torch.dtype = torch.float64,
) -> Labeled:
    """Random labeled clips; some do not have some modality."""
    present = draw_present(dims, size, seed + 100, missing)
    y, domain = draw_numbers(CLASSES, size, seed + 200), draw_numbers(DOMAINS, size, seed + 300)
    return Labeled(draw_features(dims, size, seed, dtype), present, y, domain)


def unlabeled_batch(
    dims: Mapping[str, int] = DIMS,
    size: int = 17,
    seed: int = 1000,
    missing: float = 0.2,
    dtype: torch.dtype = torch.float64,
) -> Unlabeled:
    """Random unlabeled clips; the strong view is the weak one and noise."""
    weak, noise = draw_features(dims, size, seed, dtype), draw_features(dims, size, seed + 50, dtype)
    strong = {m: weak[m] + 0.5 * noise[m] for m in dims}
    return Unlabeled(
        weak, strong, draw_present(dims, size, seed + 100, missing), draw_numbers(DOMAINS, size, seed + 300)
    )


def of_run(values: Mapping[str, Tensor], run: int) -> dict[str, Tensor]:
    return {m: value[run] for m, value in values.items()}


def zero_where_absent(values: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {m: value * present[m][..., None] for m, value in values.items()}


@every_fusion
@two_and_three
@pytest.mark.parametrize("adapter", ["none", "project"])
def test_fused_and_unimodal_logits_are_their_formulas(fusion: str, dims: dict[str, int], adapter: str) -> None:
    width = {"adapter_width": 9} if adapter == "project" else {}
    method, batch = build(dims=dims, fusion=fusion, adapter=adapter, **width), labeled_batch(dims)
    logits = method.predict(batch.x, batch.present)
    assert set(logits) == {FUSED, *dims}
    for run in range(len(SEEDS)):
        model = PlainModel(method, run)
        h = model.embed(of_run(batch.x, run), of_run(batch.present, run))
        torch.testing.assert_close(logits[FUSED][run], model.fuse(h).detach(), **EXACT)
        for m, value in model.alone(h).items():
            torch.testing.assert_close(logits[m][run], value.detach(), **EXACT)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_is_its_formula_and_has_the_width_it_declares(adapter: str) -> None:
    width = {"adapter_width": 9} if adapter == "project" else {}
    method, batch = build(adapter=adapter, **width), labeled_batch(missing=0)
    expected_dims = dict.fromkeys(DIMS, 9) if adapter == "project" else DIMS
    assert method.network.embedding_dims == expected_dims
    for m, dim in expected_dims.items():
        found = method.network.adapters[m](batch.x[m])
        assert method.network.adapters[m].dim == dim
        assert found.shape == (len(SEEDS), 13, dim)
        for run in range(len(SEEDS)):
            torch.testing.assert_close(found[run], PlainModel(method, run).adapted(m, batch.x[m][run]), **EXACT)


@two_and_three
@pytest.mark.parametrize("fusion", ADDITIVE)
def test_the_terms_of_an_additive_fusion_are_its_unimodal_logits_and_make_up_the_fused_ones(
    fusion: str, dims: dict[str, int]
) -> None:
    method, batch = build(dims=dims, fusion=fusion), labeled_batch(dims)
    out = method.network(batch.x, batch.present)
    terms = method.network.fusion.terms(out.embeddings)
    assert method.network.fusion.additive
    assert len(method.network.unimodal) == 0
    assert tuple(terms) == tuple(dims)
    for m, term in terms.items():
        assert torch.equal(term, out.logits[m])
    total = torch.stack(list(terms.values()))
    together = total.mean(0) if fusion == "decision" else total.sum(0)
    torch.testing.assert_close(out.logits[FUSED], together, **EXACT)


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if f not in ADDITIVE])
def test_a_fusion_that_is_not_additive_has_a_head_per_modality_and_no_terms(fusion: str) -> None:
    method, batch = build(fusion=fusion), labeled_batch()
    assert not method.network.fusion.additive
    assert set(method.network.unimodal) == set(DIMS)
    with pytest.raises(TypeError, match="not additive"):
        method.network.fusion.terms(method.network.embed(batch.x, batch.present))


def vanishing(method: Method, modality: str) -> dict[str, Tensor]:
    """Where the gradient of the fused logits is zero when one modality's embedding is zero, per parameter."""
    h = draw_features(method.network.embedding_dims, 60, seed=9)
    h[modality] = torch.zeros_like(h[modality])
    logits = method.network.fuse(h)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(8), dtype=logits.dtype)
    names, parameters = zip(*method.network.fusion.named_parameters(), strict=True)
    found = torch.autograd.grad((logits * weight).sum(), parameters)
    return {name: g == 0 for name, g in zip(names, found, strict=True)}


def named_by_blocks(fusion: Fusion, modality: str) -> dict[str, Tensor]:
    """What ``blocks`` names, per parameter."""
    named = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in fusion.named_parameters()}
    for block, rows in fusion.blocks(modality):
        (name,) = (n for n, p in fusion.named_parameters() if p is block)
        named[name][:, rows] = True
    return named


@pytest.mark.parametrize(("fusion", "m"), [(f, m) for f in FUSIONS for m in DIMS if (f, m) != ("film", "video")])
def test_the_matrices_that_blocks_names_are_those_without_gradient_when_the_embedding_is_zero(
    fusion: str, m: str
) -> None:
    method = build(fusion=fusion)
    silent, named = vanishing(method, m), named_by_blocks(method.network.fusion, m)
    assert any(mask.any() for mask in named.values())
    for name in silent:
        if name.endswith("weight"):
            assert torch.equal(silent[name], named[name]), name


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "film"])
def test_blocks_names_exactly_what_has_no_gradient_when_the_embedding_is_zero(fusion: str) -> None:
    method = build(fusion=fusion)
    for m in DIMS:
        silent, named = vanishing(method, m), named_by_blocks(method.network.fusion, m)
        for name in silent:
            assert torch.equal(silent[name], named[name]), (m, name)


def test_blocks_of_film_are_the_conditions_rows_and_for_the_modulated_modality_the_last_layer() -> None:
    """The last layer reads beta, too; it is named all the same, as nothing else multiplies what is modulated."""
    method = build(fusion="film")
    base, *others = DIMS
    for m in others:
        silent, named = vanishing(method, m), named_by_blocks(method.network.fusion, m)
        for name in silent:
            assert torch.equal(silent[name], named[name]), (m, name)
    named = named_by_blocks(method.network.fusion, base)
    assert {name for name, mask in named.items() if mask.any()} == {"last.weight"}
    assert named["last.weight"].all()


@every_fusion
@pytest.mark.parametrize("gates", [(1.0, 0.0, 0.5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_unimodal_gradient_scales_what_the_unimodal_losses_send_into_what_they_share(
    fusion: str, gates: tuple[float, ...]
) -> None:
    """Their own heads learn in full, the values and the gradient of the fused loss stay as they are."""
    method, batch = build(fusion=fusion, per_run={"unimodal_gradient": gates}), labeled_batch()
    terms = method.losses(batch, None, None, 0)
    names, parameters = zip(*method.named_parameters(), strict=True)
    found = {}
    for head in (FUSED, *DIMS):
        term = terms[f"labeled/{head}"]
        grads = [None] * len(names)
        if term.requires_grad:
            grads = torch.autograd.grad(term.sum(), parameters, retain_graph=True, allow_unused=True)
        found[head] = dict(zip(names, grads, strict=True))
    for run, gate in enumerate(gates):
        model = PlainModel(method, run)
        here = of_run(batch.present, run)
        h = model.embed(of_run(batch.x, run), here)
        everyone = torch.ones_like(batch.y[run], dtype=torch.bool)
        losses = {m: own_loss(logits, batch.y[run], here[m]) for m, logits in model.alone(h).items()}
        losses[FUSED] = own_loss(model.fuse(h), batch.y[run], everyone)
        for head, loss in losses.items():
            torch.testing.assert_close(terms[f"labeled/{head}"][run], loss, **EXACT)
            for name, gradient in model.gradients(loss).items():
                shared = head != FUSED and not name.startswith("network.unimodal.")
                g = found[head][name]
                ours = torch.zeros_like(gradient) if g is None else g[run]
                torch.testing.assert_close(
                    ours, gradient * gate if shared else gradient, **EXACT, msg=f"{head}: {name}"
                )


@every_fusion
@pytest.mark.parametrize("name", METHODS)
def test_terms_are_finite_and_every_parameter_of_the_network_gets_a_gradient(name: str, fusion: str) -> None:
    changes = {"threshold": 0.4} if "threshold" in METHODS[name].hparams else {}
    method = build(name, fusion=fusion, dtype=torch.float32, **changes)
    mix_all(method)
    unlabeled = unlabeled_batch(dtype=torch.float32) if method.uses_unlabeled else None
    terms = method.losses(labeled_batch(dtype=torch.float32), unlabeled, RunStreams(SEEDS, CPU), 1)
    for term, value in terms.items():
        assert value.shape == (len(SEEDS),), term
        assert value.isfinite().all(), term
    add_up(terms.values()).sum().backward()
    for parameter, value in method.network.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.flatten(1).any(1).all(), parameter


@every_fusion
@pytest.mark.parametrize("name", METHODS)
def test_what_stands_in_the_row_of_an_absent_modality_is_irrelevant(name: str, fusion: str) -> None:
    changes = {"threshold": 0.4} if "threshold" in METHODS[name].hparams else {}
    labeled, unlabeled = labeled_batch(missing=0.4), unlabeled_batch(missing=0.4)
    outcomes = []
    for seed in (None, 77):
        method = build(name, fusion=fusion, dropout_embedding=0.5, **changes)
        mix_all(method)

        def filled(
            x: Mapping[str, Tensor], present: Mapping[str, Tensor], seed: int | None = seed
        ) -> dict[str, Tensor]:
            size = next(iter(x.values())).shape[1]
            other = draw_features(DIMS, size, seed) if seed else {m: torch.zeros_like(v) for m, v in x.items()}
            return {m: torch.where(present[m][..., None], x[m], 5 * other[m]) for m in x}

        first = Labeled(filled(labeled.x, labeled.present), labeled.present, labeled.y, labeled.domain)
        there = unlabeled.present
        second = Unlabeled(filled(unlabeled.weak, there), filled(unlabeled.strong, there), there, unlabeled.domain)
        terms = method.losses(first, second if method.uses_unlabeled else None, RunStreams(SEEDS, CPU), 1)
        method.combine(method.objectives(terms))
        predicted = method.predict(second.weak, there)
        everyone = torch.ones_like(first.y, dtype=torch.bool)
        scores, counts = method.modality_scores(first.x, first.present, first.y, everyone)
        gradients = {f"gradient/{n}": p.grad for n, p in method.named_parameters() if p.grad is not None}
        outcomes.append({**terms, **predicted, **gradients, "scores": scores, "counts": counts})
    assert outcomes[0].keys() == outcomes[1].keys()
    for key, value in outcomes[0].items():
        assert torch.equal(value, outcomes[1][key]), key


@every_fusion
@pytest.mark.parametrize("size", [1, 7, 61])
def test_fused_logits_are_bit_for_bit_the_same_alone_and_in_a_stack(fusion: str, size: int) -> None:
    seeds, dims = tuple(range(20)), {"video": 13, "flow": 10, "audio": 7}
    shape = HeadShape(
        tuple(dims.items()), CLASSES, DOMAINS, "none", fused_hidden=37, translator_hidden=1, fusion=fusion
    )
    stack = HeadNetwork(shape, len(seeds))
    stack.initialise(seeds)
    h = {m: 3 * torch.randn(len(seeds), size, d, generator=torch.Generator().manual_seed(d)) for m, d in dims.items()}
    together = stack.fuse(h)
    for run, seed in enumerate(seeds):
        single = HeadNetwork(shape, 1)
        single.initialise([seed])
        assert torch.equal(single.fuse({m: x[run : run + 1] for m, x in h.items()})[0], together[run])


@every_fusion
@pytest.mark.parametrize("method", ["bmm", "ogm-ge", "ssmdg"])
def test_a_run_is_bit_for_bit_the_same_alone_and_in_a_stack(
    manifest: Manifest, bank: FeatureBank, method: str, fusion: str
) -> None:
    def spec(seed: int, target: str, budget: str = "3", **hparams: float) -> RunSpec:
        values = {"fusion": fusion, "fused_hidden": 37.0, "learning_rate": 1e-2, **hparams}
        return small.make_spec(
            manifest, bank, method, target, seed, budget=budget, steps=6, eval_every=6, hparams=values
        )

    specs = [
        spec(0, "studio"),
        spec(1, "yard", dropout_fused=0.1),
        spec(2, "kitchen", budget="5"),
        spec(3, "studio", unimodal_gradient=0.5),
        spec(4, "yard", weight_decay=0.1),
    ]
    stack = StackTrainer(specs, manifest, bank)
    together = stack.train(lambda amount: None)
    for run in range(len(specs)):
        single = StackTrainer([specs[run]], manifest, bank)
        alone = single.train(lambda amount: None)[0]
        assert alone.curves == together[run].curves
        for name, value in single.method.state_dict().items():
            assert torch.equal(value[0], stack.method.state_dict()[name][run]), name


def test_the_loss_of_one_run_is_another_than_of_its_neighbours(manifest: Manifest, bank: FeatureBank) -> None:
    """The test above would pass for a stack whose runs are all the same."""
    specs = [small.make_spec(manifest, bank, "erm", seed=s, steps=4, hparams={"fusion": "film"}) for s in range(3)]
    results = StackTrainer(specs, manifest, bank).train(lambda amount: None)
    assert len({tuple(r.curves["loss/labeled/fused"]) for r in results}) == len(specs)
