"""What every frozen backbone keeps: its declared shape, the same numbers every time, and rows that stand alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extractors.backbone import BACKBONES, DEFAULT_BACKBONES, Backbone, Encoder
from extractors.inputs import FrameInput

CPU = torch.device("cpu")
FLOAT16_LIMIT = 65504.0

pytestmark = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


@pytest.fixture
def encoder(backbone: Backbone) -> Encoder:
    torch.set_num_threads(1)
    return backbone.load(CPU)


def input_shape(backbone: Backbone) -> tuple[int, ...]:
    """Shape of one row."""
    wanted = backbone.input
    if isinstance(wanted, FrameInput):
        return wanted.channels, wanted.num_frames, wanted.size, wanted.size
    return 1, *wanted.shape


def noise(backbone: Backbone, rows: int) -> Tensor:
    return torch.randn(rows, *input_shape(backbone), generator=torch.Generator().manual_seed(0))


def test_the_table_names_what_it_holds(backbone: Backbone) -> None:
    assert BACKBONES[backbone.name] is backbone
    assert backbone.modality in DEFAULT_BACKBONES
    assert BACKBONES[DEFAULT_BACKBONES[backbone.modality]].modality == backbone.modality
    for text in (backbone.weights, backbone.weights_note, backbone.licence, backbone.source):
        assert text.strip()


def test_features_have_the_declared_shape(backbone: Backbone, encoder: Encoder) -> None:
    features = encoder(noise(backbone, 3))
    assert features.shape == (3, backbone.dim)
    assert features.dtype == torch.float32
    assert features.device == CPU


def test_the_clean_view_gives_the_same_dim(backbone: Backbone, encoder: Encoder) -> None:
    wanted = backbone.input
    if isinstance(wanted, FrameInput):
        side = wanted.clean_size
        assert encoder(torch.zeros(1, wanted.channels, wanted.num_frames, side, side)).shape == (1, backbone.dim)


def test_two_builds_are_equal_whatever_the_global_seed(backbone: Backbone) -> None:
    torch.manual_seed(1)
    one = backbone.load(CPU)
    torch.manual_seed(2)
    two = backbone.load(CPU)
    first, second = one.network.state_dict(), two.network.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    x = noise(backbone, 2)
    assert torch.equal(one(x), two(x))


def test_it_is_frozen(backbone: Backbone, encoder: Encoder) -> None:
    assert not any(module.training for module in encoder.network.modules())
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    features = encoder(noise(backbone, 2))
    assert not features.requires_grad
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_leaves_its_input_alone(backbone: Backbone, encoder: Encoder) -> None:
    x = noise(backbone, 2)
    encoder(x)
    assert torch.equal(x, noise(backbone, 2))


def test_a_row_does_not_depend_on_its_batch(backbone: Backbone, encoder: Encoder) -> None:
    x = noise(backbone, 5)
    x[4] *= 100  # a loud neighbour
    together = encoder(x)
    swapped = encoder(x.flip(0)).flip(0)
    for row in range(5):
        alone = encoder(x[row : row + 1])[0]
        limit = 1e-5 * alone.abs().max().item()
        assert (together[row] - alone).abs().max().item() <= limit
        assert (swapped[row] - alone).abs().max().item() <= limit


@pytest.mark.parametrize("level", [0.0, 1.0, -2.5, 100.0])
def test_a_constant_input_gives_finite_features_in_float16_range(
    backbone: Backbone, encoder: Encoder, level: float
) -> None:
    features = encoder(torch.full((2, *input_shape(backbone)), level))
    assert features.isfinite().all()
    assert features.abs().max() < FLOAT16_LIMIT


@pytest.mark.parametrize("scale", [1e-6, 1.0, 5.0])
def test_noise_gives_finite_features_in_float16_range(backbone: Backbone, encoder: Encoder, scale: float) -> None:
    features = encoder(noise(backbone, 2) * scale)
    assert features.isfinite().all()
    assert features.abs().max() < FLOAT16_LIMIT
    assert features.half().isfinite().all()


def test_different_inputs_give_different_features(backbone: Backbone, encoder: Encoder) -> None:
    features = encoder(noise(backbone, 2))
    difference = (features[0] - features[1]).abs()
    assert (difference > 0).float().mean() > 0.5
