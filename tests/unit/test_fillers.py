"""What stands in for a missing modality, against the same worked out in numpy for one clip at a time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.fillers import FILLERS, FillerState, predict_missing
from heads.layers import StackedLinear, initialise, unit
from heads.network import FUSED, HeadNetwork, HeadShape
from heads.translators import build_translators

Vector = NDArray[np.float64]

RUNS, CLASSES, HIDDEN = 2, 4, 9
SIZES = {"video": 6, "flow": 5, "audio": 3}
SETS = [("video", "audio"), ("video", "flow", "audio")]
COPIES = 3  # clips per subset of present modalities

every_filler = pytest.mark.parametrize("filler", FILLERS)
every_set = pytest.mark.parametrize("names", SETS, ids="+".join)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(
    names: tuple[str, ...], adapter: str = "scale", fusion: str = "concat", dtype: torch.dtype = torch.float64
) -> HeadNetwork:
    """Two runs with different parameters, none of them zero or one."""
    shape = HeadShape(tuple((m, SIZES[m]) for m in names), CLASSES, 2, adapter, 7, HIDDEN, fusion, adapter_width=8)
    network = HeadNetwork(shape, RUNS)
    network.initialise(range(RUNS))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator(1))
    return network.to(dtype)


def translators(network: HeadNetwork, seed: int) -> nn.ModuleDict:
    made = build_translators(RUNS, network.embedding_dims, HIDDEN)
    initialise(made, range(seed, seed + RUNS))
    return made.to(next(network.parameters()).dtype)


def state_of(network: HeadNetwork) -> FillerState:
    """Statistics that no data gave: every filler must use the one it is meant to use."""
    dtype, dims = next(network.parameters()).dtype, network.embedding_dims

    def draw(seed: int, *shape: int) -> Tensor:
        return torch.randn(RUNS, *shape, generator=generator(seed), dtype=torch.float64).to(dtype)

    prototypes = {m: unit(draw(3 + i, CLASSES, d)) for i, (m, d) in enumerate(dims.items())}
    for vectors in prototypes.values():
        vectors[:, -1] = 0  # a class that was never seen
    return FillerState(
        mean={m: draw(10 + i, d) for i, (m, d) in enumerate(dims.items())},
        length={m: draw(20 + i).abs() + 0.5 for i, m in enumerate(dims)},
        prototypes=prototypes,
        translators=translators(network, 40),
        finetuned=translators(network, 50),
    )


def clips(network: HeadNetwork) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features and presence of a batch with every subset of present modalities, in another order for the second run."""
    names = network.modalities
    subsets = torch.tensor([s for s in product([True, False], repeat=len(names)) for _ in range(COPIES)])
    order = torch.stack([torch.arange(len(subsets)), torch.randperm(len(subsets), generator=generator(7))])
    present = {m: subsets[order, k] for k, m in enumerate(names)}
    dtype = next(network.parameters()).dtype
    x = {
        m: torch.randn(RUNS, len(subsets), SIZES[m], generator=generator(30 + k), dtype=torch.float64).to(dtype)
        for k, m in enumerate(names)
    }
    return x, present


def softmax(logits: Vector) -> Vector:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def linear(layer: StackedLinear, run: int, x: Vector) -> Vector:
    return x @ layer.weight[run].detach().numpy() + layer.bias[run, 0].detach().numpy()


def directed(x: Vector) -> Vector:
    """A vector of length one; zero stays zero."""
    length = np.sqrt((x**2).sum())
    return x / length if length > 0 else x


def translated(found: nn.ModuleDict, run: int, source: str, target: str, start: Vector) -> Vector:
    translator = found[f"{source}_to_{target}"]
    h = np.maximum(linear(translator.first, run, start), 0)
    h = np.maximum(linear(translator.second, run, h), 0)
    return linear(translator.last, run, h)


def average(parts: list[Vector], size: int) -> Vector:
    return np.mean(parts, axis=0) if parts else np.zeros(size)


def by_hand(network: HeadNetwork, state: FillerState, filler: str, run: int, x: Mapping[str, Vector]) -> Vector:
    """Class probabilities of one clip; ``x`` holds the features of its present modalities."""
    fusion = network.fusion
    z = {m: value * network.adapters[m].scale[run, 0].detach().numpy() for m, value in x.items()}
    heads = fusion.linear if fusion.additive else network.unimodal
    votes = average([softmax(linear(heads[m], run, z[m])) for m in z], CLASSES)
    if filler == "renormalise":
        return votes
    full = {}
    for name in network.modalities:
        length = float(state.length[name][run])
        if name in z:
            full[name] = z[name]
        elif filler == "zero":
            full[name] = np.zeros(SIZES[name])
        elif filler == "mean":
            full[name] = state.mean[name][run].numpy()
        elif filler == "prototype":
            weighted = [votes[c] * state.prototypes[name][run, c].numpy() for c in range(CLASSES)]
            full[name] = directed(sum(weighted[1:], weighted[0])) * length
        elif filler == "translate":
            parts = [translated(state.translators, run, m, name, directed(z[m])) for m in z]
            full[name] = average([directed(part) * length for part in parts], SIZES[name])
        elif filler == "translate-raw":
            parts = [translated(state.translators, run, m, name, directed(z[m])) for m in z]
            full[name] = average(parts, SIZES[name])
        elif filler == "finetuned":
            full[name] = average([translated(state.finetuned, run, m, name, z[m]) for m in z], SIZES[name])
    if fusion.additive:
        return softmax(np.sum([linear(fusion.linear[m], run, value) for m, value in full.items()], axis=0))
    joined = np.concatenate([full[m] for m in network.modalities])
    return softmax(linear(fusion.last, run, np.maximum(linear(fusion.first, run, joined), 0)))


