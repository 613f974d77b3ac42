"""What is in a published checkpoint file -> tensors under the names of our networks.

A format is a table of names, theirs and ours, with fields in braces for what is counted or spelled differently. A name
that is neither in the table nor among those left out on purpose is an error: no tensor is lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from extractors.published import Tensors
from extractors.slowfast import SLOW_DIM

SHOWN = 5  # names that a message gives

_COUNTER = "num_batches_tracked"
_CLASSIFIER = "cls_head.fc_cls.weight"
_OURS = {  # names of a SlowFast network
    "stem": "backbone.{path}.conv1.conv.weight",
    "stem_norm": "backbone.{path}.conv1.bn.{norm}",
    "lateral": "backbone.slow_path.{before}_lateral.conv.weight",
    "lateral_norm": "backbone.slow_path.{before}_lateral.bn.{norm}",
    "skip": "backbone.{path}.{stage}.{block}.downsample.conv.weight",
    "skip_norm": "backbone.{path}.{stage}.{block}.downsample.bn.{norm}",
    "conv": "backbone.{path}.{stage}.{block}.{conv}.conv.weight",
    "conv_norm": "backbone.{path}.{stage}.{block}.{conv}.bn.{norm}",
    "classifier": "cls_head.fc_cls.{linear}",
}

Rows = tuple[tuple[str, str], ...]
Words = Mapping[str, Mapping[str, str]]


def _same(*names: str) -> dict[str, str]:
    """Words that are ours already."""
    return {name: name for name in names}


def _counted(start: int, *names: str) -> dict[str, str]:
    """Words that are numbers there, counted from ``start``."""
    return {str(number): name for number, name in enumerate(names, start)}


def _against_ours(**theirs: str) -> Rows:
    """Rows of a SlowFast format."""
    return tuple((name, _OURS[part]) for part, name in theirs.items())


_LINEAR = _same("weight", "bias")
_NORM = _same("weight", "bias", "running_mean", "running_var", _COUNTER)
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_BEFORE_LATERAL = ("conv1", "layer1", "layer2", "layer3")


@dataclass(frozen=True)
class _Format:
    """How a kind of file names its tensors."""

    name: str  # for messages
    entries: tuple[str, ...]  # where its tensors lie: the first of these that it has, or at its top
    rows: Rows  # their name, our name
    words: Words  # what a field may be in their name -> in ours; other fields are numbers
    dropped: Mapping[str, str] = field(default_factory=dict)  # what is left out on purpose -> pattern of its names
    slow_first: bool = False  # whether their classifier takes the slow path's values before the fast path's

    def known(self, content: Mapping[str, object]) -> int:
        """Number of a file's tensors that have names of this format."""
        rows = self._patterns()
        return sum(self._renamed(_plain(key), rows) is not None for key in self._entry(content))

    def read(self, content: Mapping[str, object]) -> Tensors:
        """Tensors of a file under our names; a normalisation without a batch counter gets 0, which nothing reads."""
        rows = self._patterns()
        tensors: Tensors = {}
        unknown: list[str] = []
        for key, value in self._entry(content).items():
            name = _plain(key)
            ours = self._renamed(name, rows)
            if ours is not None:
                if ours in tensors:
                    raise ValueError(f"{self.name}: two tensors are {ours}, the second is {key}")
                tensors[ours] = self._tensor(name, value)
            elif not any(re.fullmatch(pattern, name) for pattern in self.dropped.values()):
                unknown.append(str(key))
        if unknown:
            raise ValueError(f"{self.name}: {_counted_names(unknown, 'unknown')}; a file of another network?")
        if self.slow_first and _CLASSIFIER in tensors:  # our embedding begins with the fast path
            tensors[_CLASSIFIER] = tensors[_CLASSIFIER].roll(-SLOW_DIM, -1)
        for name in [name for name in tensors if name.endswith(".running_mean")]:
            tensors.setdefault(name.removesuffix("running_mean") + _COUNTER, torch.tensor(0))
        return tensors

    def _entry(self, content: Mapping[str, object]) -> Mapping[str, object]:
        """The part of a file that holds the tensors."""
        entry = next((entry for entry in self.entries if entry in content), None)
        inner = content if entry is None else content[entry]
        if not isinstance(inner, Mapping):
            raise ValueError(f"{self.name}: entry {entry!r} is a {type(inner).__name__}, not a table of tensors")
        return inner

    def _tensor(self, name: str, value: object) -> Tensor:
        """A value of the file as a tensor."""
        if isinstance(value, np.ndarray):
            return torch.tensor(value)
        if not isinstance(value, Tensor):
            raise ValueError(f"{self.name}: {name} is a {type(value).__name__}, not a tensor")
        return value

    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        """The rows, their names as regular expressions."""
        return [(self._pattern(theirs), ours) for theirs, ours in self.rows]

    def _pattern(self, name: str) -> re.Pattern[str]:
        """Regular expression of a name with fields."""
        plain, *rest = re.split(r"\{(\w+)\}", name)
        pattern = re.escape(plain)
        for part, plain in zip(rest[::2], rest[1::2], strict=True):
            allowed = "|".join(map(re.escape, self.words[part])) if part in self.words else r"\d+"
            pattern += f"(?P<{part}>{allowed}){re.escape(plain)}"
        return re.compile(pattern)

    def _renamed(self, name: str, rows: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
        """Our name of a tensor; ``None`` if no row has it."""
        for pattern, ours in rows:
            match = pattern.fullmatch(name)
            if match:
                fields = match.groupdict()
                return ours.format_map(
                    {part: self.words.get(part, {}).get(word, word) for part, word in fields.items()}
                )
        return None


def _plain(key: object) -> str:
    """Name of a tensor without what training on several devices puts before it."""
    return str(key).removeprefix("module.")


def _counted_names(names: Sequence[str], what: str) -> str:
    """How many names there are, and the first of them."""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})"


