"""Names of the published checkpoint files against names of our networks.

The foreign names are generated here by plain loops, apart from the tables under test; a sample of them, written down
from logs in which PySlowFast converts published files, checks the loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extractors.audio_resnet import build_vggsound_r18
from extractors.backbone import find_backbone
from extractors.checkpoint_keys import (
    check_tensors,
    fair_slowfast,
    mmaction,
    vggsound,
)
from extractors.loading import choose_weights, load_network
from extractors.slowfast import (
    SlowFast,
    build_slowfast_r50,
    build_slowfast_r50_normed,
    build_slowfast_r101_normed,
    build_slowonly_r50_flow,
)
from extractors.weights import WeightsError, WeightsFolder

Reader = Callable[[Mapping[str, object]], dict[str, Tensor]]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
CAFFE2_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}

# PySlowFast's log of loading a published R101 file of Caffe2 (lateral kernel 5): its name, PySlowFast's own, the shape.
LOGGED = """
t_conv1_w s1.pathway1_stem.conv.weight 8,3,5,7,7
t_res_conv1_bn_b s1.pathway1_stem.bn.bias 8
res_conv1_bn_rm s1.pathway0_stem.bn.running_mean 64
t_pool1_subsample_w s1_fuse.conv_f2s.weight 16,8,5,1,1
t_pool1_subsample_bn_rm s1_fuse.bn.running_mean 16
t_res2_2_branch2c_bn_subsample_bn_riv s2_fuse.bn.running_var 64
t_res3_3_branch2c_bn_subsample_w s3_fuse.conv_f2s.weight 128,64,5,1,1
t_res3_3_branch2c_bn_subsample_bn_rm s3_fuse.bn.running_mean 128
t_res4_22_branch2c_bn_subsample_bn_riv s4_fuse.bn.running_var 256
t_res4_22_branch2c_bn_subsample_bn_s s4_fuse.bn.weight 256
t_res4_22_branch2c_bn_subsample_bn_b s4_fuse.bn.bias 256
res2_0_branch2c_w s2.pathway0_res0.branch2.c.weight 256,64,1,1,1
res2_0_branch2c_bn_b s2.pathway0_res0.branch2.c_bn.bias 256
res3_0_branch1_w s3.pathway0_res0.branch1.weight 512,320,1,1,1
res3_0_branch1_bn_rm s3.pathway0_res0.branch1_bn.running_mean 512
res3_0_branch2a_w s3.pathway0_res0.branch2.a.weight 128,320,1,1,1
res3_3_branch2b_w s3.pathway0_res3.branch2.b.weight 128,128,1,3,3
res4_1_branch2a_w s4.pathway0_res1.branch2.a.weight 256,1024,3,1,1
res4_16_branch2b_bn_s s4.pathway0_res16.branch2.b_bn.weight 256
res4_19_branch2c_bn_riv s4.pathway0_res19.branch2.c_bn.running_var 1024
res5_0_branch1_w s5.pathway0_res0.branch1.weight 2048,1280,1,1,1
res5_2_branch2c_bn_riv s5.pathway0_res2.branch2.c_bn.running_var 2048
t_res2_0_branch1_w s2.pathway1_res0.branch1.weight 32,8,1,1,1
t_res2_1_branch2b_w s2.pathway1_res1.branch2.b.weight 8,8,1,3,3
t_res3_0_branch1_bn_rm s3.pathway1_res0.branch1_bn.running_mean 64
t_res4_9_branch2a_bn_rm s4.pathway1_res9.branch2.a_bn.running_mean 32
t_res4_22_branch2c_w s4.pathway1_res22.branch2.c.weight 128,32,1,1,1
t_res5_1_branch2a_w s5.pathway1_res1.branch2.a.weight 64,256,3,1,1
"""


def convolutions(depth: int) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Our name of every convolution with its normalisation, and per format the names of the two."""
    for p, (path, prefix) in enumerate((("slow_path", ""), ("fast_path", "t_"))):
        stem = {
            "pytorchvideo": (f"blocks.0.multipathway_blocks.{p}.conv", f"blocks.0.multipathway_blocks.{p}.norm"),
            "pyslowfast": (f"s1.pathway{p}_stem.conv", f"s1.pathway{p}_stem.bn"),
            "caffe2": (f"{prefix}conv1", f"{prefix}res_conv1_bn"),
        }
        yield f"backbone.{path}.conv1", stem
        for s, count in enumerate(BLOCKS[depth], 1):
            for b in range(count):
                there = f"blocks.{s}.multipathway_blocks.{p}.res_blocks.{b}"
                here = f"s{s + 1}.pathway{p}_res{b}"
                blob = f"{prefix}res{s + 1}_{b}_branch"
                for k, letter in enumerate("abc", 1):
                    names = {
                        "pytorchvideo": (f"{there}.branch2.conv_{letter}", f"{there}.branch2.norm_{letter}"),
                        "pyslowfast": (f"{here}.branch2.{letter}", f"{here}.branch2.{letter}_bn"),
                        "caffe2": (f"{blob}2{letter}", f"{blob}2{letter}_bn"),
                    }
                    yield f"backbone.{path}.layer{s}.{b}.conv{k}", names
                if b == 0:
                    names = {
                        "pytorchvideo": (f"{there}.branch1_conv", f"{there}.branch1_norm"),
                        "pyslowfast": (f"{here}.branch1", f"{here}.branch1_bn"),
                        "caffe2": (f"{blob}1", f"{blob}1_bn"),
                    }
                    yield f"backbone.{path}.layer{s}.{b}.downsample", names
    for s in range(4):
        fusion = f"blocks.{s}.multipathway_fusion"
        blob = "t_pool1" if s == 0 else f"t_res{s + 1}_{BLOCKS[depth][s - 1] - 1}_branch2c_bn"
        names = {
            "pytorchvideo": (f"{fusion}.conv_fast_to_slow", f"{fusion}.norm"),
            "pyslowfast": (f"s{s + 1}_fuse.conv_f2s", f"s{s + 1}_fuse.bn"),
            "caffe2": (f"{blob}_subsample", f"{blob}_subsample_bn"),
        }
        before = "conv1" if s == 0 else f"layer{s}"
        yield f"backbone.slow_path.{before}_lateral", names


