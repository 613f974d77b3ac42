"""One run as a model: its numbers are those of the stacked network and of the fillers, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heads.fillers import FillerState, predict_missing
from pipeline.errors import UsageError
from pipeline.headmodel import HeadInput, HeadModel, Prediction
from pipeline.projection import Projection, ProjectionSpec
from tests.bundles import CLASSES, a_batch, a_head, a_plan, rows_of

ALL = ("video", "flow", "audio")


def stacked(head: HeadModel, features: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features as training has them, ``(1, batch, dim)``."""
    found = {}
    for m, x in features.items():
        mean, scale = head.get_buffer(f"mean_{m}"), head.get_buffer(f"scale_{m}")
        found[m] = ((x.float() - mean) * scale * present[m][:, None])[None]
    return found


def state_of(head: HeadModel) -> FillerState:
    known = [{m: head.get_buffer(f"filler_{part}_{m}")[None] for m in ALL} for part in ("mean", "length", "prototypes")]
    return FillerState(*known, head.translators)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6, equal_nan=True)


def check_alike(found: Prediction, wanted: Prediction) -> None:
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5, equal_nan=True)
    close(found.probs, wanted.probs)
    for m, own in wanted.alone.items():
        close(found.alone[m], own)


@pytest.mark.parametrize("filler", ["zero", "mean", "prototype", "translate", "translate-raw", "renormalise"])
def test_mixed_batches_are_filled_as_evaluation_fills_them(filler: str) -> None:
    head = a_head(a_plan(filler=filler))
    features, present = a_batch(head, 24)
    found = head(features, present)
    here = {m: p[None] for m, p in present.items()}
    x = stacked(head, features, present)
    wanted = predict_missing(head.network, x, here, filler, state_of(head))[0]
    some = torch.stack(list(present.values())).any(0)
    assert some.logical_not().sum() == 3
    complete = torch.stack(list(present.values())).all(0)
    filled = some & ~complete
    close(torch.softmax(found.logits, 1)[filled], wanted[filled])
    plain = head.network(x, here).logits["fused"][0]
    same = torch.ones_like(complete) & some if filler == "zero" else complete
    torch.testing.assert_close(found.logits[same], plain[same], rtol=0, atol=1e-6)
    own = head.network(x, here).logits
    for k, m in enumerate(ALL):
        close(found.alone[m][present[m]], torch.softmax(own[m][0] / (2.0 + k), 1)[present[m]])
        assert found.alone[m][~present[m]].isnan().all()


def test_a_row_without_any_modality_has_no_answer() -> None:
    head = a_head()
    features, present = a_batch(head)
    found = head(features, present)
    nothing = ~torch.stack(list(present.values())).any(0)
    for value in (found.logits, found.probs):
        assert value[nothing].isnan().all()
        assert not value[~nothing].isnan().any()


@pytest.mark.parametrize("projected", [False, True])
def test_rows_do_not_depend_on_each_other(projected: bool) -> None:
    head = a_head(a_plan(projected=projected))
    features, present = a_batch(head)
    whole = head(features, present)
    for row in range(16):
        part = slice(row, row + 1)
        one = head(rows_of(features, part), rows_of(present, part))
        check_alike(one, Prediction(whole.logits[part], whole.probs[part], rows_of(whole.alone, part)))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    turned = head({m: x[order] for m, x in features.items()}, {m: x[order] for m, x in present.items()})
    check_alike(
        turned, Prediction(whole.logits[order], whole.probs[order], {m: x[order] for m, x in whole.alone.items()})
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -7.0])
def test_what_stands_where_a_modality_is_missing_is_ignored(bad: float) -> None:
    head = a_head()
    features, present = a_batch(head)
    spoilt = {m: torch.where(present[m][:, None], x, bad) for m, x in features.items()}
    check_alike(head(spoilt, present), head(features, present))


def test_a_feature_that_is_no_number_spoils_its_own_row_alone() -> None:
    head = a_head()
    features, present = a_batch(head)
    whole = head(features, present)
    spoilt = {**features, "video": features["video"].clone()}
    spoilt["video"][7, 3] = torch.nan
    found = head(spoilt, present)
    assert found.probs[7].isnan().all()
    others = torch.arange(16) != 7
    check_alike(
        Prediction(found.logits[others], found.probs[others], {m: x[others] for m, x in found.alone.items()}),
        Prediction(whole.logits[others], whole.probs[others], {m: x[others] for m, x in whole.alone.items()}),
    )


def test_features_are_rounded_as_the_cache_rounds_them() -> None:
    head = a_head()
    features, present = a_batch(head)
    exact = {m: x.float() + 1e-5 * torch.randn(x.shape) for m, x in features.items()}
    rounded = {m: x.half() for m, x in exact.items()}
    assert torch.equal(head(exact, present).probs.nan_to_num(), head(rounded, present).probs.nan_to_num())
    plan = a_plan()
    inputs = tuple(HeadInput(i.modality, i.dim, i.width, "float32") for i in plan.inputs)
    single = a_head(type(plan)(plan.classes, inputs, plan.shape, False, True, "translate", 0.7))
    assert not torch.equal(single(exact, present).probs.nan_to_num(), single(rounded, present).probs.nan_to_num())


