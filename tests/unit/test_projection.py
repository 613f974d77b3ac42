"""Compact features: what they are fitted on, what they keep, and how they are stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from torch import Tensor

from pipeline import projection as module
from pipeline.bank import FeatureBank, Standardiser
from pipeline.errors import UsageError
from pipeline.projection import (
    CompactBank,
    Projection,
    ProjectionSpec,
    fit_projection,
    parse_projection,
    projection_key,
    stored_projection,
)
from pipeline.types import Clip, Manifest

CLIPS, DIM, CLEAN = 120, 24, 1  # the clean view is not the first on purpose
VIEWS = ("weak0", "clean0", "strong0")
MANY, FEW = range(0, 80), range(3, 15)  # more clips than dims, and fewer; clips 80.. are the target's
PCA_8, WHITE_8 = ProjectionSpec("pca", 8), ProjectionSpec("pca-white", 8)
both_branches = pytest.mark.parametrize("pool", [MANY, FEW], ids=["many", "few"])
both_kinds = pytest.mark.parametrize("spec", [PCA_8, WHITE_8], ids=str)


def sample(seed: int = 0, dim: int = DIM) -> tuple[Tensor, Tensor]:
    """Correlated features with offsets and different scales, and presence; absent rows are zero."""
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=(CLIPS, dim)) @ rng.normal(size=(dim, dim)) * rng.uniform(0.1, 9, dim)
    x = clean[:, None] + rng.normal(size=(CLIPS, len(VIEWS), dim)) + rng.normal(size=dim) * 5
    here = rng.random(CLIPS) > 0.1
    return torch.from_numpy((x * here[:, None, None]).astype(np.float16)), torch.from_numpy(here)


def fitted(spec: ProjectionSpec = PCA_8, pool: range = MANY) -> Projection:
    return fit_projection(*sample(), pool, CLEAN, spec)


def rows_of(pool: range, here: Tensor) -> list[int]:
    return [i for i in pool if here[i]]


def standardised(x: Tensor, here: Tensor, pool: range) -> Tensor:
    """The pool's clean features as full-size training sees them, ``(clips, dim)`` float64."""
    scale = Standardiser(FeatureBank({"video": x}, {"video": here}, VIEWS), [list(pool)])
    rows = rows_of(pool, here)
    return scale("video", x[None, rows, CLEAN], here[None, rows])[0].double()


@pytest.mark.parametrize("text", ["", "none"])
def test_no_projection(text: str) -> None:
    assert parse_projection(text) is None


@pytest.mark.parametrize("text", ["pca:256", "pca-white:256", "pca:1"])
def test_a_projection_reads_as_it_is_written(text: str) -> None:
    assert str(parse_projection(text)) == text


def test_a_projection_has_a_kind_and_a_width() -> None:
    assert parse_projection("pca-white:12") == ProjectionSpec("pca-white", 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pca", "projection 'pca' has no width; write for example pca:256."),
        ("pca-white:", "projection 'pca-white:' has no width; write for example pca-white:256."),
        ("pca:0", "projection 'pca:0' has the width '0'; it must be a whole number of at least 1"),
        ("pca:x", "projection 'pca:x' has the width 'x'; it must be a whole number of at least 1"),
        ("pca:-3", "the width '-3'"),
        ("pca:1.5", "the width '1.5'"),
        ("pca: 5", "the width ' 5'"),
        ("pca:010", "the width '010'"),
        ("pca:٣", "the width '٣'"),
        ("lda:5", "projection 'lda:5' is of unknown kind 'lda'."),
        ("pcawhite:5", "is of unknown kind 'pcawhite'. Did you mean 'pca-white'?"),
        ("256", "is of unknown kind '256'."),
    ],
)
def test_any_other_projection_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse_projection(text)
    assert "Allowed: none, pca:WIDTH and pca-white:WIDTH, for example pca:256" in str(caught.value)


def test_a_spec_is_checked_on_construction() -> None:
    with pytest.raises(UsageError, match="projection 'pca:0'"):
        ProjectionSpec("pca", 0)
    with pytest.raises(UsageError, match="projection 'lda:5'"):
        ProjectionSpec("lda", 5)  # type: ignore[arg-type]


@both_branches
def test_standardisation_is_that_of_full_size_features(pool: range) -> None:
    x, here = sample()
    own = fit_projection(x, here, pool, CLEAN, PCA_8)
    scale = Standardiser(FeatureBank({"video": x}, {"video": here}, VIEWS), [list(pool)])
    assert torch.equal(own.mean, scale.mean["video"][0, 0])
    assert torch.equal(own.scale, scale.scale["video"][0, 0])
    assert own.clips == len(rows_of(pool, here)) < len(pool)


