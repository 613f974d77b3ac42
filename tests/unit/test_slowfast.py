"""The video networks and the audio network apart from the reference's numbers (those are in golden/)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.audio_resnet import AudioLastStage, build_vggsound_r18
from extractors.slowfast import (
    SlowFast,
    SlowOnly,
    build_slowfast_r50,
    build_slowfast_r50_normed,
    build_slowfast_r101_normed,
    build_slowonly_r50_flow,
    spread_frames,
)

SPREAD = (0, 4, 8, 13, 17, 22, 26, 31)
# Wide enough for two places in the last stage: with one, oneDNN's bfloat16 convolution in 3-D returns garbage.
CLIPS = {"r50": (3, 32, 36, 52), "r50_normed": (3, 32, 36, 52), "slowonly": (2, 8, 36, 52), "audio": (1, 65, 100)}


def randomised(network: nn.Module) -> nn.Module:
    """Evaluation mode, every normalisation with its own statistics."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "r50": randomised(build_slowfast_r50()),
        "r50_normed": randomised(build_slowfast_r50_normed()),
        "slowonly": randomised(build_slowonly_r50_flow()),
        "audio": randomised(build_vggsound_r18()),
    }


def clips(name: str, rows: int) -> Tensor:
    return torch.randn(rows, *CLIPS[name], generator=torch.Generator().manual_seed(7))


def close(a: Tensor, b: Tensor, tolerance: float = 2e-6) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize(
    ("name", "maps", "dim", "classes"),
    [
        ("r50", [(1280, 8, 3, 4), (128, 32, 3, 4)], 2304, 400),
        ("r50_normed", [(1280, 8, 3, 4), (128, 32, 3, 4)], 2304, 400),
        ("slowonly", [(1024, 8, 3, 4)], 2048, 400),
        ("audio", [(256, 5, 7)], 512, 309),
    ],
)
def test_cut_before_the_last_stage(
    networks: dict[str, nn.Module], name: str, maps: Sequence[tuple[int, ...]], dim: int, classes: int
):
    network, x = networks[name], clips(name, 2)
    cut = network.maps(x)
    assert [tuple(m.shape[1:]) for m in cut] == maps
    embedding = network(x)
    assert embedding.shape == (2, dim)
    assert torch.equal(embedding, network.finish(cut))
    assert torch.equal(embedding, network.finish([m.clone() for m in cut])), "finish changed its input"
    assert network.classify(embedding).shape == (2, classes)


@pytest.mark.parametrize("name", CLIPS)
def test_a_row_does_not_depend_on_its_batch(networks: dict[str, nn.Module], name: str):
    network, x = networks[name], clips(name, 3)
    together = network(x)
    for row in range(3):
        assert close(network(x[row : row + 1])[0], together[row]), row
    assert close(network(x.flip(0)).flip(0), together)


@pytest.mark.parametrize("name", CLIPS)
def test_pools_in_float32_under_autocast(networks: dict[str, nn.Module], name: str):
    network, x = networks[name], clips(name, 1)
    with torch.autocast("cpu", torch.bfloat16):
        maps = network.maps(x)
        assert all(m.dtype == torch.bfloat16 for m in maps)
        embedding = network.finish(maps)
        last = (
            network.audnet.layer4
            if name == "audio"
            else getattr(network.backbone, "slow_path", network.backbone).layer4
        )
        places = last(maps[0])
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding[:, -places.shape[1] :], places.float().flatten(2).mean(2))
    assert close(embedding, network(x), 0.05)


@pytest.mark.parametrize("name", CLIPS)
def test_gradients_reach_the_last_stage_only(networks: dict[str, nn.Module], name: str):
    network = networks[name]
    maps = [m.clone() for m in network.maps(clips(name, 1))]
    try:
        network.requires_grad_(True)
        network.classify(network.finish(maps)).square().sum().backward()
        reached = {key for key, value in network.named_parameters() if value.grad is not None}
        assert reached == {key for key, _ in network.named_parameters() if ".layer4." in key or ".fc" in key}
    finally:
        network.requires_grad_(False)
        network.zero_grad()


def recorded(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module is given during a run."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run()
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("name", "frames"), [("r50", tuple(range(0, 32, 4))), ("r50_normed", SPREAD)])
def test_frames_of_the_slow_path(networks: dict[str, nn.Module], name: str, frames: tuple[int, ...]):
    network, x = networks[name], clips(name, 1)
    given = recorded(network.backbone.slow_path.conv1, lambda: network.maps(x))
    assert torch.equal(given, x[:, :, frames])
    assert torch.equal(recorded(network.backbone.fast_path.conv1, lambda: network.maps(x)), x)