@every_filler
@every_set
@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_every_filler_is_what_its_name_says(filler: str, names: tuple[str, ...], fusion: str) -> None:
    network = build(names, fusion=fusion)
    state = state_of(network)
    x, present = clips(network)
    found = predict_missing(network, x, present, filler, state)
    assert found.shape == (RUNS, COPIES * 2 ** len(names), CLASSES)
    for run, clip in product(range(RUNS), range(found.shape[1])):
        here = {m: x[m][run, clip].numpy() for m in names if present[m][run, clip]}
        expected = by_hand(network, state, filler, run, here)
        np.testing.assert_allclose(found[run, clip].numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=f"{list(here)}")


@every_set
def test_no_two_fillers_are_the_same(names: tuple[str, ...]) -> None:
    """Where something is missing and something is not; otherwise the test above could mix them up."""
    network = build(names)
    state = state_of(network)
    x, present = clips(network)
    number = torch.stack(list(present.values())).sum(0)
    partial = (number > 0) & (number < len(names))
    found = {filler: predict_missing(network, x, present, filler, state)[partial] for filler in FILLERS}
    for one, two in product(FILLERS, repeat=2):
        assert one == two or (found[one] - found[two]).abs().max() > 1e-3, (one, two)


@every_filler
@every_set
@pytest.mark.parametrize("adapter", ["none", "residual", "project"])
def test_with_everything_present_the_fused_prediction_is_the_plain_one(
    filler: str, names: tuple[str, ...], adapter: str
) -> None:
    network = build(names, adapter, dtype=torch.float32)
    x, present = clips(network)
    everything = {m: torch.ones_like(here) for m, here in present.items()}
    found = predict_missing(network, x, everything, filler, state_of(network))
    with torch.no_grad():
        logits = network(x, everything).logits
    if filler == "renormalise":
        alone = torch.stack([torch.softmax(logits[m], -1) for m in names]).mean(0)
        torch.testing.assert_close(found, alone)
        assert not torch.allclose(found, torch.softmax(logits[FUSED], -1), atol=1e-2)
    else:
        assert torch.equal(found, torch.softmax(logits[FUSED], -1))


@every_filler
@every_set
@pytest.mark.parametrize("adapter", ["none", "residual", "project"])
def test_what_stands_in_the_row_of_a_missing_modality_is_ignored(
    filler: str, names: tuple[str, ...], adapter: str
) -> None:
    network = build(names, adapter, dtype=torch.float32)
    state = state_of(network)
    x, present = clips(network)
    noise = {m: torch.randn(value.shape, generator=generator(9)) * 1e4 for m, value in x.items()}
    other = {m: torch.where(present[m][..., None], value, noise[m]) for m, value in x.items()}
    assert any(not torch.equal(other[m], x[m]) for m in names)
    found = predict_missing(network, x, present, filler, state)
    assert torch.equal(found, predict_missing(network, other, present, filler, state))


def test_a_missing_modality_may_hold_numbers_that_are_none() -> None:
    """As the cache keeps them; the bank replaces them by zeros today."""
    network = build(SETS[1], dtype=torch.float32)
    x, present = clips(network)
    other = {m: value.masked_fill(~present[m][..., None], torch.nan) for m, value in x.items()}
    for filler in FILLERS:
        assert predict_missing(network, other, present, filler, state_of(network)).isfinite().all(), filler


@every_filler
@every_set
@pytest.mark.parametrize("adapter", ["none", "residual", "project"])
def test_a_clip_without_anything_stays_finite(filler: str, names: tuple[str, ...], adapter: str) -> None:
    network = build(names, adapter, dtype=torch.float32)
    x, present = clips(network)
    nothing = {m: torch.zeros_like(here) for m, here in present.items()}
    zero = {m: torch.zeros_like(value) for m, value in x.items()}
    found = predict_missing(network, zero, nothing, filler, state_of(network))
    assert found.isfinite().all()
    total = 0.0 if filler == "renormalise" else 1.0
    torch.testing.assert_close(found.sum(-1), torch.full_like(found[..., 0], total))


@every_filler
def test_no_gradient_is_kept(filler: str) -> None:
    network = build(SETS[1])
    x, present = clips(network)
    assert not predict_missing(network, x, present, filler, state_of(network)).requires_grad


def test_a_stack_has_the_fillers_that_it_has_translators_for() -> None:
    state = state_of(build(SETS[0]))
    base = ["zero", "mean", "prototype", "renormalise"]
    known = (state.mean, state.length, state.prototypes)
    assert FillerState(*known).fillers() == base
    assert set(FillerState(*known, translators=state.translators).fillers()) == {*base, "translate", "translate-raw"}
    assert set(FillerState(*known, finetuned=state.finetuned).fillers()) == {*base, "finetuned"}
    assert state.fillers() == list(FILLERS)
