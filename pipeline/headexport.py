"""The head of a bundle for other runtimes: ONNX and torch.export, each checked against the model by numbers."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.bundle import Bundle
from pipeline.bundlespec import HEAD_FILE
from pipeline.errors import UsageError
from pipeline.headmodel import HeadModel

ROWS = 64  # of random features that a written file is checked on; also every row alone
TOLERANCE = 1e-4  # in probabilities
OPSET = 18
NEEDED = ("onnx", "onnxscript", "onnxruntime")
Run = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Checked:
    """What came of the check of a written file."""

    difference: float  # largest absolute difference of a probability from the model's
    rows: int


class _Flat(nn.Module):
    """A model whose inputs and outputs are tensors in a fixed order.

    In: per modality features ``(batch, dim)`` float32, then presence ``(batch,)`` bool. Out: ``probs``, ``logits``,
    then every modality's own probabilities, each ``(batch, classes)``.
    """

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        self.head = head
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = self.head.modalities
        features = dict(zip(names, inputs[: len(names)], strict=True))
        present = dict(zip(names, inputs[len(names) :], strict=True))
        found = self.head.compute(features, present, self.head.filler)
        return found.probs, found.logits, *(found.alone[name] for name in names)


def input_names(head: HeadModel) -> list[str]:
    """Names of the inputs of an exported head: features of every modality, then presence of every modality."""
    return [*head.modalities, *(f"{name}_present" for name in head.modalities)]


def output_names(head: HeadModel) -> list[str]:
    """Names of the outputs of an exported head."""
    return ["probs", "logits", *(f"{name}_probs" for name in head.modalities)]


def check_exporters(onnx: Path | None, program: Path | None) -> None:
    """Check that the files asked for can be written, before any work is done.

    Raises:
        UsageError: a package is missing, or a folder.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None] if onnx else []
    if missing:
        raise UsageError(
            f"--onnx needs {', '.join(missing)}: pip install 'pipe-features[onnx]' (or leave it out, and use "
            "--torch-export)"
        )
    for option, path, suffix in (("--onnx", onnx, ".onnx"), ("--torch-export", program, ".pt2")):
        if path is None:
            continue
        if path.suffix != suffix:
            raise UsageError(f"{option} {path}: the file's name must end in {suffix}")
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: it must name a file in a folder that exists")


def export_onnx(bundle: Bundle, path: Path) -> Checked:
    """Write the head as an ONNX file with a dynamic batch, and check it with onnxruntime.

    Missing modalities are filled with the bundle's own filler. The file's metadata holds classes, modalities, filler,
    run id and the digest of the bundle's weights.

    Raises:
        UsageError: onnx, onnxscript or onnxruntime is not installed, or the file does not compute what the model does;
            it is then not there.
    """
    check_exporters(path, None)
    import onnx

    flat = _Flat(_on_cpu(bundle.head))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            flat,
            tuple(_examples(flat.head)),
            dynamo=True,
            input_names=input_names(flat.head),
            output_names=output_names(flat.head),
            dynamic_shapes=_dynamic(flat.head),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    del model.metadata_props[:]
    for key, value in _metadata(bundle).items():
        model.metadata_props.add(key=key, value=value)
    for node in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del node.metadata_props[:]  # paths on the machine that exported
    onnx.checker.check_model(model, full_check=True)

    def write(place: Path) -> None:
        place.write_bytes(model.SerializeToString(deterministic=True))

    return _checked_file(flat, path, write, _onnx_run)


def export_program(bundle: Bundle, path: Path) -> Checked:
    """Write the head as a program of ``torch.export`` with a dynamic batch, and check it by loading it.

    Inputs, outputs and filler are those of ``export_onnx``; the same metadata lies in the file as ``metadata.json``.

    Raises:
        UsageError: the file does not compute what the model does; it is then not there.
    """
    check_exporters(None, path)
    flat = _Flat(_on_cpu(bundle.head))
    with _quiet(), torch.no_grad():
        program = torch.export.export(flat, tuple(_examples(flat.head)), dynamic_shapes=_dynamic(flat.head))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on the machine that exported

    def write(place: Path) -> None:
        with _quiet():
            torch.export.save(program, place, extra_files={"metadata.json": json.dumps(_metadata(bundle))})

    return _checked_file(flat, path, write, _program_run)


def _on_cpu(head: HeadModel) -> HeadModel:
    """A copy on the CPU."""
    return copy.deepcopy(head).cpu().eval()


def _dynamic(head: HeadModel) -> dict[str, tuple[dict[int, torch.export.Dim], ...]]:
    batch = torch.export.Dim("batch")
    return {"inputs": tuple({0: batch} for _ in input_names(head))}


def _metadata(bundle: Bundle) -> dict[str, str]:
    """What a file says of itself, every value a text."""
    return {
        "classes": json.dumps(bundle.head.classes),
        "modalities": json.dumps(bundle.head.modalities),
        "filler": bundle.head.filler,
        "threshold": str(bundle.head.threshold),
        "run_id": bundle.spec.run_id,
        "head_sha256": bundle.spec.files[HEAD_FILE].sha256,
    }


def _examples(head: HeadModel) -> list[Tensor]:
    """Random features like those of the training clips, and presence: every subset, no modality, then random."""
    generator = torch.Generator().manual_seed(0)
    features = []
    for name, dim in head.dims.items():
        mean, scale = head.get_buffer(f"mean_{name}"), head.get_buffer(f"scale_{name}")
        deviation = torch.where(scale > 0, 1 / scale.clamp_min(1e-12), torch.zeros_like(scale))
        features.append(mean + deviation * torch.randn(ROWS, dim, generator=generator))
    present = []
    for position in range(len(head.dims)):
        here = torch.rand(ROWS, generator=generator) < 0.7
        subsets = torch.arange(2 ** len(head.dims))
        here[: len(subsets)] = (subsets >> position) % 2 == 1
        present.append(here)
    return [*features, *present]


def _checked_file(
    flat: _Flat, path: Path, write: Callable[[Path], None], load: Callable[[Path, _Flat], Run]
) -> Checked:
    """Write a file under another name, compare it with the model, and give it its name only then.

    Raises:
        UsageError: it differs by more than rounding.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        run = load(temporary, flat)
        inputs = _examples(flat.head)
        worst = 0.0
        # Also rows alone and in another number: an exported graph may have taken the size of its example for granted.
        for rows in (slice(0, ROWS), slice(0, 3), slice(ROWS - 1, ROWS)):
            part = [values[rows] for values in inputs]
            pairs = zip(output_names(flat.head), run(part), flat(*part), strict=True)
            for name, found, wanted in pairs:
                alike = found.shape == wanted.shape and bool((found.isnan() == wanted.isnan()).all())
                if name != "logits":
                    worst = max(worst, float((found - wanted).nan_to_num().abs().max()) if alike else 1.0)
        if worst > TOLERANCE:
            raise UsageError(
                f"{path.name} was not written: its probabilities differ from the model's by up to {worst:.1e}, and "
                f"{TOLERANCE:g} are allowed. Other versions of torch ({torch.__version__}) and of the exporter may help"
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Checked(worst, ROWS)


def _onnx_run(path: Path, flat: _Flat) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = input_names(flat.head)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = session.run(output_names(flat.head), {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        return [torch.from_numpy(values) for values in found]

    return run


def _program_run(path: Path, flat: _Flat) -> Run:
    with _quiet():
        module = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        return list(module(*inputs))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks that a user can do nothing about."""
    with warnings.catch_warnings():
        # torch pickles trees of arguments by a class that it has itself given up.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        # All inputs share one batch on purpose.
        warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
        yield