@both_branches
def test_matrix_is_orthonormal_up_to_one_number(pool: range) -> None:
    matrix = fitted(pool=pool).matrix.double()
    assert matrix.dtype == torch.float64
    gram = matrix.T @ matrix
    assert torch.allclose(gram, torch.eye(8, dtype=torch.float64) * gram[0, 0], atol=1e-6 * float(gram[0, 0]))


@both_branches
def test_white_columns_are_orthogonal(pool: range) -> None:
    matrix = fitted(WHITE_8, pool).matrix.double()
    unit = matrix / matrix.norm(dim=0)
    assert torch.allclose(unit.T @ unit, torch.eye(8, dtype=torch.float64), atol=1e-6)


@both_branches
@both_kinds
def test_reconstruction_error_is_the_variance_lost(pool: range, spec: ProjectionSpec) -> None:
    x, here = sample()
    own = fit_projection(x, here, pool, CLEAN, spec)
    z = standardised(x, here, pool)
    matrix = own.matrix.double()
    back = z @ matrix @ torch.linalg.pinv(matrix)
    lost = float((z - back).square().sum() / z.square().sum())
    assert lost == pytest.approx(1 - own.variance_kept, abs=1e-6)
    assert 0 < own.variance_kept < 1


@both_branches
@both_kinds
def test_agrees_with_scikit_learn(pool: range, spec: ProjectionSpec) -> None:
    x, here = sample()
    own = fit_projection(x, here, pool, CLEAN, spec)
    reference = PCA(8, svd_solver="full").fit(standardised(x, here, pool).numpy())
    axes = own.matrix.double().numpy()
    axes /= np.linalg.norm(axes, axis=0)
    signs = np.sign((axes.T * reference.components_).sum(1))
    assert np.allclose(axes.T, reference.components_ * signs[:, None], atol=1e-5)
    assert own.variance_kept == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-6)


@both_branches
def test_one_number_scales_all_components_of_pca(pool: range) -> None:
    x, here = sample()
    compact = fit_projection(x, here, pool, CLEAN, PCA_8).apply(x, here)[rows_of(pool, here), CLEAN].double()
    assert float(compact.square().mean()) == pytest.approx(1, abs=1e-3)
    variance = compact.var(0, correction=0)
    expected = torch.from_numpy(PCA(8, svd_solver="full").fit(standardised(x, here, pool).numpy()).explained_variance_)
    assert torch.allclose(variance / variance[0], expected / expected[0], rtol=2e-3)
    assert float(variance[0] / variance[-1]) > 2


@both_branches
def test_every_component_of_pca_white_has_unit_variance(pool: range) -> None:
    x, here = sample()
    compact = fit_projection(x, here, pool, CLEAN, WHITE_8).apply(x, here)[rows_of(pool, here), CLEAN].double()
    assert torch.allclose(compact.var(0, correction=0), torch.ones(8, dtype=torch.float64), atol=2e-3)
    assert float(compact.mean(0).abs().max()) < 1e-3


@both_branches
@both_kinds
def test_the_largest_entry_of_every_component_is_positive(pool: range, spec: ProjectionSpec) -> None:
    matrix = fitted(spec, pool).matrix
    assert (matrix.gather(0, matrix.abs().argmax(0, keepdim=True)) > 0).all()


