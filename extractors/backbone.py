"""The table of frozen backbones, and the sets of them that the papers use together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from extractors import audio_resnet, checkpoint_keys, raft, slowfast, tiny, torchvision_models
from extractors.encoder import Backbone, Build
from extractors.inputs import AudioInput, FrameInput
from extractors.published import Published

MMACTION = "https://download.openmmlab.com/mmaction/recognition"
FAIR = "https://dl.fbaipublicfiles.com"

_RGB = FrameInput(
    num_frames=32,
    interval=2,
    resize_short=256,
    size=224,
    clean_size=224,
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
)
_FLOW = FrameInput(
    num_frames=8, interval=4, resize_short=256, size=224, clean_size=256, mean=(128.0, 128.0), std=(128.0, 128.0)
)
# PySlowFast and PyTorchVideo train on (level / 255 - 0.45) / 0.225 in every channel.
_RGB_FAIR = replace(_RGB, mean=(114.75,) * 3, std=(57.375,) * 3)
_RGB_TINY = replace(_RGB, num_frames=16, resize_short=72, size=64, clean_size=64, min_scale=0.5)
_FLOW_TINY = replace(_FLOW, resize_short=72, size=64, clean_size=64, min_scale=0.5)
# The MM / B-MM line (arXiv 2510.10986): frames at one per second, sound of three seconds at 22,050 Hz.
_RGB_SECONDS = replace(_RGB, num_frames=3, interval=1, rate_hz=1.0)
_FLOW_SECONDS = replace(_FLOW, num_frames=3, interval=1, rate_hz=1.0, clean_size=224)
_SOUND_MAGNITUDE = AudioInput(rate_hz=22_050, num_samples=66_150, overlap_samples=512 - 353, kind="magnitude")
_SOUND_MEL = AudioInput(  # librosa's default segments and bands
    rate_hz=22_050, num_samples=66_150, window_samples=2048, overlap_samples=2048 - 512, kind="mel", num_mels=128
)


def _mmaction(name: str, folder: str, file: str, digest: str) -> Published:
    """A checkpoint of MMAction2, trained on Kinetics-400."""
    config = file.rsplit("_", 1)[0]
    return Published(
        name=name,
        file=file,
        url=f"{MMACTION}/{folder}/{config}/{file}",
        digest=digest,
        trained_on="Kinetics-400",
        licence="Apache-2.0",
        source="https://github.com/open-mmlab/mmaction2",
        read=checkpoint_keys.mmaction,
    )


def _pytorchvideo(file: str) -> Published:
    """A checkpoint of PyTorchVideo, trained on Kinetics-400."""
    return Published(
        name="pytorchvideo",
        file=file,
        url=f"{FAIR}/pytorchvideo/model_zoo/kinetics/{file}",
        digest="",
        trained_on="Kinetics-400",
        licence="Apache-2.0",
        source="https://github.com/facebookresearch/pytorchvideo",
        read=checkpoint_keys.fair_slowfast,
    )


_PYSLOWFAST_R50 = Published(
    name="pyslowfast",
    file="SLOWFAST_8x8_R50.pkl",
    url=f"{FAIR}/pyslowfast/model_zoo/kinetics400/SLOWFAST_8x8_R50.pkl",
    digest="",
    trained_on="Kinetics-400",
    licence="Apache-2.0",
    source="https://github.com/facebookresearch/SlowFast",
    read=checkpoint_keys.fair_slowfast,
)
_VGGSOUND = Published(
    name="vggsound",
    file="H.pth.tar",
    url="https://www.robots.ox.ac.uk/~vgg/data/vggsound/models/H.pth.tar",
    digest="",
    trained_on="VGGSound",
    licence="not stated; the data set is CC BY 4.0",
    source="https://github.com/hche11/VGGSound",
    read=checkpoint_keys.vggsound,
)


def _imagenet(file: str, digest: str, channels: int = 3) -> Published:
    """torchvision's first ImageNet weights of a ResNet; other channels than three start from their mean."""
    return Published(
        name="imagenet",
        file=file,
        url=f"https://download.pytorch.org/models/{file}",
        digest=digest,
        trained_on="ImageNet-1k",
        licence="BSD-3-Clause",
        source="https://github.com/pytorch/vision",
        read=torchvision_models.read_resnet(channels),
    )