def foreign_names(depth: int, kind: str) -> dict[str, str]:
    """Their name of every tensor -> ours."""
    names = {}
    for ours, theirs in convolutions(depth):
        conv, norm = theirs[kind]
        names[f"{conv}_w" if kind == "caffe2" else f"{conv}.weight"] = f"{ours}.conv.weight"
        for value in NORM:
            if kind != "caffe2":
                names[f"{norm}.{value}"] = f"{ours}.bn.{value}"
            elif value in CAFFE2_NORM:
                names[f"{norm}_{CAFFE2_NORM[value]}"] = f"{ours}.bn.{value}"
    head = {"pytorchvideo": "blocks.6.proj.", "pyslowfast": "head.projection.", "caffe2": "pred_"}[kind]
    for value in ("weight", "bias"):
        names[head + (value[0] if kind == "caffe2" else value)] = f"cls_head.fc_cls.{value}"
    return names


def drawn(network: nn.Module) -> dict[str, Tensor]:
    """A state dict of the network's shapes, no two tensors alike."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for number, (key, value) in enumerate(network.state_dict().items()):
        counter = key.endswith("num_batches_tracked")
        state[key] = torch.tensor(number) if counter else torch.rand(value.shape, generator=generator)
    return state


@pytest.fixture(scope="module")
def normed() -> dict[str, Tensor]:
    with torch.device("meta"):
        network = build_slowfast_r50_normed()
    return drawn(network)


def slow_first(weight: Tensor) -> Tensor:
    """Our classifier as they store it: the slow path's 2048 columns, then the fast path's 256."""
    fast, slow = weight.split([256, 2048], 1)
    return torch.cat([slow, fast], 1)


def file_of(kind: str, ours: dict[str, Tensor], depth: int = 50) -> dict[str, object]:
    """Content of a checkpoint file with our tensors under their names."""
    tensors = {**ours, "cls_head.fc_cls.weight": slow_first(ours["cls_head.fc_cls.weight"])}
    renamed = {theirs: tensors[name] for theirs, name in foreign_names(depth, kind).items()}
    if kind != "caffe2":
        return {"model_state": renamed, "epoch": 196, "cfg": "TRAIN: ..."}
    blobs: dict[str, object] = {name: value.numpy() for name, value in renamed.items()}
    momenta = {f"{name}_momentum": np.zeros(1, np.float32) for name in blobs if not name.endswith(("_rm", "_riv"))}
    return {"blobs": {**blobs, **momenta, "lr": np.float32(0.1), "model_iter": 1}}


FAIR = ("pytorchvideo", "pyslowfast", "caffe2")


@pytest.mark.parametrize("kind", FAIR)
def test_slowfast_formats_round_trip(kind: str, normed: dict[str, Tensor]):
    result = fair_slowfast(file_of(kind, normed))
    assert set(result) == set(normed)
    for name, value in normed.items():
        if kind == "caffe2" and name.endswith("num_batches_tracked"):
            value = torch.tensor(0)
        assert torch.equal(result[name], value), name
    with torch.device("meta"):
        check_tensors(build_slowfast_r50_normed(), result, "file")


def test_names_in_a_published_log():
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_slowfast_r101_normed().state_dict().items()}
    caffe2, own = foreign_names(101, "caffe2"), foreign_names(101, "pyslowfast")
    assert set(caffe2.values()) == {name for name in shapes if not name.endswith("num_batches_tracked")}
    for line in LOGGED.split("\n")[1:-1]:
        blob, name, shape = line.split()
        wanted = caffe2[blob]
        assert own[name] == wanted
        value = torch.rand([int(n) for n in shape.split(",")])
        assert value.shape == shapes[wanted], line
        for result in (fair_slowfast({"blobs": {blob: value.numpy()}}), fair_slowfast({"model_state": {name: value}})):
            assert torch.equal(result[wanted], value), line


def test_classifier_gives_the_same_logits(normed: dict[str, Tensor]):
    """Theirs takes [slow, fast], ours [fast, slow]."""
    slow, fast = torch.rand(3, 2048), torch.rand(3, 256)
    theirs = {"head.projection.weight": torch.rand(400, 2304), "head.projection.bias": torch.rand(400)}
    expected = torch.cat([slow, fast], 1) @ theirs["head.projection.weight"].T + theirs["head.projection.bias"]
    result = fair_slowfast(theirs)
    with torch.device("meta"):
        network = SlowFast(50)
    network.cls_head.fc_cls.to_empty(device="cpu")
    network.cls_head.load_state_dict({name.removeprefix("cls_head."): value for name, value in result.items()})
    logits = network.classify(torch.cat([fast, slow], 1))
    assert torch.allclose(logits, expected, rtol=1e-5)
    assert torch.equal(result["cls_head.fc_cls.weight"][:, :256], theirs["head.projection.weight"][:, 2048:])


@pytest.mark.parametrize(
    ("build", "read", "entry"),
    [
        (build_slowfast_r50, mmaction, "state_dict"),
        (build_slowonly_r50_flow, mmaction, "state_dict"),
        (build_vggsound_r18, vggsound, "model_state_dict"),
        (build_vggsound_r18, vggsound, "state_dict"),
    ],
)
def test_files_whose_names_are_ours(build: Callable[[], nn.Module], read: Reader, entry: str):
    with torch.device("meta"):
        network = build()
    state = drawn(network)
    for content in ({"meta": {}, entry: state}, {entry: {f"module.{k}": v for k, v in state.items()}}, state):
        result = read(content)
        check_tensors(network, result, "file")
        assert all(torch.equal(result[name], value) for name, value in state.items())


def test_old_files_without_batch_counters():
    with torch.device("meta"):
        network = build_vggsound_r18()
    state = drawn(network)
    result = vggsound({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")})
    check_tensors(network, result, "file")
    assert all(value == 0 for name, value in result.items() if name.endswith("num_batches_tracked"))
    assert result["audnet.bn1.num_batches_tracked"].dtype == torch.int64


def test_drops_the_layer_that_ssmdg_never_uses():
    state = {"cls_head.fc_reduce.weight": torch.rand(512, 2304), "cls_head.fc_reduce.bias": torch.rand(512)}
    kept = {"cls_head.fc_cls.bias": torch.rand(400)}
    assert set(mmaction({"state_dict": {**state, **kept}})) == set(kept)


@pytest.mark.parametrize(
    ("read", "name", "format_name"),
    [
        (mmaction, "backbone.slow_path.conv1_lateral.bn.weight", "mmaction checkpoint"),
        (mmaction, "backbone.layer5.0.conv1.conv.weight", "mmaction checkpoint"),
        (mmaction, "cls_head.fc_cls.scale", "mmaction checkpoint"),
        (mmaction, "cls_head.fc_reduce.scale", "mmaction checkpoint"),
        (mmaction, "backboneXconv1.conv.weight", "mmaction checkpoint"),
        (vggsound, "audnet.fc_.weight", "VGGSound checkpoint"),
        (vggsound, "audnet.avgpool.centroids", "VGGSound checkpoint"),
    ],
)
def test_unknown_names(read: Reader, name: str, format_name: str):
    with pytest.raises(ValueError, match="^" + format_name) as error:
        read({name: torch.rand(2)})
    assert str(error.value) == f"{format_name}: 1 unknown ({name}); a file of another network?"


@pytest.mark.parametrize(
    ("kind", "known", "name"),
    [
        ("pytorchvideo", "blocks.6.proj.bias", "blocks.5.proj.weight"),
        ("pytorchvideo", "blocks.6.proj.bias", "blocks.4.multipathway_fusion.norm.weight"),
        ("PySlowFast", "head.projection.bias", "s5_fuse.bn.weight"),
        ("PySlowFast", "head.projection.bias", "s4.pathway0_nonlocal6.conv_g.weight"),
        ("PySlowFast", "head.projection.bias", "s2.pathway2_res0.branch1.weight"),
        ("PySlowFast Caffe2", "pred_b", "nonlocal_conv4_6_phi_w"),
        ("PySlowFast Caffe2", "pred_b", "conv1_b"),
        ("PySlowFast Caffe2", "pred_b", "lr_2"),
    ],
)
def test_unknown_names_of_slowfast(kind: str, known: str, name: str):
    with pytest.raises(ValueError, match="unknown") as error:
        fair_slowfast({known: torch.rand(2), name: torch.rand(2)})
    assert str(error.value) == f"{kind} checkpoint of SlowFast: 1 unknown ({name}); a file of another network?"


def test_names_five_of_many_unknown():
    with pytest.raises(ValueError, match=r"mmaction checkpoint: 7 unknown \(x0, x1, x2, x3, x4, \.\.\.\); a file of"):
        mmaction({"state_dict": {f"x{i}": torch.rand(2) for i in range(7)}})


def test_content_that_is_no_table_of_tensors():
    with pytest.raises(ValueError, match="VGGSound checkpoint: entry 'model_state_dict' is a list, not a table"):
        vggsound({"model_state_dict": []})
    with pytest.raises(ValueError, match="VGGSound checkpoint: 1 unknown \\(epoch\\)"):
        vggsound({"epoch": 3})
    with pytest.raises(ValueError, match="PySlowFast Caffe2 checkpoint of SlowFast: pred_w is a float, not a tensor"):
        fair_slowfast({"blobs": {"pred_w": 0.5}})
    twice = {"t_res2_1_branch2c_bn_subsample_w": np.zeros(1), "t_res2_2_branch2c_bn_subsample_w": np.zeros(1)}
    with pytest.raises(
        ValueError, match=r"two tensors are backbone\.slow_path\.layer1_lateral\.conv\.weight, the second"
    ):
        fair_slowfast({"blobs": twice})
    with pytest.raises(ValueError, match=r"two tensors are audnet\.fc\.bias, the second is module\.audnet"):
        vggsound({"audnet.fc.bias": torch.zeros(309), "module.audnet.fc.bias": torch.zeros(309)})


def test_check_tensors_names_what_does_not_fit():
    with torch.device("meta"):
        network = build_vggsound_r18()
    state = drawn(network)
    check_tensors(network, state, "a.pth")
    state["audnet.fc.weight"] = torch.rand(527, 512)
    with pytest.raises(ValueError, match="fit") as error:
        check_tensors(network, state, "a.pth")
    assert str(error.value) == (
        "tensors of a.pth do not fit VggSoundResNet18: "
        "1 of another shape (audnet.fc.weight (527, 512), wanted (309, 512))"
    )
    for layer in (1, 2):
        state[f"extra{layer}"] = state.pop(f"audnet.layer1.0.conv{layer}.weight")
    for name in [name for name in state if name.startswith("audnet.layer4.1.bn2.")]:
        del state[name]
    with pytest.raises(ValueError, match="fit") as error:
        check_tensors(network, state, "a.pth")
    assert "7 missing (audnet.layer1.0.conv1.weight, audnet.layer1.0.conv2.weight, " in str(error.value)
    assert "audnet.layer4.1.bn2.running_mean, ...); 2 unknown (extra1, extra2); 1 of another shape" in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(("depth", "kernel"), [(50, 7), (101, 5)])
def test_computes_what_pytorchvideo_computes(depth: int, kernel: int):
    """Largest differences seen: 2.9e-7 (embedding) and 3.2e-7 (logits) of the largest value."""
    theirs = pytest.importorskip("pytorchvideo.models.slowfast").create_slowfast(
        model_depth=depth,
        slowfast_fusion_conv_kernel_size=(kernel, 1, 1),
        head_pool_kernel_sizes=((8, 2, 2), (32, 2, 2)),  # of a clip of 64 x 64 instead of 224 x 224
    )
    generator = torch.Generator().manual_seed(3)
    for name, value in theirs.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name == "blocks.6.proj.weight":
            value.normal_(0, 0.03, generator=generator)
    ours = build_slowfast_r50_normed() if depth == 50 else build_slowfast_r101_normed()
    ours.load_state_dict(fair_slowfast({"model_state": theirs.state_dict()}))

    pooled: list[Tensor] = []
    theirs.blocks[5].register_forward_hook(lambda _, __, output: pooled.append(output.flatten(1)))
    x = torch.randn(2, 3, 32, 64, 64, generator=generator)
    with torch.inference_mode():
        expected = theirs.eval()([x[:, :, torch.linspace(0, 31, 8).long()], x])
        embedding = ours.eval()(x)
        logits = ours.classify(embedding)
    slow, fast = pooled[0].split([2048, 256], 1)
    for result, wanted in ((embedding, torch.cat([fast, slow], 1)), (logits, expected)):
        assert (result - wanted).abs().max() <= 2e-6 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["pytorchvideo", "pyslowfast"])
def test_a_users_own_file_of_slowfast_is_known_by_its_names(
    kind: str, normed: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "mine.pyth"
    torch.save(file_of(kind, normed), path)
    backbone = find_backbone("slowfast-r50-fair")
    weights = choose_weights(backbone, str(path), WeightsFolder(tmp_path / "none"))
    assert "from the user's file mine.pyth" in weights.note
    loaded = load_network(backbone, weights).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in normed.items())
    with pytest.raises(WeightsError, match="not a checkpoint of slowfast-r50 in the form of kinetics400: mmaction"):
        choose_weights(find_backbone("slowfast-r50"), str(path), WeightsFolder(tmp_path / "none"))