def test_equal_entries_do_not_toss_the_sign() -> None:
    """Two features of the same values in another order have the components (1, 1) and (1, -1)."""
    here = torch.ones(CLIPS, dtype=torch.bool)
    for seed in range(20):
        x = sample(seed, dim=2)[0][:, CLEAN]
        x[CLIPS // 2 :] = x[: CLIPS // 2].flip(1)
        matrix = fit_projection(x[:, None], here, range(CLIPS), 0, PCA_8).matrix
        assert torch.allclose(matrix[0], matrix[1].abs())
        assert (matrix[0] > 0).all()


@both_kinds
def test_same_clips_give_the_same_bits(spec: ProjectionSpec) -> None:
    x, here = sample()
    first = fit_projection(x, here, MANY, CLEAN, spec)
    shuffled = np.random.default_rng(1).permutation(MANY).tolist()
    assert fit_projection(x.clone(), here.clone(), shuffled, CLEAN, spec).digest == first.digest


@both_branches
@both_kinds
def test_other_clips_and_other_views_change_nothing(pool: range, spec: ProjectionSpec) -> None:
    x, here = sample()
    first = fit_projection(x, here, pool, CLEAN, spec)
    rows = rows_of(pool, here)
    noise = torch.from_numpy(np.random.default_rng(9).normal(50, 99, x.shape).astype(np.float16))
    noise[rows, CLEAN] = x[rows, CLEAN]
    outside = torch.ones(CLIPS, dtype=torch.bool)
    outside[list(pool)] = False
    second = fit_projection(noise, here | outside, pool, CLEAN, spec)
    assert second.digest == first.digest
    assert torch.equal(second.matrix, first.matrix)
    assert torch.equal(second.apply(x, here), first.apply(x, here))


@both_kinds
@pytest.mark.parametrize("dim", [1, 5, 8])
def test_a_small_modality_keeps_its_size(spec: ProjectionSpec, dim: int) -> None:
    own = fit_projection(*sample(dim=dim), MANY, CLEAN, spec)
    assert own.width == own.matrix.shape[1] == dim
    assert own.variance_kept == pytest.approx(1)


@both_kinds
def test_width_stops_at_the_rank_of_a_few_clips(spec: ProjectionSpec) -> None:
    own = fit_projection(*sample(), range(3, 9), CLEAN, spec)
    assert own.width == own.clips - 1 < 8
    assert own.variance_kept == pytest.approx(1)


@both_branches
@both_kinds
def test_dependent_features_do_not_become_components_of_rounding(pool: range, spec: ProjectionSpec) -> None:
    """Sums that were rounded to float16 have full rank; whitening would blow that rounding up to unit variance."""
    x, here = sample(dim=4)
    mixed = torch.from_numpy(np.random.default_rng(2).normal(size=(4, 20))).float()
    own = fit_projection((x.float() @ mixed).half(), here, pool, CLEAN, replace(spec, width=20))
    assert own.width == 4
    assert own.variance_kept == pytest.approx(1, abs=1e-5)


@both_branches
@both_kinds
def test_constant_features_carry_nothing(pool: range, spec: ProjectionSpec) -> None:
    x, here = sample()
    x[..., [2, 17]] = torch.tensor([0.0, 1000.0]).half()
    own = fit_projection(x, here, pool, CLEAN, spec)
    assert own.scale[[2, 17]].tolist() == [0, 0]
    assert own.matrix[[2, 17]].abs().max() == 0
    rest = [i for i in range(DIM) if i not in (2, 17)]
    assert torch.equal(own.matrix[rest], fit_projection(x[..., rest], here, pool, CLEAN, spec).matrix)
    x[..., 2] = 7  # in another domain it is not constant
    assert torch.equal(own.apply(x, here), own.apply(sample()[0] * (torch.arange(DIM) != 2).half(), here))


def test_the_largest_float16_numbers_are_no_error() -> None:
    x, here = sample()
    x[:40, :, 0], x[40:, :, 0] = 65504, -65504
    assert fit_projection(x, here, MANY, CLEAN, PCA_8).width == 8


@both_kinds
def test_one_clip_is_refused(spec: ProjectionSpec) -> None:
    x, here = sample()
    here[5] = True
    message = r"clips that have the modality \(1\) differ in none of its 24 features.*use the projection none"
    with pytest.raises(UsageError, match=message):
        fit_projection(x, here, [5], CLEAN, spec)


def test_equal_clips_are_refused() -> None:
    x, here = sample()
    with pytest.raises(UsageError, match=r"projection pca:8: .* differ in none of its 24 features"):
        fit_projection(x[:1].expand_as(x), here, MANY, CLEAN, PCA_8)


@pytest.mark.parametrize("pool", [[4, 6], []])
def test_a_pool_without_the_modality_is_refused(pool: list[int]) -> None:
    x, here = sample()
    here[[4, 6]] = False
    with pytest.raises(UsageError, match=f"none of the {len(pool)} source training clips has features"):
        fit_projection(x, here, pool, CLEAN, PCA_8)


@both_kinds
def test_application_by_hand(spec: ProjectionSpec) -> None:
    x, here = sample()
    own = fit_projection(x, here, MANY, CLEAN, spec)
    compact = own.apply(x, here)
    assert compact.shape == (CLIPS, len(VIEWS), 8)
    assert compact.dtype == torch.float16
    expected = ((x.double() - own.mean) * own.scale) @ own.matrix.double() * here[:, None, None]
    assert torch.allclose(compact.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("values", [1, 200, 2**22])
def test_blocks_do_not_show(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, here = sample()
    own = fitted()
    whole = own.apply(x, here)
    monkeypatch.setattr(module, "BLOCK_VALUES", values)
    assert torch.allclose(own.apply(x, here).float(), whole.float(), rtol=1e-3, atol=1e-4)


def test_absent_clips_are_zero_whatever_their_rows_hold() -> None:
    x, here = sample()
    own = fitted()
    whole = own.apply(x, here)
    x[~here] = float("nan")
    assert whole[~here].abs().max() == 0
    assert torch.equal(own.apply(x, here), whole)
    assert own.apply(x[:0], here[:0]).shape == (0, len(VIEWS), 8)


def test_values_beyond_float16_stay_finite() -> None:
    x, here = sample()
    x[:80, :, 0] = torch.linspace(0, 1e-5, 80).half()[:, None]  # dead in the sources, alive in the target
    x[80:, :, 0] = 60000
    own = fit_projection(x, here, MANY, CLEAN, WHITE_8)
    compact = own.apply(x, here)
    assert torch.isfinite(compact).all()
    assert compact[80:].abs().max() == 65504


def test_features_of_another_dim_are_refused() -> None:
    x, here = sample(dim=1)
    with pytest.raises(ValueError, match="features have 1 dims; this projection was fitted on 24"):
        fitted().apply(x, here)


def test_tensors_that_do_not_fit_are_refused() -> None:
    own = fitted()
    for change in (
        {"mean": own.mean[1:]},
        {"matrix": own.matrix[0]},
        {"matrix": own.matrix[:, :0]},
        {"scale": own.scale.double()},
        {"spec": ProjectionSpec("pca", 7)},
    ):
        with pytest.raises(ValueError, match="mean, scale and matrix of projection pca"):
            replace(own, **change)


def test_digest_changes_with_every_field() -> None:
    own = fitted()
    nudged = {name: getattr(own, name).clone() for name in ("mean", "scale", "matrix")}
    for tensor in nudged.values():
        tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], torch.tensor(9.0))
    others = [
        *(replace(own, **{name: tensor}) for name, tensor in nudged.items()),
        replace(own, variance_kept=own.variance_kept / 2),
        replace(own, clips=own.clips + 1),
        replace(own, spec=WHITE_8),
        replace(own, spec=ProjectionSpec("pca", 9)),
    ]
    digests = {p.digest for p in (own, *others)}
    assert len(digests) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)
    assert replace(own, mean=own.mean.clone()).digest == own.digest