_RESNET18, _RESNET50 = ("resnet18-f37072fd.pth", "f37072fd"), ("resnet50-0676ba61.pth", "0676ba61")


def _tiny(
    name: str, modality: str, dim: int, wanted: FrameInput | AudioInput, build: Build, params: int, gflops: float
) -> Backbone:
    """A backbone of this package that needs no download."""
    return Backbone(
        name=name,
        modality=modality,
        dim=dim,
        input=wanted,
        params=params,
        gflops=gflops,
        licence="Apache-2.0",
        source="this package",
        build=build,
        builtin=tiny.WEIGHTS,
        builtin_note=tiny.WEIGHTS_NOTE,
        bfloat16=False,
        rows_on_cpu=64,
    )


_ROWS: tuple[Backbone, ...] = (
    _tiny("tiny-rgb", "video", tiny.FRAME_DIM, _RGB_TINY, tiny.build_rgb, 72_576, 0.099),
    _tiny("tiny-flow", "flow", tiny.FRAME_DIM, _FLOW_TINY, tiny.build_flow, 36_288, 0.009),
    _tiny("tiny-audio", "audio", tiny.AUDIO_DIM, AudioInput(16_000, 40_000), tiny.build_audio, 11_520, 0.006),
    Backbone(
        name="slowfast-r101",
        modality="video",
        dim=2304,
        input=_RGB,
        params=62_912_312,
        gflops=193.4,
        licence="Apache-2.0",
        source="Feichtenhofer et al., arXiv 1812.03982; weights of MMAction2",
        build=slowfast.build_slowfast_r101,
        published=(
            _mmaction(
                "kinetics400",
                "slowfast",
                "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth",
                "0dd54025",
            ),
        ),
        staged=True,
    ),
    Backbone(
        name="slowfast-r50",
        modality="video",
        dim=2304,
        input=_RGB,
        params=34_565_560,
        gflops=100.6,
        licence="Apache-2.0",
        source="Feichtenhofer et al., arXiv 1812.03982; weights of MMAction2",
        build=slowfast.build_slowfast_r50,
        published=(
            _mmaction(
                "kinetics400", "slowfast", "slowfast_r50_8x8x1_256e_kinetics400_rgb_20200716-73547d2b.pth", "73547d2b"
            ),
        ),
        staged=True,
    ),
    Backbone(
        name="slowfast-r101-fair",
        modality="video",
        dim=2304,
        input=_RGB_FAIR,
        params=62_826_968,
        gflops=192.8,
        licence="Apache-2.0",
        source="Feichtenhofer et al., arXiv 1812.03982; weights of PyTorchVideo",
        build=slowfast.build_slowfast_r101_normed,
        published=(_pytorchvideo("SLOWFAST_8x8_R101.pyth"),),
        staged=True,
    ),
    Backbone(
        name="slowfast-r50-fair",
        modality="video",
        dim=2304,
        input=_RGB_FAIR,
        params=34_566_488,
        gflops=100.6,
        licence="Apache-2.0",
        source="Feichtenhofer et al., arXiv 1812.03982; weights of PyTorchVideo or PySlowFast",
        build=slowfast.build_slowfast_r50_normed,
        published=(_pytorchvideo("SLOWFAST_8x8_R50.pyth"), _PYSLOWFAST_R50),
        staged=True,
    ),
    Backbone(
        name="slowonly-r50-flow",
        modality="flow",
        dim=2048,
        input=_FLOW,
        params=32_450_960,
        gflops=82.9,
        licence="Apache-2.0",
        source="Feichtenhofer et al., arXiv 1812.03982; weights of MMAction2",
        build=slowfast.build_slowonly_r50_flow,
        published=(
            _mmaction(
                "kinetics400", "slowonly", "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth", "6b384243"
            ),
        ),
        staged=True,
    ),
    Backbone(
        name="vggsound-r18",
        modality="audio",
        dim=512,
        input=AudioInput(rate_hz=16_000, num_samples=160_000),
        params=11_328_757,
        gflops=18.9,
        licence="not stated; the data set is CC BY 4.0",
        source="Chen et al., arXiv 2004.14368",
        build=audio_resnet.build_vggsound_r18,
        published=(_VGGSOUND,),
        staged=True,
    ),
    Backbone(
        name="resnet18",
        modality="video",
        dim=512,
        input=_RGB_SECONDS,
        params=11_689_512,
        gflops=10.9,
        licence="BSD-3-Clause",
        source="He et al., arXiv 1512.03385; torchvision",
        build=torchvision_models.build_resnet18,
        published=(_imagenet(*_RESNET18),),
        staged=True,
    ),
    Backbone(
        name="resnet50",
        modality="video",
        dim=2048,
        input=_RGB_SECONDS,
        params=25_557_032,
        gflops=24.5,
        licence="BSD-3-Clause",
        source="He et al., arXiv 1512.03385; torchvision",
        build=torchvision_models.build_resnet50,
        published=(_imagenet(*_RESNET50),),
        staged=True,
    ),
    Backbone(
        name="resnet18-flow",
        modality="flow",
        dim=512,
        input=_FLOW_SECONDS,
        params=11_686_376,
        gflops=10.6,
        licence="BSD-3-Clause",
        source="He et al., arXiv 1512.03385; torchvision, first convolution as in TSN (arXiv 1608.00859)",
        build=torchvision_models.build_resnet18_flow,
        published=(_imagenet(*_RESNET18, channels=2),),
        staged=True,
    ),
    Backbone(
        name="resnet18-spec",
        modality="audio",
        dim=512,
        input=_SOUND_MAGNITUDE,
        params=11_683_240,
        gflops=3.57,
        licence="BSD-3-Clause",
        source="He et al., arXiv 1512.03385; torchvision, first convolution as in TSN (arXiv 1608.00859)",
        build=torchvision_models.build_resnet18_spec,
        published=(_imagenet(*_RESNET18, channels=1),),
        staged=True,
    ),
    Backbone(
        name="resnet18-mel",
        modality="audio",
        dim=512,
        input=_SOUND_MEL,
        params=11_683_240,
        gflops=1.26,
        licence="BSD-3-Clause",
        source="He et al., arXiv 1512.03385; torchvision, first convolution as in TSN (arXiv 1608.00859)",
        build=torchvision_models.build_resnet18_spec,
        published=(_imagenet(*_RESNET18, channels=1),),
        staged=True,
    ),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}

