"""One training step of SSMDG against the authors' released code (shared/golden/train_step.npz, set "public")."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from heads.gradients import pcgrad_coefficients
from heads.layers import StackedLinear, unit
from heads.losses import (
    alignment_terms,
    consensus_pseudo_labels,
    generalised_cross_entropy,
    masked_mean,
    prototype_distances,
    translation_terms,
)
from heads.method import SHARED_HPARAMS
from heads.methods.ssmdg import RECIPE, SSMDG
from heads.network import HeadShape, Labeled, Unlabeled
from heads.optimiser import Rate, StackedOptimiser
from heads.prototypes import Prototypes

DIMS = {"video": 2304, "flow": 2048, "audio": 512}
LETTER = {"v": "video", "f": "flow", "a": "audio"}
CASES = ["va", "vfa", "vf", "fa", "va_adapter", "edge_no_confident_step1", "edge_gce_only", "edge_unlabelled_domain"]


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with np.load(golden_dir / "train_step.npz") as data:
        yield data


def generator(tag: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(tag.encode()))


def normal(tag: str, shape: tuple[int, ...]) -> np.ndarray:
    return generator(tag).standard_normal(shape)


def f32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(np.float64)


class Inputs:
    """Regenerates the inputs by the rules of the golden set's README."""

    def __init__(self, meta: dict, edge_domain: bool) -> None:
        self.tag = meta["seed_tag"]
        self.edge_domain = edge_domain

    def labels(self, step: int) -> dict[str, np.ndarray]:
        r = generator(f"{self.tag}/step{step}/labels")
        yf, dl = r.integers(0, 5, 16), r.integers(0, 2, 16)
        yu, du = r.integers(0, 5, 24), r.integers(0, 2, 24)
        u = r.uniform(size=16)
        if self.edge_domain:
            dl, du = np.zeros_like(dl), np.ones_like(du)
        return {"yf": yf, "dl": dl, "yu": yu, "du": du, "yl": np.where(u < 0.25, (yf + 1) % 5, yf)}

    def features(self, step: int, base: str, m: str, strong: bool = False) -> np.ndarray:
        d = DIMS[m]
        labels = self.labels(step)
        y, domain, low = (labels["yf"], labels["dl"], 0.5) if base == "labelled" else (labels["yu"], labels["du"], 0.3)
        n = len(y)
        mean, shift = normal(f"{self.tag}/mean/{m}", (5, d)), normal(f"{self.tag}/domain/{m}", (2, d))
        g = generator(f"{self.tag}/step{step}/{base}/mix/{m}")
        alpha = g.uniform(low, 1, n)[:, None]
        y2 = (y + g.integers(1, 5, n)) % 5
        z = 0.8 * (alpha * mean[y] + (1 - alpha) * mean[y2]) + 0.4 * shift[domain]
        z = z + 0.9 * normal(f"{self.tag}/step{step}/{base}/noise/{m}", (n, d))
        if strong:
            z = z + 0.7 * normal(f"{self.tag}/step{step}/strong/noise/{m}", (n, d))
        return f32(np.maximum(z, 0) * 2 / np.sqrt(d))

    def parameter(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        g = normal(f"{self.tag}/param/{name}", shape)
        if name.startswith("adapter"):
            return f32(1 + 0.05 * g)
        if name.endswith("bias"):
            return f32(0.01 * g)
        if name == "mlp_cls.enc_net.0.weight":
            return f32(0.5 * g)
        return f32(g * np.sqrt(2 / shape[1]))


def case_modalities(case: str) -> list[str]:
    letters = "va" if case.startswith("edge") or case == "va_adapter" else case
    return [m for m in DIMS if m in [LETTER[x] for x in letters]]


def parameter_map(method: SSMDG, modalities: list[str]) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """The reference's parameter names to ours, and how much of each is no padding; weights are transposed there."""
    net = method.network
    out: dict[str, Tensor] = {}
    live: dict[str, tuple[int, int]] = {}

    def linear(name: str, layer: StackedLinear) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = layer.weight, layer.bias
        live[f"{name}.weight"], live[f"{name}.bias"] = layer.live, (1, layer.live[1])

    for i, layer in (("0", net.fusion.first), ("3", net.fusion.last)):
        linear(f"mlp_cls.enc_net.{i}", layer)
    for a in modalities:
        for b in modalities:
            if a != b:
                translator = method.translators[f"{a}_to_{b}"]
                for i, layer in (("0", translator.first), ("2", translator.second), ("5", translator.last)):
                    linear(f"mlp_{a[0]}2{b[0]}.enc_net.{i}", layer)
        linear(f"cls_heads.{a}", net.unimodal[a])
        if hasattr(net.adapters[a], "scale"):
            name, scale = f"adapter.{a}.scale", net.adapters[a].scale
            out[name], live[name] = scale, (1, scale.shape[-1])
    return out, live


def reference_layout(tensor: Tensor, name: str, live: tuple[int, int]) -> np.ndarray:
    value = tensor.detach()[0, : live[0], : live[1]]
    return (value.T if name.endswith("weight") else value).numpy().ravel()


def reduce(flat: np.ndarray) -> np.ndarray:
    return flat if flat.size <= 2600 else flat[:: flat.size // 256][:256]


def build(
    case: str, golden: np.lib.npyio.NpzFile, inputs: Inputs, dtype: torch.dtype = torch.float64, threshold: float = 0.95
) -> SSMDG:
    modalities = case_modalities(case)
    shape = HeadShape(
        dims=tuple((m, DIMS[m]) for m in modalities),
        classes=5,
        domains=2,
        adapter="scale" if case == "va_adapter" else "none",
        fused_hidden=512,
        translator_hidden=1028,
    )
    values = {**SHARED_HPARAMS, **RECIPE.hparams, **RECIPE.paper, "threshold": threshold}
    tensors = {k: torch.tensor([v], dtype=dtype) for k, v in values.items() if not isinstance(v, str)}
    method = SSMDG(shape, tensors, [0]).to(dtype)
    parameters, live = parameter_map(method, modalities)
    assert set(parameters) == set(json.loads(str(golden["meta_json"]))["param_names"][case])
    with torch.no_grad():
        for name, parameter in parameters.items():
            stored = f"init/{case}/{name}"
            rows, columns = live[name]
            matrix = (columns, rows) if name.endswith("weight") else (columns,)
            value = (
                golden[stored].astype(np.float64) if stored in golden else inputs.parameter(name, tuple(matrix))
            ).reshape(matrix)
            parameter[0, :rows, :columns] = torch.from_numpy(value.T if name.endswith("weight") else value[None])
        for m in modalities:
            start = normal(f"{inputs.tag}/prototype0/{m}", (2, 5, DIMS[m]))
            start = f32(start / np.linalg.norm(start, axis=-1, keepdims=True))
            method.prototypes.vectors(m).copy_(torch.from_numpy(start)[None])
    return method


def batches(
    inputs: Inputs, step: int, modalities: list[str], dtype: torch.dtype = torch.float64
) -> tuple[Labeled, Unlabeled]:
    labels = inputs.labels(step)

    def tensors(base: str, strong: bool = False) -> dict[str, Tensor]:
        return {m: torch.from_numpy(inputs.features(step, base, m, strong))[None].to(dtype) for m in modalities}

    def here(n: int) -> dict[str, Tensor]:
        return {m: torch.ones(1, n, dtype=torch.bool) for m in modalities}

    return (
        Labeled(tensors("labelled"), here(16), torch.tensor(labels["yl"])[None], torch.tensor(labels["dl"])[None]),
        Unlabeled(tensors("unlabelled"), tensors("unlabelled", True), here(24), torch.tensor(labels["du"])[None]),
    )


def check_terms(
    golden: np.lib.npyio.NpzFile,
    key: str,
    terms: dict[str, Tensor],
    objectives: tuple[Tensor, ...],
    rel: float = 1e-9,
    tiny: float = 1e-12,
) -> None:
    for name, term in terms.items():
        value = term.item()
        part, _, rest = name.partition("/")
        rest = rest.replace("fused", "fusion")
        stored = {
            "labeled": f"loss/labelled_ce/{rest}",
            "consensus": f"loss/consensus_ce/{rest}",
            "gce": f"loss/gce/{rest.replace('/', '_')}",
            "prototype": "loss/prototype",
            "translation": f"loss/translation_{rest}",
        }[part]
        expected = float(golden[f"{key}/{stored}"]) if f"{key}/{stored}" in golden else 0.0
        assert value == pytest.approx(expected, rel=rel, abs=tiny), name
    assert objectives[0].item() == pytest.approx(float(golden[f"{key}/loss/labelled_total"]), rel=rel)
    assert objectives[1].item() == pytest.approx(float(golden[f"{key}/loss/unlabelled_total"]), rel=rel, abs=tiny)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("case", CASES)
def test_training_steps(golden: np.lib.npyio.NpzFile, case: str, optimiser: str) -> None:
    steps = len({k.split("/")[2] for k in golden.files if k.startswith(f"{case}/{optimiser}/step")})
    if not steps:
        pytest.skip("the golden set has no such case")
    meta = json.loads(str(golden["meta_json"]))
    inputs = Inputs(meta, edge_domain=case == "edge_unlabelled_domain")
    modalities = case_modalities(case)
    method = build(case, golden, inputs)
    parameters, live = parameter_map(method, modalities)
    order = meta["param_names"][case]
    initial = {k: v.detach().clone() for k, v in parameters.items()}
    rate = Rate(1e-4, 1e-3) if optimiser == "adamw" else Rate(0.1)
    update = StackedOptimiser(optimiser, list(method.parameters()), [rate])
    for step in range(steps):
        key = f"{case}/{optimiser}/step{step}"
        if case == "edge_no_confident_step1":
            method.hparam("threshold").fill_(1.01 if step == 1 else 0.95)
        labeled, unlabeled = batches(inputs, step, modalities)
        weak = method.predict(unlabeled.weak, unlabeled.present)
        for head, logits in weak.items():
            name = head.replace("fused", "fusion")
            np.testing.assert_allclose(logits[0], golden[f"{key}/logits/weak/{name}"], rtol=1e-9, atol=1e-10)
        pseudo = method.pseudo_labels(weak, unlabeled.present)
        assert (pseudo.labels[0].numpy() == golden[f"{key}/pseudo_labels"]).all()
        assert (pseudo.accepted[0].numpy() == golden[f"{key}/mask_consensus"]).all()
        assert (pseudo.masks["nonconsensus"][0].numpy() == golden[f"{key}/mask_nonconsensus"]).all()
        terms = method.losses(labeled, unlabeled, None, step)
        objectives = method.objectives(terms)
        check_terms(golden, key, terms, objectives)
        method.combine(objectives)
        active = bool(golden[f"{key}/pcgrad/active"])
        if active:
            norms = [np.linalg.norm(reference_layout(parameters[n].grad, n, live[n])) for n in order]
            np.testing.assert_allclose(norms, golden[f"{key}/grad_merged_norm"], rtol=1e-9, atol=1e-13)
        for name, parameter in parameters.items():
            if active:
                got = reduce(reference_layout(parameter.grad, name, live[name]))
                expected = golden[f"{key}/grad_merged/{name}"]
                np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7 * max(np.abs(expected).max(), 1e-12))
            elif not parameter.grad.any():
                # Outside the graph of its one objective: the reference hands AdamW no gradient at all. A stack hands
                # it zeros, because "this run had no confident clip" is not known on the host.
                parameter.grad = None
        update.step(step)
        for name, parameter in parameters.items():
            delta = reduce(reference_layout(parameter - initial[name], name, live[name]))
            expected = golden[f"{key}/param_delta/{name}"]
            np.testing.assert_allclose(delta, expected, rtol=2e-6, atol=2e-6 * max(np.abs(expected).max(), 1e-12))
        for stored, start in (("param_norm", None), ("param_delta_norm", initial)):
            norms = [
                np.linalg.norm(reference_layout(parameters[n] - (start[n] if start else 0), n, live[n])) for n in order
            ]
            np.testing.assert_allclose(norms, golden[f"{key}/{stored}"], rtol=1e-9, atol=1e-13)
        for name, parameter in parameters.items():
            padding = parameter.detach()[0].clone()
            padding[: live[name][0], : live[name][1]] = 0
            assert not padding.any(), name
        for m in modalities:
            own = f"{key}/proto/{m}"
            stored = golden[own] if own in golden else golden[f"proto/step{step}/{m}"]
            count = f"{key}/proto_count/{m}"
            counts = golden[count] if count in golden else golden[f"proto_count/step{step}/{m}"]
            np.testing.assert_allclose(method.prototypes.vectors(m)[0][..., ::16], stored, rtol=1e-9, atol=1e-11)
            np.testing.assert_array_equal(method.prototypes.counts(m)[0], counts)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("case", CASES)
def test_training_steps_in_single_precision(golden: np.lib.npyio.NpzFile, case: str, optimiser: str) -> None:
    """Against the reference's own float32 run: 1e-5 relative, 2e-6 absolute (its small terms differ by as much)."""
    prefix = f"f32/{case}/{optimiser}/step"
    steps = len({k.split("/")[3] for k in golden.files if k.startswith(prefix)})
    if not steps:
        pytest.skip("the golden set has no such case")
    inputs = Inputs(json.loads(str(golden["meta_json"])), edge_domain=case == "edge_unlabelled_domain")
    modalities = case_modalities(case)
    method = build(case, golden, inputs, torch.float32)
    rate = Rate(1e-4, 1e-3) if optimiser == "adamw" else Rate(0.1)
    update = StackedOptimiser(optimiser, list(method.parameters()), [rate])
    for step in range(steps):
        key = f"{prefix}{step}"
        if case == "edge_no_confident_step1":
            method.hparam("threshold").fill_(1.01 if step == 1 else 0.95)
        labeled, unlabeled = batches(inputs, step, modalities, torch.float32)
        pseudo = method.pseudo_labels(method.predict(unlabeled.weak, unlabeled.present), unlabeled.present)
        assert (pseudo.labels[0].numpy() == golden[f"{key}/pseudo_labels"]).all()
        assert (pseudo.accepted[0].numpy() == golden[f"{key}/mask_consensus"]).all()
        assert (pseudo.masks["nonconsensus"][0].numpy() == golden[f"{key}/mask_nonconsensus"]).all()
        terms = method.losses(labeled, unlabeled, None, step)
        check_terms(golden, key, terms, method.objectives(terms), rel=1e-5, tiny=2e-6)
        method.combine(method.objectives(terms))
        if not bool(golden[f"{key}/pcgrad/active"]):
            for parameter in method.parameters():
                if not parameter.grad.any():
                    parameter.grad = None
        update.step(step)


@pytest.mark.parametrize("name", ["n1", "n2", "n6", "floor"])
def test_generalised_cross_entropy(golden: np.lib.npyio.NpzFile, name: str) -> None:
    logits = torch.from_numpy(golden[f"unit/gce/{name}/logits"])[None]
    labels = torch.from_numpy(golden[f"unit/gce/{name}/targets"]).long().reshape(1, -1)
    mask = torch.ones_like(labels, dtype=torch.bool)
    loss = generalised_cross_entropy(logits, labels, mask, torch.tensor([0.7], dtype=torch.float64))
    assert loss.item() == pytest.approx(float(golden[f"unit/gce/{name}/loss"]), rel=1e-9)


def test_consensus_masks(golden: np.lib.npyio.NpzFile) -> None:
    logits = {
        name: torch.from_numpy(golden[f"unit/masks/{stored}"])[None]
        for name, stored in (("fused", "fusion"), ("video", "video"), ("audio", "audio"))
    }
    here = {m: torch.ones(logits["fused"].shape[:2], dtype=torch.bool) for m in ("video", "audio")}
    pseudo = consensus_pseudo_labels(logits, here, torch.tensor([0.95]))
    assert (pseudo.labels[0].numpy() == golden["unit/masks/pseudo"]).all()
    assert (pseudo.accepted[0].numpy() == golden["unit/masks/consensus"]).all()
    assert (pseudo.masks["nonconsensus"][0].numpy() == golden["unit/masks/nonconsensus"]).all()


@pytest.mark.parametrize("name", ["conflict", "aligned"])
def test_pcgrad_merge(golden: np.lib.npyio.NpzFile, name: str) -> None:
    def task(index: int) -> list[Tensor]:
        return [torch.from_numpy(golden[f"unit/pcgrad/{name}/task{index}_param{p}"])[None] for p in (0, 1)]

    first, second = task(0), task(1)
    a, b = pcgrad_coefficients(first, second)
    for p in (0, 1):
        np.testing.assert_allclose(
            (a * first[p] + b * second[p])[0], golden[f"unit/pcgrad/{name}/merged_param{p}"], rtol=1e-9
        )


@pytest.mark.parametrize("name", ["proto2", "proto3"])
def test_prototypes_and_their_losses(golden: np.lib.npyio.NpzFile, name: str) -> None:
    key = f"unit/{name}"
    dims = {m: golden[f"{key}/init/{m}"].shape[-1] for m in ("video", "audio")}
    domains, classes = golden[f"{key}/init/video"].shape[:2]
    prototypes = Prototypes(1, domains, classes, dims).double()
    for m in dims:
        prototypes.vectors(m).copy_(torch.from_numpy(golden[f"{key}/init/{m}"])[None])

    def read(part: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        features = {m: torch.from_numpy(golden[f"{key}/{part}/features/{m}"])[None] for m in dims}
        labels, own = (torch.from_numpy(golden[f"{key}/{part}/{k}"]).long()[None] for k in ("labels", "domains"))
        return labels, own, features

    for update in range(3):
        labels, own, features = read(f"update{update}")
        here = {m: torch.ones_like(labels, dtype=torch.bool) for m in dims}
        prototypes.update(features, here, labels, own)
        for m in dims:
            np.testing.assert_allclose(
                prototypes.vectors(m)[0], golden[f"{key}/update{update}/prototypes/{m}"], rtol=1e-9, atol=1e-12
            )
            np.testing.assert_array_equal(prototypes.counts(m)[0], golden[f"{key}/update{update}/counts/{m}"])
    labels, own, features = read("loss")
    mask = torch.ones_like(labels, dtype=torch.bool)
    known = torch.ones(*labels.shape, domains, dtype=torch.bool)
    near = [alignment_terms(prototype_distances(features[m], prototypes.vectors(m), labels), known, mask) for m in dims]
    loss = masked_mean(torch.cat([v for v, _ in near], -1), torch.cat([w for _, w in near], -1))
    assert loss.item() == pytest.approx(float(golden[f"{key}/loss/prototype_loss"]), rel=1e-9)
    far = []
    for source, target, stored in (("video", "audio", "linear_v2a_weight"), ("audio", "video", "linear_a2v_weight")):
        translated = unit(features[source]) @ torch.from_numpy(golden[f"{key}/loss/{stored}"]).T
        distances = prototype_distances(translated, prototypes.vectors(target), labels)
        far.append(translation_terms(distances, known, own, mask))
    loss = masked_mean(torch.cat([v for v, _ in far], -1), torch.cat([w for _, w in far], -1))
    assert loss.item() == pytest.approx(float(golden[f"{key}/loss/translation_loss"]), rel=1e-9)
