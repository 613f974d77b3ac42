"""SSMDG's training step on the golden inputs: stub backbones, parameters and batches by the README's rules."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.layers import StackedLinear
from heads.method import SHARED_HPARAMS
from heads.methods.ssmdg import RECIPE, SSMDG
from heads.network import HeadShape, Labeled, Unlabeled
from heads.optimiser import Rate, StackedOptimiser

DIMS = {"video": 2304, "flow": 2048, "audio": 512}
LETTERS = {"v": "video", "f": "flow", "a": "audio"}
CASES = ("va", "vfa", "vf", "fa", "va_adapter", "edge_no_confident_step1", "edge_gce_only", "edge_unlabelled_domain")
RATES = {"adamw": Rate(1e-4, 1e-3), "sgd": Rate(0.1)}
THRESHOLD = 0.95
Archive = Mapping[str, NDArray[Any]]
Float = NDArray[np.float64]


class Judge(Protocol):
    """What takes the differences."""

    def add(self, ours: object, theirs: object, tolerance: float) -> None:
        """Compare arrays of one shape."""

    def expect(self, right: bool, fault: str) -> None:
        """Something that is right or wrong."""


@dataclass(frozen=True)
class _Precision:
    """How it is computed and how near it has to be."""

    name: str
    dtype: torch.dtype
    half: bool  # under autocast to bfloat16
    prefix: str  # of the reference's numbers
    relative: float
    absolute: float


_DOUBLE = _Precision("float64", torch.float64, False, "", 1e-9, 1e-12)
_SINGLE = _Precision("float32", torch.float32, False, "f32/", 1e-5, 2e-6)
# The masks may differ, and with them every loss over them: only what the labeled clips give is compared.
_HALF = _Precision("bfloat16", torch.float32, True, "f32/", 1e-2, 1e-2)  # measured: 2.2e-3


def step_cases(
    golden: Archive, device: torch.device, precision: str
) -> Iterator[tuple[str, str, Callable[[Judge], None]]]:
    """Every case of the file: its name, the unit of its differences, and what compares it.

    Args:
        golden: arrays of ``train_step.npz``.
        device: to compute on.
        precision: ``float32``: the step in float64 and in float32; ``bfloat16``: under autocast.
    """
    chosen = (_DOUBLE, _SINGLE) if precision == "float32" else (_HALF,)
    for kind in chosen:
        for case in CASES:
            for optimiser in RATES:
                prefix = f"{kind.prefix}{case}/{optimiser}/step"
                steps = sorted({key[len(prefix) :].split("/")[0] for key in golden if key.startswith(prefix)})
                if steps:
                    name = f"{case} {optimiser} {kind.name}"
                    yield name, "relative", partial(_compare, golden, case, optimiser, len(steps), kind, device)


def _generator(tag: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(tag.encode()))


def _normal(tag: str, shape: tuple[int, ...]) -> Float:
    return _generator(tag).standard_normal(shape)


def _f32(x: Float) -> Float:
    return x.astype(np.float32).astype(np.float64)


def _labels(tag: str, step: int, edge_domain: bool) -> dict[str, NDArray[np.int64]]:
    r = _generator(f"{tag}/step{step}/labels")
    yf, dl = r.integers(0, 5, 16), r.integers(0, 2, 16)
    yu, du = r.integers(0, 5, 24), r.integers(0, 2, 24)
    u = r.uniform(size=16)
    if edge_domain:
        dl, du = np.zeros_like(dl), np.ones_like(du)
    return {"yf": yf, "dl": dl, "yu": yu, "du": du, "yl": np.where(u < 0.25, (yf + 1) % 5, yf)}


def _features(tag: str, step: int, labels: Mapping[str, NDArray[np.int64]], base: str, m: str, strong: bool) -> Float:
    d = DIMS[m]
    y, domain, low = (labels["yf"], labels["dl"], 0.5) if base == "labelled" else (labels["yu"], labels["du"], 0.3)
    n = len(y)
    mean, shift = _normal(f"{tag}/mean/{m}", (5, d)), _normal(f"{tag}/domain/{m}", (2, d))
    g = _generator(f"{tag}/step{step}/{base}/mix/{m}")
    alpha = g.uniform(low, 1, n)[:, None]
    y2 = (y + g.integers(1, 5, n)) % 5
    z: Float = 0.8 * (alpha * mean[y] + (1 - alpha) * mean[y2]) + 0.4 * shift[domain]
    z = z + 0.9 * _normal(f"{tag}/step{step}/{base}/noise/{m}", (n, d))
    if strong:
        z = z + 0.7 * _normal(f"{tag}/step{step}/strong/noise/{m}", (n, d))
    return _f32(np.maximum(z, 0) * 2 / np.sqrt(d))


def _batches(
    tag: str, step: int, modalities: Sequence[str], edge_domain: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Labeled, Unlabeled]:
    labels = _labels(tag, step, edge_domain)

    def tensors(base: str, strong: bool = False) -> dict[str, Tensor]:
        made = {m: torch.from_numpy(_features(tag, step, labels, base, m, strong))[None] for m in modalities}
        return {m: x.to(device, dtype) for m, x in made.items()}

    def here(number: int) -> dict[str, Tensor]:
        return {m: torch.ones(1, number, dtype=torch.bool, device=device) for m in modalities}

    def ids(name: str) -> Tensor:
        return torch.tensor(labels[name], device=device)[None]

    return (
        Labeled(tensors("labelled"), here(16), ids("yl"), ids("dl")),
        Unlabeled(tensors("unlabelled"), tensors("unlabelled", True), here(24), ids("du")),
    )


def _parameter_map(method: SSMDG, modalities: Sequence[str]) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """The reference's parameter names to ours, and how much of each is no padding; weights are transposed there."""
    out: dict[str, tuple[Tensor, tuple[int, int]]] = {}

    def linear(name: str, layer: Any) -> None:
        if not isinstance(layer, StackedLinear):
            raise ValueError(f"{name} is {type(layer).__name__}")
        out[f"{name}.weight"] = (layer.weight, layer.live)
        out[f"{name}.bias"] = (layer.bias, (1, layer.live[1]))

    network: Any = method.network
    for i, layer in (("0", network.fusion.first), ("3", network.fusion.last)):
        linear(f"mlp_cls.enc_net.{i}", layer)
    for a in modalities:
        for b in modalities:
            if a != b:
                translator: Any = method.translators[f"{a}_to_{b}"]
                for i, layer in (("0", translator.first), ("2", translator.second), ("5", translator.last)):
                    linear(f"mlp_{a[0]}2{b[0]}.enc_net.{i}", layer)
        linear(f"cls_heads.{a}", network.unimodal[a])
        scale = getattr(network.adapters[a], "scale", None)
        if scale is not None:
            out[f"adapter.{a}.scale"] = (scale, (1, scale.shape[-1]))
    return out