def test_spread_frames_are_those_of_pyslowfast():
    assert spread_frames(32) == SPREAD
    for count in (36, 64, 128):
        assert spread_frames(count) == tuple(torch.linspace(0, count - 1, count // 4).long().tolist())


@pytest.mark.parametrize("name", ["r50", "r50_normed"])
def test_lateral_channels(networks: dict[str, nn.Module], name: str):
    network = networks[name]
    slow, fast = network.maps(clips(name, 1))
    lateral = network.backbone.slow_path.layer3_lateral
    expected = F.conv3d(fast, lateral.conv.weight, stride=(4, 1, 1), padding=(3, 0, 0))
    if name == "r50_normed":
        bn = lateral.bn
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        expected = expected * scale.view(-1, 1, 1, 1) + (bn.bias - bn.running_mean * scale).view(-1, 1, 1, 1)
        assert (expected < 0).any()
        expected = expected.clamp(min=0)
    assert close(slow[:, 1024:], expected)


def test_longer_clips(networks: dict[str, nn.Module]):
    for name, frames in (("r50", 36), ("r50_normed", 40)):
        slow, fast = networks[name].maps(torch.zeros(1, 3, frames, 16, 16))
        assert (slow.shape[2], fast.shape[2]) == (frames // 4, frames)
    assert networks["slowonly"].maps(torch.zeros(1, 2, 9, 16, 16))[0].shape[2] == 9


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("r50", (1, 3, 28, 16, 16), "clip of 28 frames; SlowFast takes 32 or more, a multiple of 4"),
        ("r50", (1, 3, 34, 16, 16), "clip of 34 frames; SlowFast takes 32 or more, a multiple of 4"),
        ("r50_normed", (1, 2, 32, 16, 16), "clip with 2 channels; SlowFast takes 3"),
        ("r50", (3, 32, 16, 16), "clip with 4 axes; SlowFast takes 5: rows, channels, time, height, width"),
        ("slowonly", (1, 2, 7, 16, 16), "clip of 7 frames; SlowOnly takes 8 or more"),
        ("slowonly", (1, 3, 8, 16, 16), "clip with 3 channels; SlowOnly takes 2"),
        ("slowonly", (2, 8, 16, 16), "clip with 4 axes; SlowOnly takes 5: rows, channels, time, height, width"),
        ("audio", (1, 2, 65, 65), "spectrogram with 2 channels; VggSoundResNet18 takes 1"),
        ("audio", (1, 65, 65), "spectrogram with 3 axes; VggSoundResNet18 takes 4: rows, 1, frequency, time"),
    ],
)
def test_refuses_other_inputs(networks: dict[str, nn.Module], name: str, shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        networks[name](torch.zeros(shape))


def test_refuses_other_networks():
    with torch.device("meta"):
        with pytest.raises(ValueError, match="depth 34; allowed: 50, 101"):
            SlowFast(34)
        with pytest.raises(ValueError, match="depth 18; allowed: 50, 101"):
            SlowOnly(18)
        with pytest.raises(ValueError, match="lateral kernel of 4 frames; allowed: odd numbers"):
            SlowFast(50, lateral_kernel=4)


def test_variants_differ_in_their_laterals_only():
    with torch.device("meta"):
        bare, normed, deep = build_slowfast_r50(), build_slowfast_r50_normed(), build_slowfast_r101_normed()
        plain, narrow = SlowFast(101), SlowOnly(101, 3)
    extra = {key for key in normed.state_dict() if "_lateral.bn." in key}
    assert len(extra) == 4 * 5
    assert set(normed.state_dict()) - set(bare.state_dict()) == extra
    shapes = {key: tuple(value.shape) for key, value in deep.state_dict().items()}
    kernels = {key: shape[2] for key, shape in shapes.items() if key.endswith("_lateral.conv.weight")}
    assert set(kernels.values()) == {5}
    others = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    assert {key for key in others if others[key] != shapes[key]} == set(kernels)
    assert sum(p.numel() for p in normed.parameters()) == 34_566_488  # as pytorchvideo's
    assert narrow.maps(torch.zeros(1, 3, 8, 16, 16, device="meta"))[0].shape == (1, 1024, 8, 1, 1)


def test_audio_last_stage_is_the_last_stage(networks: dict[str, nn.Module]):
    network = networks["audio"]
    stage = AudioLastStage(8)
    own = {key.removeprefix("audnet."): value for key, value in network.state_dict().items() if "layer4" in key}
    stage.load_state_dict({**stage.state_dict(), **own})
    (maps,) = network.maps(clips("audio", 2))
    embedding, logits = stage.eval()(maps)
    assert torch.equal(embedding, network.finish((maps,)))
    assert torch.equal(logits, stage.fc(embedding))


@pytest.mark.parametrize("name", CLIPS)
def test_compiles_as_one_graph(networks: dict[str, nn.Module], name: str):
    network, x = networks[name], clips(name, 1)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert close(compiled(x), network(x))


@pytest.mark.parametrize("name", ["r50_normed", "audio"])
def test_exports(networks: dict[str, nn.Module], name: str):
    network, x = networks[name], clips(name, 1)
    exported = torch.export.export(network, (x,))
    assert close(exported.module()(x), network(x))