DEFAULT_BACKBONES: dict[str, str] = {"video": "tiny-rgb", "flow": "tiny-flow", "audio": "tiny-audio"}

PRESETS: dict[str, Mapping[str, str]] = {  # what is used together; by modality
    "tiny": DEFAULT_BACKBONES,
    "ssmdg": {"video": "slowfast-r101", "flow": "slowonly-r50-flow", "audio": "vggsound-r18"},
    "bmm": {"video": "resnet18", "flow": "resnet18-flow", "audio": "resnet18-spec"},
}


def find_backbone(name: str) -> Backbone:
    """Return a backbone of the table, or one made of a torchvision model (``torchvision:mvit_v2_s``).

    Raises:
        ValueError: no such backbone; the nearest name is told.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith(torchvision_models.PREFIX):
        return torchvision_models.backbone_of(name)
    near = difflib.get_close_matches(name, BACKBONES, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{name!r} is not a backbone.{hint} Allowed: {', '.join(BACKBONES)}, or {torchvision_models.PREFIX}MODEL "
        "(`pipe backbones` lists them)"
    )


def all_published() -> list[Published]:
    """Every weight file of the table and of the networks of optical flow, once."""
    rows = (*BACKBONES.values(), *raft.NETWORKS.values())
    return list({published.file: published for row in rows for published in row.published}.values())