def test_compact_features_are_those_of_training() -> None:
    head = a_head(a_plan(projected=True, filler="zero"))
    features, present = a_batch(head, 40)
    x = {}
    for m in ALL:
        matrix = head.get_buffer(f"matrix_{m}")
        spec = ProjectionSpec("pca", matrix.shape[1])
        projection = Projection(head.get_buffer(f"mean_{m}"), head.get_buffer(f"scale_{m}"), matrix, 0.9, 40, spec)
        x[m] = projection.apply(features[m][:, None], present[m])[:, 0].float()[None]
        assert not torch.equal(x[m], (features[m].float() - projection.mean) * projection.scale @ matrix)
    wanted = head.network(x, {m: p[None] for m, p in present.items()}).logits["fused"][0]
    some = torch.stack(list(present.values())).any(0)
    torch.testing.assert_close(head(features, present).logits[some], wanted[some], rtol=0, atol=1e-6)


def test_compact_features_stop_where_float16_does() -> None:
    head = a_head(a_plan(("video",), projected=True, filler="zero", translators=False))
    head.get_buffer("matrix_video").fill_(1e4)
    far = torch.full((1, 12), 1e4)
    assert head({"video": far}, {"video": torch.ones(1, dtype=torch.bool)}).probs.isfinite().all()


def test_every_subset_has_its_temperature() -> None:
    head = a_head()
    features, present = a_batch(head)
    found = head(features, present)
    for row in range(16):
        kept = tuple(m for m in ALL if present[m][row])
        if kept:
            temperature = 0.5 + 0.25 * head.plan.subsets.index(kept)
            close(found.probs[row], torch.softmax(found.logits[row] / temperature, 0))


def test_another_filler_is_calibrated_where_nothing_is_missing_alone() -> None:
    head = a_head()
    features, present = a_batch(head)
    found = head(features, present, "mean")
    complete = torch.stack(list(present.values())).all(0)
    some = torch.stack(list(present.values())).any(0)
    close(found.probs[complete], head(features, present).probs[complete])
    close(found.probs[some & ~complete], torch.softmax(found.logits, 1)[some & ~complete])
    assert not torch.equal(found.probs[some], head(features, present).probs[some])


def test_a_modality_that_is_left_out_is_missing() -> None:
    head = a_head()
    features, present = a_batch(head)
    found = head({"video": features["video"]}, {"video": present["video"]})
    silent = {m: p & (m == "video") for m, p in present.items()}
    check_alike(found, head(features, silent))


def test_a_single_row_is_multiplied_as_rows_of_a_batch_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone it would take another product: after rounding to float16 one compact feature in three hundred differs."""
    head = a_head()
    sizes: list[int] = []
    real = head.compute

    def compute(features: dict[str, Tensor], present: dict[str, Tensor], filler: str) -> Prediction:
        sizes.append(len(present["video"]))
        return real(features, present, filler)

    monkeypatch.setattr(head, "compute", compute)
    for rows in (1, 2, 5):
        assert len(head(*a_batch(head, rows)).probs) == rows
    assert sizes == [2, 2, 5]


def test_no_rows_are_no_answers() -> None:
    head = a_head()
    features, present = a_batch(head)
    found = head(rows_of(features, slice(0)), rows_of(present, slice(0)))
    assert found.probs.shape == found.alone["audio"].shape == (0, 3)


def test_what_a_model_does_not_know_is_refused() -> None:
    head = a_head(a_plan(translators=False, filler="mean"))
    assert head.fillers == ("zero", "mean", "prototype", "renormalise")
    features, present = a_batch(head)
    with pytest.raises(UsageError, match="'translate' is not a filler of this model"):
        head(features, present, "translate")
    with pytest.raises(UsageError, match=r"'vidoe' is not a modality of this model\. Did you mean 'video'"):
        head({"vidoe": features["video"]}, {"vidoe": present["video"]})
    with pytest.raises(UsageError, match="video must be in both features and present"):
        head(features, {m: p for m, p in present.items() if m != "video"})
    with pytest.raises(UsageError, match=r"video features are \(16, 11\).*must be \(16, 12\)"):
        head({**features, "video": features["video"][:, 1:]}, present)
    with pytest.raises(UsageError, match="int64; they must be"):
        head({**features, "video": features["video"].long()}, present)
    with pytest.raises(UsageError, match=r"presence of flow is \(16,\) torch.float32"):
        head(features, {**present, "flow": present["flow"].float()})
    with pytest.raises(UsageError, match="there are no features; give those of at least one of video, flow, audio"):
        head({}, {})


def test_a_plan_contradicts_nothing() -> None:
    plan = a_plan()
    with pytest.raises(UsageError, match="'finetuned' is not a filler of this model"):
        a_plan(filler="finetuned")
    with pytest.raises(UsageError, match="threshold is 2"):
        a_plan(threshold=2)
    with pytest.raises(ValueError, match="the network reads"):
        type(plan)(CLASSES[1:], plan.inputs, plan.shape, False, True, "zero", 0.5)
    projected = a_plan(projected=True)
    with pytest.raises(ValueError, match="without a projection"):
        type(plan)(CLASSES, projected.inputs, projected.shape, False, True, "zero", 0.5)


def test_tensors_have_no_axis_of_runs() -> None:
    head = a_head()
    tensors = head.tensors()
    assert tensors["network.unimodal.video.weight"].shape == (12, 3)
    assert tensors["translators.video_to_audio.last.bias"].shape == (1, 7)
    assert {name: tuple(x.shape) for name, x in tensors.items()} == head.shapes()
    assert not any(name.startswith("temperature") for name in tensors)
    again = HeadModel(head.plan)
    again.load_tensors(tensors)
    assert all(torch.equal(again.state_dict()[name], x) for name, x in head.state_dict().items())