KEY = {
    "features_digest": "f00",
    "modality": "video",
    "sources": ("yard", "kitchen"),
    "pool_ids": ("a", "b", "c"),
    "spec": PCA_8,
}


def test_key_changes_with_everything_a_projection_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"features_digest": "f01"},
        {"modality": "audio"},
        {"sources": ("yard",)},
        {"pool_ids": ("a", "b")},
        {"pool_ids": ("a", "bc")},
        {"spec": WHITE_8},
        {"spec": ProjectionSpec("pca", 9)},
    ]
    keys = [projection_key(**{**KEY, **change}) for change in changes]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "REVISION", module.REVISION + 1)
    keys.append(projection_key(**KEY))  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


def test_key_does_not_depend_on_order() -> None:
    turned = {**KEY, "sources": ("kitchen", "yard"), "pool_ids": ("c", "a", "b")}
    assert projection_key(**turned) == projection_key(**KEY)  # type: ignore[arg-type]


class Fits:
    """Fits, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Projection:
        self.count += 1
        return fitted(WHITE_8)


def test_a_stored_projection_is_the_one_that_was_fitted(tmp_path: Path) -> None:
    fit = Fits()
    first = stored_projection(tmp_path / "new" / "folder", "abc", fit)
    second = stored_projection(tmp_path / "new" / "folder", "abc", fit)
    assert fit.count == 1
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["abc.safetensors"]
    assert second.digest == first.digest
    assert (second.spec, second.clips, second.variance_kept) == (first.spec, first.clips, first.variance_kept)
    x, here = sample()
    assert torch.equal(second.apply(x, here), first.apply(x, here))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def text(path: Path) -> None:
    path.write_text("not tensors at all")


def without_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def other_tensors(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, metadata={"step": "4"})


def other_metadata(path: Path) -> None:
    save_file(load_file(path), path, metadata={"projection": "[]"})


def other_key(path: Path) -> None:
    stored_projection(path.parent, "other", Fits())
    (path.parent / "other.safetensors").replace(path)


@pytest.mark.parametrize(
    "damage",
    [cut, empty, flip, text, without_metadata, other_tensors, other_metadata, other_key],
    ids=lambda f: f.__name__,
)
def test_a_damaged_or_foreign_file_is_fitted_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    fit = Fits()
    first = stored_projection(tmp_path, "abc", fit)
    sound = (tmp_path / "abc.safetensors").read_bytes()
    damage(tmp_path / "abc.safetensors")
    assert stored_projection(tmp_path, "abc", fit).digest == first.digest
    assert fit.count == 2
    assert (tmp_path / "abc.safetensors").read_bytes() == sound


def test_what_a_killed_writer_left_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".abc.safetensors.4711.tmp").write_bytes(b"half")
    fit = Fits()
    first = stored_projection(tmp_path, "abc", fit)
    assert stored_projection(tmp_path, "abc", fit).digest == first.digest
    assert fit.count == 1


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        assert len(list(tmp_path.iterdir())) == 1  # written, and not yet under its name
        raise OSError("disk full")

    monkeypatch.setattr("pipeline.weights.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        stored_projection(tmp_path, "abc", fitted)
    assert list(tmp_path.iterdir()) == []


def small_bank() -> FeatureBank:
    video, here = sample()
    audio, heard = sample(1, dim=6)
    return FeatureBank({"video": video, "audio": audio}, {"video": here, "audio": heard}, VIEWS)


def projections(bank: FeatureBank, pool: range) -> dict[str, Projection]:
    return {m: fit_projection(x, bank.present[m], pool, CLEAN, PCA_8) for m, x in bank.features.items()}


def test_a_compact_bank_holds_every_set_of_sources() -> None:
    bank = small_bank()
    own = [projections(bank, range(0, 40)), projections(bank, range(40, 80))]
    compact = CompactBank.from_bank(bank, [("yard", "kitchen"), ("studio",)], own)
    assert compact.sets == (("yard", "kitchen"), ("studio",))
    assert compact.dims == (("video", 8), ("audio", 6))
    for modality, x in bank.features.items():
        assert compact.features[modality].dtype == torch.float16
        for position, each in enumerate(own):
            expected = each[modality].apply(x, bank.present[modality])
            assert torch.equal(compact.features[modality][position], expected)


def test_a_compact_bank_answers_as_the_bank_it_is_made_from() -> None:
    bank = small_bank()
    clips = tuple(
        Clip(f"c{i}", "yard", "wave", "train", f"c{i}", {"video": Path("x.mp4")})
        for i in range(len(bank.present["video"]))
    )
    manifest = Manifest("small", ("wave",), ("yard",), clips, Path())
    compact = CompactBank.from_bank(bank, [("yard",)], [projections(bank, MANY)])
    assert compact.views == VIEWS
    assert [compact.view_positions(kind) for kind in ("clean", "weak", "strong")] == [[1], [0], [2]]
    assert compact.usable(manifest) == bank.usable(manifest)
    assert 0 < len(compact.usable(manifest)) < CLIPS
    assert all(torch.equal(compact.present[m], bank.present[m]) for m in bank.present)


def test_different_widths_are_cut_to_the_smallest() -> None:
    bank = small_bank()
    own = [projections(bank, MANY), projections(bank, range(3, 9))]
    compact = CompactBank.from_bank(bank, [("yard",), ("studio",)], own)
    width = own[1]["video"].width
    assert width < own[0]["video"].width == 8
    assert dict(compact.dims)["video"] == width
    whole = own[0]["video"].apply(bank.features["video"], bank.present["video"])
    assert torch.equal(compact.features["video"][0], whole[..., :width])


def test_sets_and_projections_must_match() -> None:
    bank = small_bank()
    own = projections(bank, MANY)
    with pytest.raises(ValueError, match="2 sets of sources and 1 projections"):
        CompactBank.from_bank(bank, [("yard",), ("studio",)], [own])
    with pytest.raises(ValueError, match="0 sets of sources"):
        CompactBank.from_bank(bank, [], [])
    with pytest.raises(ValueError, match="1 of 2 sets have no projection of audio"):
        CompactBank.from_bank(bank, [("yard",), ("studio",)], [own, {"video": own["video"]}])
