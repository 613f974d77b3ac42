"""torchvision's ResNets on frames and spectrograms, and their published files."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from extractors import torchvision_models as ours
from extractors.encoder import Backbone, Encoder, Tap
from extractors.inputs import AudioInput


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def lively(network: nn.Module) -> nn.Module:
    """Statistics and scales of the normalisations that are not 0 and 1, as trained networks have them."""
    for name, value in [*network.named_buffers(), *network.named_parameters()]:
        with torch.no_grad():
            if name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
                value.uniform_(0.5, 1.5)
    return network.eval()


def theirs(network: nn.Module, depth: int = 18) -> nn.Module:
    """torchvision's ResNet with the tensors of ours, without its classifier."""
    resnet = get_model(f"resnet{depth}").eval()
    if network.conv1.in_channels != 3:
        resnet.conv1 = nn.Conv2d(network.conv1.in_channels, 64, 7, 2, 3, bias=False)
    resnet.load_state_dict(network.state_dict())
    resnet.fc = nn.Identity()
    return resnet


@pytest.mark.parametrize("depth", [18, 50])
def test_tensor_names_are_torchvisions(depth: int):
    with torch.device("meta"):
        expected = {name: value.shape for name, value in get_model(f"resnet{depth}").state_dict().items()}
        for network in (ours.FrameResNet(depth), ours.SpectrogramResNet(depth), ours.FrameResNet(depth, 2)):
            shapes = {name: value.shape for name, value in network.state_dict().items()}
            assert list(shapes) == list(expected)
            assert shapes.pop("conv1.weight") == (64, network.channels, 7, 7)
            assert shapes == {name: shape for name, shape in expected.items() if name != "conv1.weight"}


@pytest.mark.parametrize(("depth", "channels"), [(18, 3), (18, 2), (50, 3)])
@torch.inference_mode()
def test_the_embedding_is_the_mean_of_torchvisions_frame_features(depth: int, channels: int):
    network = lively(ours.FrameResNet(depth, channels))
    x = torch.randn(2, channels, 3, 64, 48)
    resnet = theirs(network, depth)
    expected = torch.stack([torch.stack([resnet(row[None, :, t])[0] for t in range(3)]).mean(0) for row in x])
    assert expected.std() > 0.01
    assert (network(x) - expected).abs().max() <= 1e-6 * expected.abs().max()


@torch.inference_mode()
def test_a_spectrogram_is_a_picture_of_one_channel():
    network = lively(ours.SpectrogramResNet())
    x = torch.randn(2, 1, 65, 97)
    assert torch.equal(network(x), theirs(network)(x))


@torch.inference_mode()
def test_the_parts_make_the_whole():
    for network, x, shape in (
        (lively(ours.FrameResNet(18)), torch.randn(2, 3, 3, 64, 50), (2, 256, 3, 4, 4)),
        (lively(ours.SpectrogramResNet(18)), torch.randn(2, 1, 65, 97), (2, 256, 5, 7)),
    ):
        (maps,) = network.maps(x)
        assert maps.shape == shape
        assert torch.equal(network.finish([maps]), network(x))
        logits = network.classify(network(x))
        assert torch.equal(logits, network.fc(network(x)))
        assert logits.shape == (2, 1000)


def test_maps_are_those_of_torchvisions_third_stage():
    network = lively(ours.FrameResNet(18))
    resnet, seen = theirs(network), []
    resnet.layer3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(1, 3, 2, 64, 64)
    with torch.inference_mode():
        resnet(x[:, :, 1])
        (maps,) = network.maps(x)
    assert torch.allclose(maps[:, :, 1], seen[0], atol=1e-5)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch():
    for network, x in (
        (lively(ours.FrameResNet(18)), torch.randn(3, 3, 2, 64, 64)),
        (lively(ours.SpectrogramResNet(18)), torch.randn(3, 1, 65, 97)),
    ):
        encoder = Encoder(network, torch.device("cpu"), rows=1)
        alone = torch.cat([encoder(row[None]) for row in x])
        assert torch.equal(encoder(x), alone)
        assert torch.allclose(network(x), alone, atol=1e-5)


