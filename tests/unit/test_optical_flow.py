"""The table of optical flow methods; its 8-bit form and DIS are tested beside the views, in test_views_flow.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extractors import optical_flow, raft
from extractors.loading import Weights, choose_weights, random_weights
from extractors.optical_flow import FLOW_METHODS, compute_flow, find_flow_method, flow_network, grey, quantise
from extractors.weights import WeightsError, WeightsFolder

RAFTS = ("raft-large", "raft-small")
WITHOUT_NETWORK = [name for name, method in FLOW_METHODS.items() if not method.needs_weights and not method.missing()]
contrib = pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="this OpenCV was built without cv2.optflow")


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 (count, height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return flow_network("raft-small", random_weights(0), "cpu")


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_line_describes_itself():
    for name, method in FLOW_METHODS.items():
        assert method.name == name
        assert "\n" not in method.description
        assert set(method.devices) <= {"cpu", "cuda"}
        assert method.devices[0] == "cpu"
        assert method.pair_bytes(256, 341) > 8 * 256 * 341
        assert method.needs_weights == (name in RAFTS) == bool(method.published)
    assert FLOW_METHODS["tvl1"].devices == FLOW_METHODS["raft-large"].devices == ("cpu", "cuda")
    assert FLOW_METHODS["dis-medium"].devices == ("cpu",)


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
def test_arrays_and_tensors_give_the_same_levels(name: str):
    a = frames(2, 40, 52)
    b = np.roll(a, (1, 2), (1, 2))
    levels = compute_flow(a, b, name)
    assert isinstance(levels, Tensor)
    assert levels.dtype == torch.uint8
    assert levels.shape == (2, 2, 40, 52)
    assert torch.equal(compute_flow(torch.from_numpy(a), torch.from_numpy(b), name), levels)
    assert torch.equal(compute_flow(a[::-1][::-1], b.copy(order="F"), name), levels)
    still = a.copy()
    still.flags.writeable = False
    assert (compute_flow(still, still, name) == 128).all()
    assert abs(float(levels[:, 0, 8:-8, 8:-8].float().mean()) - 127.5 - 2 * 6.375) < 2.5


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
def test_groups_of_pairs_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    a = frames(5, 33, 40)
    b = np.roll(a, 1, 2)
    whole = compute_flow(a, b, name)
    for pairs in (1, 2):
        monkeypatch.setattr(optical_flow, "BUDGET_BYTES", pairs * FLOW_METHODS[name].pair_bytes(33, 40))
        assert torch.equal(compute_flow(a, b, name), whole)
    monkeypatch.setattr(optical_flow, "BUDGET_BYTES", 1)
    assert torch.equal(compute_flow(a, b, name), whole)
    assert compute_flow(a[:0], b[:0], name).shape == (0, 2, 33, 40)


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
def test_flow_of_small_frames_does_not_depend_on_those_before(name: str):
    """A small bound, as an engine of DIS that is used twice is off by thousandths of a pixel only."""
    a = frames(3, 33, 40)
    b = np.roll(a, 1, 2)
    alone = torch.cat([compute_flow(a[i : i + 1], b[i : i + 1], name, 0.02) for i in range(3)])
    assert torch.equal(compute_flow(a, b, name, 0.02), alone)


def test_groups_fit_the_budget(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []

    def compute(first: Tensor, second: Tensor, network: nn.Module | None) -> Tensor:
        sizes.append(len(first))
        return torch.zeros(len(first), 2, *first.shape[1:3])

    fake = dataclasses.replace(FLOW_METHODS["tvl1"], compute=compute, pair_bytes=lambda h, w: h * w * 100)
    monkeypatch.setitem(FLOW_METHODS, "tvl1", fake)
    monkeypatch.setattr(optical_flow, "BUDGET_BYTES", 100 * 20 * 30 * 3 + 1)
    a = frames(8, 20, 30)
    assert (compute_flow(a, a, "tvl1") == 128).all()
    assert sizes == [3, 3, 2]


def test_the_bound_scales_the_levels():
    a = frames(1, 48, 60)
    b = np.roll(a, 3, 2)
    wide, narrow = (compute_flow(a, b, "tvl1", bound).float().sub(127.5).mul(bound / 127.5) for bound in (20.0, 5.0))
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (wide - narrow)[inside].abs().max() <= (20 + 5) / 255 + 1e-4
    assert compute_flow(a, b, "tvl1", 1.0)[0, 0, 24, 30] == 255


@contrib
def test_both_tv_l1_agree():
    a = frames(2, 44, 60, seed=5)
    b = np.roll(a, (1, -1), (1, 2))
    ours, theirs = (compute_flow(a, b, name).int() for name in ("tvl1", "tvl1-opencv"))
    assert (ours - theirs).abs().float().mean() < 0.1
    assert compute_flow(a[:, :1, :2], b[:, :1, :2], "tvl1-opencv").shape == (2, 2, 1, 2)


def test_without_contrib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(cv2, "optflow", raising=False)
    a = frames(1, 8, 8)
    with pytest.raises(ValueError, match=r"'tvl1-opencv' needs cv2\.optflow.*install opencv-contrib-python-headless"):
        compute_flow(a, a, "tvl1-opencv")
    monkeypatch.setattr(cv2, "optflow", object(), raising=False)
    assert find_flow_method("tvl1-opencv").name == "tvl1-opencv"


def test_mirrored_frames_give_the_mirror_with_u_negated():
    """As flow views are mirrored: 255 - level, see views/flow.py."""
    picture = frames(1, 90, 120, seed=1)
    a, b = picture[:, 8:-8, 8:-8], picture[:, 6:-10, 5:-11]
    plain, mirrored = compute_flow(a, b, "tvl1").float(), compute_flow(a[:, :, ::-1], b[:, :, ::-1], "tvl1").float()
    turned = mirrored.flip(-1)
    turned[:, 0] = 255 - turned[:, 0]
    assert (turned - plain)[..., 10:-10, 10:-10].abs().mean() < 1.0
    assert plain[:, 0].mean() > 140


def test_mistakes_are_named():
    a = frames(1, 12, 14)
    cases = {
        "flow method 'farneback'; allowed: dis-medium, dis-fast, dis-ultrafast, tvl1": (a, a, "farneback", 20.0),
        "both must be": (a, a[:, 1:], "tvl1", 20.0),
        "shapes .* both must be": (a[0], a[0], "tvl1", 20.0),
        "both must be .*3": (a[:, :0], a[:, :0], "tvl1", 20.0),
        "types .*float32": (a.astype(np.float32), a.astype(np.float32), "tvl1", 20.0),
        "bound is 0": (a, a, "tvl1", 0.0),
        "bound is nan": (a, a, "tvl1", float("nan")),
        r"'raft-small' needs a network: flow_network\('raft-small'": (a, a, "raft-small", 20.0),
    }
    for message, (first, second, method, bound) in cases.items():
        with pytest.raises(ValueError, match=message):
            compute_flow(first, second, method, bound)
    with pytest.raises(ValueError, match="'tvl1' takes no network; those that take one: raft-large, raft-small"):
        compute_flow(a, a, "tvl1", network=nn.Identity())
    with pytest.raises(ValueError, match="on cpu and meta"):
        compute_flow(torch.from_numpy(a), torch.from_numpy(a).to("meta"), "tvl1")
    with pytest.raises(ValueError, match="'dis-fast' has no network"):
        flow_network("dis-fast", random_weights(0), "cpu")


# --- grey levels and quantising -------------------------------------------------------------------------------------


def test_grey_is_that_of_opencv():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (700, 800, 3), dtype=np.uint8)
    colours[0, :256] = np.arange(256)[:, None]
    assert np.array_equal(grey(torch.from_numpy(colours)).numpy(), cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY))
    assert grey(torch.zeros(2, 3, 4, 3, dtype=torch.uint8)).shape == (2, 3, 4)


@pytest.mark.parametrize("bound", [20.0, 7.0, 3.3, 0.1])
def test_tensors_are_quantised_as_arrays(bound: float):
    flow = np.random.default_rng(1).normal(0, bound, 200_000).astype(np.float32)
    # Halves between levels: there the order of operations and the way of rounding show.
    flow = np.concatenate([flow, ((np.arange(512) / 2 - 127.5) * (2 * bound / 255)).astype(np.float32)])
    levels = quantise(torch.from_numpy(flow), bound)
    assert levels.dtype == torch.uint8
    assert np.array_equal(levels.numpy(), quantise(flow, bound))
    assert quantise(torch.zeros(1), bound).item() == 128


# --- RAFT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAFTS)
def test_weight_files_are_those_of_torchvision(name: str):
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    members = {"raft-large": Raft_Large_Weights, "raft-small": Raft_Small_Weights}[name]
    method = FLOW_METHODS[name]
    assert method.published[0].name == members.DEFAULT.name.lower()
    by_name = {published.name: published for published in method.published}
    assert by_name.keys() == {member.name.lower() for member in members}
    for member in members:
        published = by_name[member.name.lower()]
        assert published.url == member.url
        assert published.url.endswith(f"{published.file}")
        assert member.url.endswith(f"-{published.digest}.pth")
        assert member.meta["recipe"].startswith(published.source)
    assert method.network is not None
    assert method.network.params == members.DEFAULT.meta["num_params"]
    with torch.device("meta"):
        assert sum(p.numel() for p in method.network.build().parameters()) == method.network.params


@pytest.mark.parametrize("shape", [(1, 1), (40, 52), (130, 137)])
def test_raft_takes_any_size(shape: tuple[int, int], small: nn.Module):
    a = frames(1, *shape)
    seen: list[tuple[int, ...]] = []
    handle = small.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape)))
    levels = compute_flow(a, np.roll(a, 1, 2), "raft-small", network=small)
    handle.remove()
    assert levels.shape == (1, 2, *shape)
    assert seen == [(1, 3, *(max(128, -(-side // 8) * 8) for side in shape))]


def test_raft_sees_levels_from_minus_one_to_one_and_the_border(small: nn.Module):
    a = np.full((1, 10, 12, 3), 255, dtype=np.uint8)
    a[..., 1] = 0
    a[:, -1, -1] = 51
    seen: list[Tensor] = []
    handle = small.register_forward_pre_hook(lambda _, images: seen.extend(images))
    compute_flow(a, a, "raft-small", network=small)
    handle.remove()
    assert len(seen) == 2
    for image in seen:
        assert image[0, :, 0, 0].tolist() == [1, -1, 1]
        assert torch.allclose(image[0, :, -1, -1], torch.full((3,), 51 / 127.5 - 1))


def test_raft_gives_the_last_prediction_of_torchvisions_own_recipe(small: nn.Module):
    from torchvision.models.optical_flow import Raft_Small_Weights

    a, b = (torch.from_numpy(frames(1, 128, 136, seed)) for seed in (0, 1))
    images = Raft_Small_Weights.DEFAULT.transforms()(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2))
    with torch.inference_mode():
        predictions = small(*images)
    assert not torch.allclose(predictions[-2], predictions[-1])
    assert torch.allclose(raft.raft_flow(small, a, b), predictions[-1], atol=1e-3 * float(predictions[-1].abs().max()))


def test_random_raft_is_deterministic_and_its_pairs_are_independent(small: nn.Module):
    a = frames(3, 128, 128)
    b = np.roll(a, 2, 1)
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    again = flow_network("raft-small", random_weights(0), "cpu")
    flow = raft.raft_flow(small, first, second)
    assert flow.isfinite().all()
    assert flow.std() > 0
    assert not any(p.requires_grad for p in small.parameters())
    assert not small.training
    assert torch.equal(raft.raft_flow(again, first, second), flow)
    levels = compute_flow(a, b, "raft-small", 5.0, network=small)
    assert torch.equal(compute_flow(a[1:2], b[1:2], "raft-small", 5.0, network=small), levels[1:2])
    alone = torch.cat([raft.raft_flow(small, first[i : i + 1], second[i : i + 1]) for i in range(3)])
    assert torch.allclose(alone, flow, atol=1e-3 * float(flow.abs().max()))
    assert torch.equal(quantise(alone, 5.0), levels)
    other = flow_network("raft-small", random_weights(1), "cpu")
    assert not torch.equal(raft.raft_flow(other, first[:1], second[:1]), flow[:1])


def test_raft_reads_the_file_that_torchvision_publishes(tmp_path: Path, small: nn.Module):
    """A file in torchvision's form, under a name of the user's."""
    network = FLOW_METHODS["raft-small"].network
    assert network is not None
    path = tmp_path / "mine.pth"
    torch.save(small.state_dict(), path)
    folder = WeightsFolder(tmp_path / "weights")
    weights = choose_weights(network, str(path), folder)
    loaded = flow_network("raft-small", weights, "cpu")
    a = torch.from_numpy(frames(1, 128, 128))
    assert torch.equal(raft.raft_flow(loaded, a, a.flip(2)), raft.raft_flow(small, a, a.flip(2)))
    assert choose_weights(network, "random:3", folder) == random_weights(3)
    with pytest.raises(WeightsError, match=r"raft_small_C_T_V2-01064c6d\.pth, which is not in"):
        choose_weights(network, "", folder)
    large = FLOW_METHODS["raft-large"].network
    assert large is not None
    with pytest.raises(WeightsError, match="not a checkpoint of raft-large"):
        choose_weights(large, str(path), folder)


def test_no_weights_are_downloaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("a download"))
    assert isinstance(flow_network("raft-large", Weights("random:0", "", seed=0), "cpu"), nn.Module)


def test_memory_of_raft_grows_with_the_square_of_the_places():
    assert raft.pair_bytes(1, 1) == raft.pair_bytes(128, 128)
    assert raft.pair_bytes(1024, 1024) > 10 * raft.pair_bytes(256, 256)
