"""torchvision's classifiers of images and video as backbones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from extractors import torchvision_models as ours
from extractors.encoder import Backbone, Encoder
from extractors.inputs import FrameInput
from tests.unit.test_resnets import lively

IMAGES = list_models(module=torchvision.models)
VIDEOS = list_models(module=torchvision.models.video)
HANDFUL = (
    "resnet18",
    "mvit_v2_s",
    "swin3d_t",
    "r3d_18",
    "s3d",
    "vit_b_16",
    "convnext_tiny",
    "efficientnet_b0",
    "densenet121",
    "mobilenet_v3_small",
    "swin_t",
    "mnasnet0_5",
    "squeezenet1_1",
    "googlenet",
    "regnet_y_400mf",
)
DIMS = {"resnet18": 512, "mvit_v2_s": 768, "s3d": 1024, "vit_b_16": 768, "densenet121": 1024, "squeezenet1_1": 512}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def as_published(model: str, side: int) -> dict[str, Tensor]:
    """Names as the published file of a model has them: those of its own class, or of the version it was saved by."""
    options: dict[str, Any] = {"image_size": side} if model.startswith("vit_") else {}
    if model in ("googlenet", "inception_v3"):
        options = {"aux_logits": True, "init_weights": False}
    with torch.device("meta"), ours._CountsOnCpu():
        content = get_model(model, **options).state_dict()
    if model.startswith("densenet"):
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", n): v for n, v in old_file_of(content)}
    if model.startswith("vit_"):
        content = {
            n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for n, v in content.items()
        }
    return dict(content)


def old_file_of(content: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in content.items() if "tracked" not in name]


def check_on_meta(model: str, weights: str = "") -> Backbone:
    """All that can be checked of a backbone without computing."""
    backbone = ours.backbone_of(f"torchvision:{model}" + (f"@{weights}" if weights else ""))
    assert isinstance(backbone.input, FrameInput)
    assert backbone.input.channels == 3
    assert backbone.input.size == backbone.input.clean_size <= backbone.input.resize_short
    members = {member.name.lower(): member for member in get_model_weights(model)}
    member = members[weights] if weights else get_model_weights(model).DEFAULT
    with torch.device("meta"):
        network = backbone.build().eval()
        assert network(torch.empty(2, *backbone.row_shape())).shape == (2, backbone.dim)
        assert all(value.is_meta for value in network.state_dict().values())
    assert backbone.published
    assert backbone.published[0].name == member.name.lower()
    for published in backbone.published:
        assert published.url.endswith(published.file)
        assert re.search(rf"-{published.digest}\.pth$", published.file)
        assert len(published.digest) >= 8
        assert "whose terms apply" in published.licence
        tensors = published.read(as_published(model, backbone.input.size))
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        assert {name: value.shape for name, value in tensors.items()} == shapes
    if model != "inception_v3":  # torchvision counts its training-only classifier too
        assert backbone.params == member.meta["num_params"]
    # torchvision's figures: multiplications and additions as one, of one picture or 16 frames, to three decimals.
    times = 8 if model in IMAGES else backbone.input.num_frames / 16
    assert backbone.gflops == pytest.approx(2 * times * member.meta["_ops"], rel=1e-3, abs=0.01 * times)
    return backbone


@pytest.mark.parametrize("model", HANDFUL)
def test_a_model_on_paper(model: str):
    assert check_on_meta(model).dim == DIMS.get(model, ours.backbone_of(model).dim)


@pytest.mark.soak
def test_every_model_on_paper():
    wrong = {}
    for model in [*IMAGES, *VIDEOS]:
        for member in get_model_weights(model):
            if member.meta["categories"] is not None:
                try:
                    check_on_meta(model, member.name.lower())
                except Exception as error:  # what is wrong with all of them is wanted
                    wrong[str(member)] = repr(error)
    assert not wrong


CHEAP = {  # what they are really run on: frames and side
    "resnet18": (2, 64),
    "convnext_tiny": (1, 64),
    "efficientnet_b0": (2, 64),
    "densenet121": (1, 64),
    "mobilenet_v3_small": (2, 64),
    "squeezenet1_1": (2, 64),
    "mnasnet0_5": (2, 64),
    "googlenet": (1, 64),
    "vit_b_16": (1, 224),
    "swin_t": (1, 64),
    "r3d_18": (8, 48),
    "swin3d_t": (4, 64),
    "mvit_v2_s": (16, 224),
    "s3d": (14, 224),
}


def input_of_the_head(model: str, network: nn.Module, x: Tensor) -> Tensor:
    """What the head of torchvision's own model is given, caught on its way in."""
    options = {"transform_input": True, "aux_logits": False, "init_weights": False} if model == "googlenet" else {}
    whole = get_model(model, **options).eval()
    given = {name.removeprefix("model."): value for name, value in network.state_dict().items()}
    before = whole.state_dict()
    heads = {name.rpartition(".")[0] for name in before if name not in given}
    assert len(heads) == 1
    for name, value in before.items():
        value.copy_(given.get(name, value))
    head = whole.get_submodule(heads.pop())
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    video = model in VIDEOS
    logits = whole(x if video else x[0].transpose(0, 1))
    caught = seen[0].flatten(2).mean(2) if seen[0].ndim > 2 else seen[0]
    if isinstance(head, nn.Linear | nn.Conv3d):  # the logits are linear in the embedding; SqueezeNet's are not
        assert torch.allclose(nn.functional.linear(caught, head.weight.flatten(1), head.bias), logits, atol=1e-4)
    return caught if video else caught.mean(0, keepdim=True)