@torch.inference_mode()
def test_sums_stay_float32_in_bfloat16():
    x = torch.randn(1, 3, 2, 64, 64)
    network = lively(ours.FrameResNet(18))
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x)
        (maps,) = network.maps(x)
    assert maps.dtype == torch.bfloat16
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())
    assert torch.nn.functional.cosine_similarity(exact, rough) > 0.999


def test_the_tap_reads_the_maps():
    backbone = Backbone(
        name="x",
        modality="audio",
        dim=512,
        input=AudioInput(22_050, 66_150, 512, 159, "magnitude"),
        params=0,
        gflops=0,
        licence="",
        source="",
        build=ours.build_resnet18_spec,
        staged=True,
    )
    assert Tap("pre-layer4").shapes(backbone) == ((256, 17, 12),)
    assert Tap("pre-layer4@2").shapes(backbone) == ((256, 2, 2),)


def test_builders_give_what_they_name():
    with torch.device("meta"):
        for build, shape, dim in (
            (ours.build_resnet18, (1, 3, 2, 64, 64), 512),
            (ours.build_resnet50, (1, 3, 2, 64, 64), 2048),
            (ours.build_resnet18_flow, (1, 2, 2, 64, 64), 512),
            (ours.build_resnet18_spec, (1, 1, 257, 188), 512),
        ):
            assert build()(torch.empty(shape)).shape == (1, dim)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="depth of a ResNet is 20; allowed: 18, 50"):
        ours.FrameResNet(20)
    with pytest.raises(ValueError, match="channels is 0"):
        ours.FrameResNet(18, 0)
    network = ours.FrameResNet(18, 2)
    for shape in ((1, 3, 2, 64, 64), (1, 2, 64, 64), (2, 2, 64)):
        with pytest.raises(ValueError, match=re.escape(f"{shape}; allowed: (rows, 2, frames, height, width)")):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"allowed: \(rows, 1, height, width\)"):
        ours.SpectrogramResNet()(torch.zeros(1, 3, 64, 64))


# --- published ResNet files -----------------------------------------------------------------------------------------


def old_file(model: nn.Module) -> dict[str, Tensor]:
    """What a published file holds: parameters, and no step counts."""
    return {n: nn.Parameter(v, v.is_floating_point()) for n, v in model.state_dict().items() if "tracked" not in n}


def test_a_published_file_loads_as_it_is():
    resnet = lively(get_model("resnet18"))
    tensors = ours.read_resnet()(old_file(resnet))
    network = ours.FrameResNet(18).eval()
    assert tensors.keys() == network.state_dict().keys()
    network.load_state_dict(tensors)
    assert all(torch.equal(value, resnet.state_dict()[name]) for name, value in tensors.items())
    assert not any(value.requires_grad for value in tensors.values())


@pytest.mark.parametrize("channels", [1, 2, 10])
@torch.inference_mode()
def test_other_channels_answer_to_grey_as_rgb_does(channels: int):
    resnet = lively(get_model("resnet18"))
    content = old_file(resnet)
    network = ours.FrameResNet(18, channels).eval()
    network.load_state_dict(ours.read_resnet(channels)(content))
    grey = torch.randn(2, 1, 1, 64, 64)
    resnet.fc = nn.Identity()
    features = network(grey.expand(-1, channels, -1, -1, -1))
    assert torch.allclose(features, resnet(grey[:, :, 0].expand(-1, 3, -1, -1)), atol=1e-4)
    assert content["conv1.weight"].shape == (64, 3, 7, 7)
    weight = network.conv1.weight
    assert torch.equal(weight, weight[:, :1].expand(-1, channels, -1, -1))


def test_a_file_with_the_right_channels_is_left_alone():
    network = ours.FrameResNet(18, 2)
    tensors = ours.read_resnet(2)(network.state_dict())
    assert torch.equal(tensors["conv1.weight"], network.conv1.weight)


def test_what_is_no_resnet_file_is_refused():
    with pytest.raises(ValueError, match=r"conv1\.weight is missing"):
        ours.read_resnet()({"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"\(64, 5, 7, 7\); allowed: \(64, 3, 7, 7\) or \(64, 2, 7, 7\)"):
        ours.read_resnet(2)({"conv1.weight": torch.zeros(64, 5, 7, 7)})
    with pytest.raises(ValueError, match="'epoch' is a int"):
        ours.read_resnet()({"epoch": 3})