def _initial(golden: Archive, tag: str, case: str, name: str, shape: tuple[int, ...]) -> Float:
    """A parameter at the start, in the reference's layout."""
    if f"init/{case}/{name}" in golden:
        return golden[f"init/{case}/{name}"].astype(np.float64).reshape(shape)
    g = _normal(f"{tag}/param/{name}", shape)
    if name.startswith("adapter"):
        return _f32(1 + 0.05 * g)
    if name.endswith("bias"):
        return _f32(0.01 * g)
    return _f32(0.5 * g if name == "mlp_cls.enc_net.0.weight" else g * np.sqrt(2 / shape[1]))


def _build(golden: Archive, tag: str, case: str, modalities: Sequence[str], dtype: torch.dtype) -> SSMDG:
    """The method with the parameters and prototypes of a case, on the CPU."""
    adapter = "scale" if case == "va_adapter" else "none"
    shape = HeadShape(tuple((m, DIMS[m]) for m in modalities), 5, 2, adapter, 512, 1028)
    values = {**SHARED_HPARAMS, **RECIPE.hparams, **RECIPE.paper, "threshold": THRESHOLD}
    tensors = {k: torch.tensor([v], dtype=dtype) for k, v in values.items() if not isinstance(v, str)}
    method = SSMDG(shape, tensors, [0]).to(dtype)
    with torch.no_grad():
        for name, (parameter, (rows, columns)) in _parameter_map(method, modalities).items():
            is_weight = name.endswith("weight")
            value = _initial(golden, tag, case, name, (columns, rows) if is_weight else (columns,))
            parameter[0, :rows, :columns] = torch.from_numpy(value.T if is_weight else value[None])
        for m in modalities:
            start = _normal(f"{tag}/prototype0/{m}", (2, 5, DIMS[m]))
            start = _f32(start / np.linalg.norm(start, axis=-1, keepdims=True))
            method.prototypes.vectors(m).copy_(torch.from_numpy(start)[None])
    return method


