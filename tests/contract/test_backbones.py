"""What every frozen backbone keeps: its declared shape, the same numbers every time, and rows that stand alone.

Networks that need a file run with random weights here, and at 64 pixels, which their pooling allows.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from extractors.backbone import BACKBONES, DEFAULT_BACKBONES, PRESETS, all_published
from extractors.encoder import POOL, Backbone, Encoder, LastStage, Tap
from extractors.inputs import FrameInput
from extractors.loading import Weights, load_encoder, load_last_stage, load_network, random_weights

CPU = torch.device("cpu")
FLOAT16_LIMIT = 65504.0
SIDE = 64
ACROSS_BATCHES = 1e-5  # of the largest value: convolutions may add in another order
BFLOAT16_COSINE = 0.999  # at least, with random weights
# Of one code and other sizes or weights than their siblings: described here, not computed.
SIBLINGS = ("slowfast-r50", "slowfast-r101-fair")
COMPUTED = {name: b for name, b in BACKBONES.items() if name not in SIBLINGS}
STAGED = [name for name, b in COMPUTED.items() if b.staged]


def weights_of(backbone: Backbone) -> Weights:
    if backbone.builtin:
        return Weights(backbone.builtin, backbone.builtin_note)
    return random_weights(0)


def noise(backbone: Backbone, rows: int) -> Tensor:
    shape = backbone.row_shape(SIDE)
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=COMPUTED.values(), ids=COMPUTED)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.param
    return found


@pytest.fixture(scope="module")
def encoder(backbone: Backbone) -> Encoder:
    torch.set_num_threads(1)
    return load_encoder(backbone.name, weights_of(backbone), "cpu")


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_the_table_names_what_it_holds(backbone: Backbone) -> None:
    assert BACKBONES[backbone.name] is backbone
    assert backbone.modality in DEFAULT_BACKBONES
    for preset in PRESETS.values():
        assert BACKBONES[preset[backbone.modality]].modality == backbone.modality
    for text in (backbone.licence, backbone.source):
        assert text.strip()
    assert bool(backbone.builtin) != bool(backbone.published)
    assert len({p.name for p in backbone.published}) == len(backbone.published)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_parameters_and_operations_are_as_the_table_says(backbone: Backbone) -> None:
    with torch.device("cpu" if backbone.builtin else "meta"):  # nothing is computed on "meta"
        network = backbone.build().eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *backbone.row_shape()))
    assert sum(p.numel() for p in network.parameters()) == backbone.params
    assert counter.get_total_flops() / 1e9 == pytest.approx(backbone.gflops, rel=0.006, abs=0.0006)


def test_features_have_the_declared_shape(backbone: Backbone, encoder: Encoder) -> None:
    features = encoder(noise(backbone, 2))
    assert features.shape == (2, backbone.dim)
    assert features.dtype == torch.float32
    assert features.device == CPU


def test_the_clean_view_gives_the_same_dim(backbone: Backbone) -> None:
    if isinstance(backbone.input, FrameInput):
        with torch.device("cpu" if backbone.builtin else "meta"):
            clean = torch.zeros(1, *backbone.row_shape(backbone.input.clean_size))
            assert backbone.build().eval()(clean).shape == (1, backbone.dim)


def test_two_builds_are_equal_whatever_the_global_seed(backbone: Backbone, encoder: Encoder) -> None:
    torch.manual_seed(2)
    again = load_encoder(backbone.name, weights_of(backbone), "cpu")
    first, second = encoder.network.state_dict(), again.network.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    x = noise(backbone, 1)
    assert torch.equal(encoder(x), again(x))


def test_it_is_frozen(backbone: Backbone, encoder: Encoder) -> None:
    assert not any(module.training for module in encoder.network.modules())
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    x = noise(backbone, 2)
    features = encoder(x)
    assert not features.requires_grad
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(x, noise(backbone, 2))  # and its input is left alone


def test_a_row_does_not_depend_on_its_batch(backbone: Backbone, encoder: Encoder) -> None:
    x = noise(backbone, 3)
    x[2] *= 100  # a loud neighbour
    alone = torch.cat([encoder(row[None]) for row in x])
    together, swapped = encoder(x), encoder(x.flip(0)).flip(0)
    if backbone.rows_on_cpu == 1:
        assert torch.equal(together, alone)
        assert torch.equal(swapped, alone)
    at_once = Encoder(encoder.network, CPU)(x)  # as on a GPU
    for found in (together, swapped, at_once):
        limit = ACROSS_BATCHES * alone.abs().amax(1)
        assert ((found - alone).abs().amax(1) <= limit).all()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 5.0])
def test_features_are_finite_in_float16_range(backbone: Backbone, encoder: Encoder, scale: float) -> None:
    features = encoder(noise(backbone, 1) * scale + (scale == 0.0) * 2.0)
    assert features.isfinite().all()
    assert features.abs().max() < FLOAT16_LIMIT


def test_different_inputs_give_different_features(backbone: Backbone, encoder: Encoder) -> None:
    features = encoder(noise(backbone, 2))
    difference = (features[0] - features[1]).abs()
    assert (difference > 0).float().mean() > 0.3


def test_bfloat16_stays_close(backbone: Backbone, encoder: Encoder) -> None:
    if not backbone.bfloat16:
        pytest.skip("float32 only")
    x = noise(backbone, 1)
    low = Encoder(load_network(backbone, weights_of(backbone)), CPU, precision="bfloat16")
    exact, close = encoder(x), low(x)
    assert close.dtype == torch.float32
    assert torch.cosine_similarity(exact, close).min() > BFLOAT16_COSINE
    assert not torch.equal(exact, close)


@pytest.mark.parametrize("name", STAGED)
def test_the_last_stage_finishes_what_the_tap_took(name: str) -> None:
    backbone = BACKBONES[name]
    torch.set_num_threads(1)
    wanted = backbone.input
    if isinstance(wanted, FrameInput):
        backbone = replace(backbone, input=replace(wanted, size=SIDE, clean_size=SIDE))
    network = load_network(backbone, random_weights(0))
    x = noise(backbone, 1)
    tap = Tap("pre-layer4")
    maps = Encoder(network, CPU, tap=tap)(x)
    assert maps.shape == (1, tap.dim(backbone))
    finished = LastStage(network, tap.shapes(backbone))(maps)
    assert torch.equal(finished, Encoder(network, CPU)(x))
    grid = Tap("pre-layer4@2")
    pooled = Encoder(network, CPU, tap=grid)(x)
    assert pooled.shape == (1, grid.dim(backbone)) == (1, sum(s[0] * _times(s) * 4 for s in tap.shapes(backbone)))
    # Averaging places keeps the mean of every map.
    means = [m.flatten(2).mean(2) for m in _maps(maps, tap.shapes(backbone))]
    even = all(s[-1] % 2 == 0 and s[-2] % 2 == 0 for s in tap.shapes(backbone))
    if even:
        kept = [m.flatten(2).mean(2) for m in _maps(pooled, grid.shapes(backbone))]
        for one, other in zip(means, kept, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def _times(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 4 else 1


def _maps(rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    sizes = [int(torch.Size(s).numel()) for s in shapes]
    return [part.unflatten(1, s) for part, s in zip(rows.split(sizes, 1), shapes, strict=True)]


def test_the_last_stage_of_an_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="behind the last stage"):
        load_last_stage("vggsound-r18", random_weights(0), POOL)


def test_published_files_have_names_of_their_own_and_addresses() -> None:
    files = all_published()
    assert len({p.file for p in files}) == len(files)
    for published in files:
        assert published.url.startswith("https://")
        assert published.url.endswith("/" + published.file)
        assert published.digest in published.file
        assert all(c in "0123456789abcdef" for c in published.digest)
        assert published.trained_on
        assert published.licence
