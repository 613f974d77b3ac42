"""Random weights depend on a seed and on names alone, and deep networks stay bounded with them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extractors.initialise import initialise


class Bottleneck(nn.Module):
    """Residual block of three convolutions, under torchvision's names."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module | None = None
        if inputs != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.bn3(self.conv3(h)) + shortcut).relu()  # type: ignore[no-any-return]


class Basic(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (h + (x if self.downsample is None else self.downsample(x))).relu()  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A residual network under torchvision's names."""

    def __init__(self, block: type[Bottleneck] | type[Basic], depths: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        expansion = 4 if block is Bottleneck else 1
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width)
        inputs = width
        for number, depth in enumerate(depths, 1):
            wide = width * 2 ** (number - 1)
            layers = []
            for at in range(depth):
                layers.append(block(inputs, wide, 2 if number > 1 and at == 0 else 1))
                inputs = wide * expansion
            setattr(self, f"layer{number}", nn.Sequential(*layers))
        self.stages = len(depths)
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x)).relu()
        for number in range(1, self.stages + 1):
            h = getattr(self, f"layer{number}")(h)
        return h.mean((2, 3))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Parameters of a transformer under usual names, and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.rand(1, 1, 64))
        self.scale = nn.Parameter(torch.rand(()))
        self.attention = nn.MultiheadAttention(64, 4)
        self.norm = nn.LayerNorm(64)
        self.norm.weight.data.fill_(3)
        self.stem = nn.BatchNorm1d(64)
        self.stem(torch.rand(8, 64))  # moves its statistics
        self.low = nn.Parameter(torch.rand(64, 64).bfloat16())
        self.register_buffer("filters", torch.ones(3))


def test_every_tensor_gets_its_values() -> None:
    network = Attention()
    initialise(network, 0, "net")
    state = network.state_dict()
    drawn = {"cls_token", "scale", "low", "attention.in_proj_weight", "attention.out_proj.weight"}
    for key, value in state.items():
        constant = None if key in drawn else {"filters": 1.0, "norm.weight": 1.0, "stem.weight": 1.0}.get(key, 0.0)
        if key == "stem.running_var":
            constant = 1.0
        if constant is not None:
            assert torch.equal(value, torch.full_like(value, constant)), key
    assert 0.018 < float(state["low"].float().std()) < 0.022
    assert 0.015 < float(state["cls_token"].std()) < 0.025
    assert 0.97 < float(state["attention.in_proj_weight"].std()) / (2 / 64) ** 0.5 < 1.03
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_values_come_from_the_seed_and_the_names_alone() -> None:
    """Written out by hand: what the rule says, whatever the version of torch and the order of the tensors are."""
    network = nn.ModuleDict({"conv": nn.Conv3d(2, 4, (1, 3, 3))})
    initialise(network, 7, "net")
    key = int.from_bytes(hashlib.sha256(b"random:7/net/conv.weight").digest()[:16], "big")
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal((4, 2, 1, 3, 3), np.float32)
    expected *= np.float32((2 / 18) ** 0.5)
    assert np.array_equal(network["conv"].weight.detach().numpy(), expected)  # type: ignore[operator]
    assert expected.flat[0] == pytest.approx(
        0.2396, abs=1e-4
    )  # another value: NumPy changed its generator, and every feature changes


def build(torch_seed: int, network_seed: int = 0, name: str = "net") -> dict[str, Tensor]:
    torch.manual_seed(torch_seed)
    network = ResNet(Basic, (1, 1))
    initialise(network, network_seed, name)
    return network.state_dict()


def test_two_builds_agree_whatever_the_global_seed() -> None:
    first, second = build(1), build(2)
    assert all(torch.equal(first[key], second[key]) for key in first)
    key = "layer1.0.conv1.weight"
    assert not torch.equal(first[key], build(1, network_seed=1)[key])
    assert not torch.equal(first[key], build(1, name="other")[key])
    assert not torch.equal(first[key], first["layer1.0.conv2.weight"])
    longer = ResNet(Basic, (1, 1, 1))  # further tensors change nothing
    initialise(longer, 0, "net")
    assert all(torch.equal(first[k], v) for k, v in longer.state_dict().items() if k in first and k[:3] != "fc.")


@pytest.mark.parametrize(("block", "depths"), [(Bottleneck, (3, 4, 23, 3)), (Basic, (12, 12, 12, 13))])
def test_a_hundred_layers_stay_bounded(block: type[Bottleneck] | type[Basic], depths: tuple[int, ...]) -> None:
    network = ResNet(block, depths).eval()
    initialise(network, 0, "net")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32))
    with torch.inference_mode():
        features = network(x)
    assert torch.isfinite(features).all()
    assert 0.01 < float(features.std()) < 100
    assert float((features[0] - features[1]).abs().mean()) > 1e-3  # inputs are told apart


@pytest.mark.parametrize(
    ("keys", "last"),
    [
        (("layer1.0.bn1", "layer1.0.bn2", "layer1.0.bn3"), {"layer1.0.bn3"}),
        (("layer1.0.bn1", "layer1.0.bn2"), {"layer1.0.bn2"}),
        (("0.bn1", "0.bn2", "1.bn1", "1.bn2", "1.bn3"), {"0.bn2", "1.bn3"}),
        (("a.layer1.0.conv1.bn", "a.layer1.0.conv2.bn", "a.layer1.0.conv3.bn"), {"a.layer1.0.conv3.bn"}),
        (("a.layer1.0.conv1.bn", "a.layer1.0.conv2.bn"), {"a.layer1.0.conv2.bn"}),
        (("conv1.bn", "conv2.bn", "bn1", "bn2", "layer1.0.downsample.1"), set()),  # of no block
    ],
)
def test_the_last_normalisation_of_a_block_is_a_quarter(keys: tuple[str, ...], last: set[str]) -> None:
    network = nn.Module()
    for key in keys:
        parent = network
        *folders, name = key.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(name, nn.BatchNorm1d(2))
    initialise(network, 0, "net")
    assert {key for key in keys if network.get_parameter(f"{key}.weight").tolist() == [0.25, 0.25]} == last
