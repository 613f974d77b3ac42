"""What is extracted and how: the settings that make a feature cache what it is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from cache.layout import DTYPES, Identity
from extractors.backbone import DEFAULT_BACKBONES, find_backbone
from extractors.checkpoint_files import CheckpointError
from extractors.encoder import PRECISIONS, Backbone, Tap
from extractors.inputs import AudioInput, FrameInput
from extractors.loading import Weights, choose_weights
from extractors.optical_flow import FLOW_METHODS, find_flow_method
from extractors.weights import WeightsError, WeightsFolder, default_folder
from pipeline.decode.resample import check_resampler
from pipeline.errors import UsageError, choose
from pipeline.types import MODALITIES, ViewSpec

VIEWS_REVISION = 1  # goes up whenever the same view gives other pixels or samples
CUDA_DECODER = "torchcodec-cuda"
FLOW_REVISION = 2  # likewise of optical flow; 1: a pair of small frames could depend on the pairs before it
FLOW_BOUND = 20.0  # pixels; flow beyond it saturates, as in the published data sets
LATER_FIELDS = {  # of inputs, with the values that change nothing: caches made before them stay valid
    **{"rate_hz": None, "kind": "power", "num_mels": 0, "min_hz": 0.0, "max_hz": None}
}


@dataclass(frozen=True)
class ExtractSettings:
    """What is extracted, and how."""

    modalities: tuple[str, ...] = MODALITIES
    backbones: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_BACKBONES))  # per modality
    weights: Mapping[str, Weights] = field(default_factory=dict)  # per modality; default: built-in ones
    tap: str = "pool"  # where in the networks features are taken
    precision: Mapping[str, str] = field(default_factory=dict)  # per modality, of the networks; default: float32
    dtype: str = DTYPES[0]  # of the stored features
    views: ViewSpec = field(default_factory=ViewSpec)
    flow_method: str = "dis-medium"
    flow_weights: Weights | None = None  # of a method that has a network
    device: str = "cpu"
    compiled: bool = False  # networks go through torch.compile
    resampler: str = "swresample"  # of sound
    decoder: str = "auto"  # of video files
    deadline_seconds: float = 120.0  # for decoding one clip
    ahead: int = 1  # clips that a worker decodes ahead of the one that it encodes
    given: Mapping[str, Identity] = field(default_factory=dict)  # modality -> group that is used as it is

    def __post_init__(self) -> None:
        choose("type of stored features", self.dtype, DTYPES)
        for modality in self.modalities:
            choose("modality", modality, MODALITIES)
            if modality in self.given:  # whatever made it need not be known here
                continue
            choose("precision", self.precision_of(modality), PRECISIONS)
            backbone = self.backbone(modality)
            if backbone.modality != modality:
                raise UsageError(f"backbone {backbone.name!r} takes {backbone.modality}, not {modality}")
            with usage_errors():
                Tap(self.tap).check(backbone)
        choose("method of optical flow", self.flow_method, FLOW_METHODS)
        with usage_errors():
            find_flow_method(self.flow_method)
        check_resampler(self.resampler)

    def backbone(self, modality: str) -> Backbone:
        """The backbone of a modality.

        Raises:
            UsageError: there is no such backbone.
        """
        with usage_errors():
            return find_backbone(self.backbones[modality])

    def weights_of(self, modality: str) -> Weights:
        """The weights of a modality's backbone.

        Raises:
            UsageError: none were chosen, and the backbone has none built in.
        """
        if modality in self.weights:
            return self.weights[modality]
        with usage_errors():
            return choose_weights(self.backbone(modality), "", WeightsFolder(default_folder()))

    @property
    def decode_device(self) -> str:
        """Where decoded frames are put."""
        return self.device if self.decoder == CUDA_DECODER else "cpu"

    def precision_of(self, modality: str) -> str:
        """``float32`` or ``bfloat16``."""
        return self.precision.get(modality, PRECISIONS[0])

    def identity(self, dataset: str, modality: str) -> Identity:
        """Identity of the cache group of a modality."""
        if modality in self.given:
            return self.given[modality]
        backbone = self.backbone(modality)
        settings: dict[str, Any] = {
            "input": plain_input(backbone.input),
            "augmentation": self.views.variant,
            "revisions": {"backbone": backbone.revision, "views": VIEWS_REVISION},
            "resize": "uint8 antialiased bilinear" if self.views.variant == "strict" else "uint8 bilinear",
        }
        if modality == "flow":
            settings |= {"flow": self.flow_method, "flow_bound": FLOW_BOUND, "flow_revision": FLOW_REVISION}
            if self.flow_weights is not None:
                settings |= {"flow_weights": self.flow_weights.identity}
            if self.flow_method == "tvl1-opencv":
                settings |= {"opencv": version("opencv-contrib-python-headless")}
        if modality != "audio" and self.decoder == CUDA_DECODER:  # its colours differ by a few levels
            settings |= {"decoder": self.decoder}
        if modality == "audio":
            settings |= {"resampler": self.resampler}
        if self.precision_of(modality) != PRECISIONS[0]:
            settings |= {"precision": self.precision_of(modality)}
        if self.dtype != DTYPES[0]:
            settings |= {"dtype": self.dtype}
        return Identity(
            dataset=dataset,
            modality=modality,
            backbone=backbone.name,
            weights=self.weights_of(modality).identity,
            tap=self.tap,
            views=tuple(view.name for view in self.views.views()),
            view_seed=self.views.seed,
            settings=settings,
        )


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what backbones and weights complain about into an error of usage: the sentence is for the user."""
    try:
        yield
    except (ValueError, WeightsError, CheckpointError) as error:
        raise UsageError(str(error)) from error


def plain_input(wanted: FrameInput | AudioInput) -> dict[str, Any]:
    """Fields of an input as plain values; those that came later are left out where they change nothing."""
    plain = dataclasses.asdict(wanted)
    for name, neutral in LATER_FIELDS.items():
        if plain.get(name) == neutral:
            plain.pop(name, None)
    return plain


def pinned_device(name: str, worker: str) -> str:
    """The device of a worker of a cluster: of several GPUs that it sees, the one with the worker's number.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        worker: its name; a number, or what ends in one (``SLURMCluster-3``), counts.

    Raises:
        UsageError: no such device there.
    """
    seen = torch.cuda.device_count()
    number = re.fullmatch(r"(?:.*-)?(\d+)", worker)
    if name in ("auto", "cuda") and seen > 1 and number:
        return f"cuda:{int(number[1]) % seen}"
    return resolve_device(name)


def resolve_device(name: str) -> str:
    """Return ``cpu`` or ``cuda:N`` for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    number = int(index) if index.isdigit() else 0
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"{name!r} is not a device. Allowed: auto, cpu, cuda, cuda:N")
    if number >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r} is not here: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu, or install a driver and a CUDA build of PyTorch"
        )
    return f"cuda:{number}"