_MMACTION = _Format(
    name="mmaction checkpoint",
    entries=("state_dict",),
    rows=tuple(
        (name, name)
        for name in (
            "backbone.{path}conv1.conv.weight",
            "backbone.{path}conv1.bn.{norm}",
            "backbone.{path}{stage}.{block}.{conv}.conv.weight",
            "backbone.{path}{stage}.{block}.{conv}.bn.{norm}",
            "backbone.slow_path.{before}_lateral.conv.weight",
            "cls_head.fc_cls.{linear}",
        )
    ),
    words={
        "path": _same("slow_path.", "fast_path.", ""),
        "stage": _same(*_STAGES),
        "before": _same(*_BEFORE_LATERAL),
        "conv": _same("conv1", "conv2", "conv3", "downsample"),
        "norm": _NORM,
        "linear": _LINEAR,
    },
    dropped={"a layer of SSMDG's code that it never computes with": r"cls_head\.fc_reduce\.(weight|bias)"},
)
_VGGSOUND = _Format(
    name="VGGSound checkpoint",
    entries=("model_state_dict", "state_dict"),
    rows=tuple(
        (name, name)
        for name in (
            "audnet.conv1.weight",
            "audnet.bn1.{norm}",
            "audnet.{stage}.{block}.{conv}.weight",
            "audnet.{stage}.{block}.{bn}.{norm}",
            "audnet.fc.{linear}",
        )
    ),
    words={
        "stage": _same(*_STAGES),
        "conv": _same("conv1", "conv2", "downsample.0"),
        "bn": _same("bn1", "bn2", "downsample.1"),
        "norm": _NORM,
        "linear": _LINEAR,
    },
)
_PYTORCHVIDEO = _Format(
    name="pytorchvideo checkpoint of SlowFast",
    entries=("model_state",),
    rows=_against_ours(
        stem="blocks.0.multipathway_blocks.{path}.conv.weight",
        stem_norm="blocks.0.multipathway_blocks.{path}.norm.{norm}",
        lateral="blocks.{before}.multipathway_fusion.conv_fast_to_slow.weight",
        lateral_norm="blocks.{before}.multipathway_fusion.norm.{norm}",
        skip="blocks.{stage}.multipathway_blocks.{path}.res_blocks.{block}.branch1_conv.weight",
        skip_norm="blocks.{stage}.multipathway_blocks.{path}.res_blocks.{block}.branch1_norm.{norm}",
        conv="blocks.{stage}.multipathway_blocks.{path}.res_blocks.{block}.branch2.conv_{conv}.weight",
        conv_norm="blocks.{stage}.multipathway_blocks.{path}.res_blocks.{block}.branch2.norm_{conv}.{norm}",
        classifier="blocks.6.proj.{linear}",
    ),
    words={
        "path": _counted(0, "slow_path", "fast_path"),
        "stage": _counted(1, *_STAGES),
        "before": _counted(0, *_BEFORE_LATERAL),
        "conv": {"a": "conv1", "b": "conv2", "c": "conv3"},
        "norm": _NORM,
        "linear": _LINEAR,
    },
    slow_first=True,
)
_PYSLOWFAST = _Format(
    name="PySlowFast checkpoint of SlowFast",
    entries=("model_state",),
    rows=_against_ours(
        stem="s1.pathway{path}_stem.conv.weight",
        stem_norm="s1.pathway{path}_stem.bn.{norm}",
        lateral="s{before}_fuse.conv_f2s.weight",
        lateral_norm="s{before}_fuse.bn.{norm}",
        skip="s{stage}.pathway{path}_res{block}.branch1.weight",
        skip_norm="s{stage}.pathway{path}_res{block}.branch1_bn.{norm}",
        conv="s{stage}.pathway{path}_res{block}.branch2.{conv}.weight",
        conv_norm="s{stage}.pathway{path}_res{block}.branch2.{conv}_bn.{norm}",
        classifier="head.projection.{linear}",
    ),
    words={
        "path": _counted(0, "slow_path", "fast_path"),
        "stage": _counted(2, *_STAGES),
        "before": _counted(1, *_BEFORE_LATERAL),
        "conv": {"a": "conv1", "b": "conv2", "c": "conv3"},
        "norm": _NORM,
        "linear": _LINEAR,
    },
    slow_first=True,
)
_CAFFE2 = _Format(
    name="PySlowFast Caffe2 checkpoint of SlowFast",
    entries=("blobs",),
    rows=(
        ("t_pool1_subsample_w", "backbone.slow_path.conv1_lateral.conv.weight"),
        ("t_pool1_subsample_bn_{norm}", "backbone.slow_path.conv1_lateral.bn.{norm}"),
        *_against_ours(
            stem="{path}conv1_w",
            stem_norm="{path}res_conv1_bn_{norm}",
            lateral="t_res{before}_{block}_branch2c_bn_subsample_w",  # named after the last block before it
            lateral_norm="t_res{before}_{block}_branch2c_bn_subsample_bn_{norm}",
            skip="{path}res{stage}_{block}_branch1_w",
            skip_norm="{path}res{stage}_{block}_branch1_bn_{norm}",
            conv="{path}res{stage}_{block}_branch2{conv}_w",
            conv_norm="{path}res{stage}_{block}_branch2{conv}_bn_{norm}",
            classifier="pred_{linear}",
        ),
    ),
    words={
        "path": {"": "slow_path", "t_": "fast_path"},
        "stage": _counted(2, *_STAGES),
        "before": _counted(2, *_BEFORE_LATERAL[1:]),
        "conv": {"a": "conv1", "b": "conv2", "c": "conv3"},
        "norm": {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"},
        "linear": {"w": "weight", "b": "bias"},
    },
    dropped={"momentum": r"\w+_momentum", "learning rate": "lr", "steps taken": "model_iter"},
    slow_first=True,
)


def mmaction(content: Mapping[str, object]) -> Tensors:
    """Tensors of an mmaction checkpoint of SlowFast or SlowOnly, whose names are ours.

    Args:
        content: the file, ``{"state_dict": ...}``, or its state dict; a ``module.`` before every name is ignored.

    Returns:
        Tensors under our names.

    Raises:
        ValueError: a name that is not SlowFast's or SlowOnly's.
    """
    return _MMACTION.read(content)


def vggsound(content: Mapping[str, object]) -> Tensors:
    """Tensors of the VGGSound checkpoint of a ResNet-18 with average pooling, whose names are ours.

    Args:
        content: the file, ``{"model_state_dict": ...}``, or its state dict; a ``module.`` before every name is ignored.

    Returns:
        Tensors under our names.

    Raises:
        ValueError: a name that the network does not have, for example of the variant with NetVLAD pooling.
    """
    return _VGGSOUND.read(content)


def fair_slowfast(content: Mapping[str, object]) -> Tensors:
    """Tensors of a SlowFast checkpoint of PyTorchVideo or PySlowFast, for a network with ``lateral_norm``.

    Args:
        content: a file of PyTorchVideo or PySlowFast, ``{"model_state": ...}``; a Caffe2 file of PySlowFast's model
            zoo, ``{"blobs": {name: array}}``, whose optimiser state is dropped; or what either holds.

    Returns:
        Tensors under our names; the classifier's columns are put into our embedding's order, fast before slow.

    Raises:
        ValueError: a name that is not SlowFast's.
    """
    return max((_PYTORCHVIDEO, _PYSLOWFAST, _CAFFE2), key=lambda form: form.known(content)).read(content)


def check_tensors(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Check that tensors are exactly those of a network.

    Args:
        network: it may be on the meta device.
        tensors: name -> tensor.
        what: file or format, for the message.

    Raises:
        ValueError: tensors are missing, unknown or of another shape; the message gives the first names of each.
    """
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unknown = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} {tuple(tensors[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    wrong = [_counted_names(names, kind) for kind, names in kinds.items() if names]
    if wrong:
        raise ValueError(f"tensors of {what} do not fit {type(network).__name__}: {'; '.join(wrong)}")