@pytest.mark.parametrize("model", CHEAP)
@torch.inference_mode()
def test_the_embedding_is_what_the_classifier_is_given(model: str):
    network = lively(ours.backbone_of(f"torchvision:{model}").build())
    frames, side = CHEAP[model]
    x = torch.randn(1, 3, frames, side, side)
    embedding = network(x)
    assert embedding.dtype == torch.float32
    assert embedding.std() > 1e-4
    assert torch.allclose(embedding, input_of_the_head(model, network, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", ["mnasnet0_5", "densenet121", "googlenet"])
def test_a_file_without_versions_loads(model: str):
    backbone = ours.backbone_of(model)
    whole = lively(get_model(model, **({"init_weights": False} if model == "googlenet" else {})))
    content = {name: value for name, value in whole.state_dict().items() if "tracked" not in name}
    network = backbone.build()
    network.load_state_dict(backbone.published[0].read(content))
    loaded = {name.removeprefix("model."): value for name, value in network.state_dict().items()}
    assert all(torch.equal(value, content[name]) for name, value in loaded.items() if "tracked" not in name)


@pytest.mark.parametrize("model", ["resnet18", "r3d_18", "swin_t"])
@torch.inference_mode()
def test_rows_of_any_model_stand_alone(model: str):
    frames, side = CHEAP[model]
    encoder = Encoder(lively(ours.backbone_of(model).build()), torch.device("cpu"))
    x = torch.randn(3, 3, frames, side, side)
    x[2] *= 50
    together = encoder(x)
    for row in range(3):
        alone = encoder(x[row : row + 1])[0]
        assert (together[row] - alone).abs().max() <= 1e-5 * max(1, alone.abs().max())


def test_video_models_see_the_frames_they_were_trained_on():
    """torchvision states frames and their rate; Kinetics has 30 per second. S3D's are those of its evaluation."""
    for model in VIDEOS:
        wanted = ours.backbone_of(model).input
        assert isinstance(wanted, FrameInput)
        for member in get_model_weights(model):
            stated = dict(re.findall(r"`(clip_len|frame_rate)=([\d.]+)`", member.meta["_docs"]))
            assert 30 / wanted.interval == float(stated["frame_rate"])
            assert wanted.num_frames == (64 if model == "s3d" else int(stated["clip_len"]))
            assert wanted.rate_hz is None


def test_preprocessing_is_that_of_the_weights():
    resnet = ours.backbone_of("resnet50").input
    imagenet = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    assert resnet == FrameInput(8, 1, 232, 224, 224, **imagenet, rate_hz=1.0)
    assert ours.backbone_of("resnet50@imagenet1k_v1").input == FrameInput(8, 1, 256, 224, 224, **imagenet, rate_hz=1.0)
    r3d = ours.backbone_of("r3d_18").input
    assert isinstance(r3d, FrameInput)
    assert (r3d.resize_short, r3d.size) == (128, 112)
    assert r3d.mean == pytest.approx((110.2008, 100.63983, 95.99475))
    assert r3d.std == pytest.approx((58.14765, 56.46975, 55.332195))


def test_weights_of_another_size_are_a_backbone_of_their_own():
    plain, fine = (
        ours.backbone_of("torchvision:vit_b_16"),
        ours.backbone_of("torchvision:vit_b_16@imagenet1k_swag_e2e_v1"),
    )
    assert [p.name for p in plain.published] == ["imagenet1k_v1"]
    assert [p.name for p in fine.published] == ["imagenet1k_swag_e2e_v1"]
    assert (plain.row_shape()[-1], fine.row_shape()[-1]) == (224, 384)
    assert plain.name == "torchvision:vit_b_16"
    assert fine.name == "torchvision:vit_b_16@imagenet1k_swag_e2e_v1"
    assert "CC BY-NC" in fine.published[0].licence
    assert "SWAG" in fine.published[0].trained_on
    assert ours.backbone_of("torchvision:vit_b_16@imagenet1k_v1").name == plain.name
    assert [p.name for p in ours.backbone_of("swin3d_b").published] == ["kinetics400_v1", "kinetics400_imagenet22k_v1"]
    assert "ImageNet-22K" in ours.backbone_of("swin3d_b").published[1].trained_on


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match=r"no model 'resnet19' that classifies.*nearest: .*resnet18"):
        ours.backbone_of("torchvision:resnet19")
    with pytest.raises(ValueError, match=r"no model 'qqq'.*for example: "):
        ours.backbone_of("torchvision:qqq")
    with pytest.raises(ValueError, match="'raft_large' does not classify"):
        ours.backbone_of("torchvision:raft_large")
    with pytest.raises(ValueError, match="resnet18 has no weights 'imagenet'; allowed: imagenet1k_v1"):
        ours.backbone_of("torchvision:resnet18@imagenet")
    with pytest.raises(ValueError, match=r"allowed: imagenet1k_v1$"):  # its other file holds the convolutions alone
        ours.backbone_of("torchvision:vgg16@imagenet1k_features")
    with pytest.raises(ValueError, match=r"allowed: \(rows, 3, frames, height, width\)"):
        ours.backbone_of("resnet18").build()(torch.zeros(1, 3, 64, 64))


def test_torchvision_is_imported_when_it_is_needed():
    code = "import sys; import extractors.torchvision_models; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