def _compare(
    golden: Archive, case: str, optimiser: str, steps: int, kind: _Precision, device: torch.device, judge: Judge
) -> None:
    """Run the steps of a case and compare masks, losses and the change of the parameters."""
    tag = json.loads(str(golden["meta_json"]))["seed_tag"]
    letters = "va" if case.startswith("edge") or case == "va_adapter" else case
    modalities = [m for m in DIMS if m in [LETTERS[x] for x in letters]]
    method = _build(golden, tag, case, modalities, kind.dtype).to(device)
    start = {name: p.detach().clone() for name, (p, _) in _parameter_map(method, modalities).items()}
    update = StackedOptimiser(optimiser, list(method.parameters()), [RATES[optimiser]])
    edge_domain = case == "edge_unlabelled_domain"
    for step in range(steps):
        key = f"{kind.prefix}{case}/{optimiser}/step{step}"
        if case == "edge_no_confident_step1":
            method.hparam("threshold").fill_(1.01 if step == 1 else THRESHOLD)
        labeled, unlabeled = _batches(tag, step, modalities, edge_domain, kind.dtype, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=kind.half):
            if not kind.half:
                _masks(golden, key, method, unlabeled, judge)
            terms = method.losses(labeled, unlabeled, None, step)
        _losses(golden, key, terms, kind, judge)
        method.combine(method.objectives(terms))
        active = bool(golden[f"{key}/pcgrad/active"])
        for parameter in method.parameters():
            # The reference hands its optimiser no gradient at all where one objective is missing; a stack, zeros.
            if not active and parameter.grad is not None and not parameter.grad.any():
                parameter.grad = None
        update.step(step)
        if f"{key}/param_delta_norm" in golden and kind is _DOUBLE:
            parameters = _parameter_map(method, modalities)
            order = json.loads(str(golden["meta_json"]))["param_names"][case]
            moved = [float((parameters[name][0].detach() - start[name]).norm()) for name in order]
            theirs = golden[f"{key}/param_delta_norm"]
            judge.add(np.array(moved) / np.maximum(theirs, 1e-13), theirs / np.maximum(theirs, 1e-13), kind.relative)


def _masks(golden: Archive, key: str, method: SSMDG, unlabeled: Unlabeled, judge: Judge) -> None:
    """Pseudo-labels and which of them are accepted, exactly."""
    pseudo = method.pseudo_labels(method.predict(unlabeled.weak, unlabeled.present), unlabeled.present)
    for name, ours in (
        ("pseudo_labels", pseudo.labels),
        ("mask_consensus", pseudo.accepted),
        ("mask_nonconsensus", pseudo.masks["nonconsensus"]),
    ):
        judge.expect(bool((ours[0].cpu().numpy() == golden[f"{key}/{name}"]).all()), f"{name} differ")


def _losses(golden: Archive, key: str, terms: Mapping[str, Tensor], kind: _Precision, judge: Judge) -> None:
    """Every loss term, relative to the stored one."""
    for name, term in terms.items():
        part, _, rest = name.partition("/")
        if kind.half and part != "labeled":
            continue
        rest = rest.replace("fused", "fusion")
        stored = {
            "labeled": f"loss/labelled_ce/{rest}",
            "consensus": f"loss/consensus_ce/{rest}",
            "gce": f"loss/gce/{rest.replace('/', '_')}",
            "prototype": "loss/prototype",
            "translation": f"loss/translation_{rest}",
        }[part]
        theirs = float(golden[f"{key}/{stored}"]) if f"{key}/{stored}" in golden else 0.0
        size = max(abs(theirs), kind.absolute / kind.relative)
        judge.add([float(term.detach()) / size], [theirs / size], kind.relative)
