"""The model card says what the spec says, whatever names a user's data has."""

from __future__ import annotations

from dataclasses import replace

from pipeline.bundlespec import Measured, PartRecord, Temperature, read_spec, write_spec
from pipeline.modelcard import model_card
from tests.bundles import a_head, a_spec


def test_the_figures_are_those_of_the_spec() -> None:
    spec = a_spec(a_head())
    subsets = {**spec.target.subsets, "video+audio": Measured(29, 0.25, 0.125, 0.0625)}
    card = model_card(replace(spec, target=replace(spec.target, subsets=subsets)))
    assert "| video+audio | 50.0 | 30 | 25.0 | 29 |" in card
    assert "| video+audio | 1.000 | 20.0 | 10.0 | 12.5 | 6.2 |" in card
    assert "Chance is 33.3 %" in card
    assert "the filler **translate** stands in for it" in card
    assert "confidence of at least 0.7." in card
    assert "trained on kitchen, garage, with labels for 5 per class" in card


def test_a_spec_that_was_read_gives_the_same_card() -> None:
    spec = a_spec(a_head())
    assert model_card(read_spec(write_spec(spec).encode())) == model_card(spec)


def test_names_of_a_users_data_start_no_markup() -> None:
    spec = a_spec(a_head())
    card = model_card(replace(spec, notes=("a | b\n\n# <script>",), run=replace(spec.run, target="x|<b>")))
    assert "**Note: a \\| b # &lt;script>**" in card
    assert "<" not in card
    assert "x\\|&lt;b>" in card


def test_what_was_not_measured_is_a_dash() -> None:
    spec = a_spec(a_head())
    nothing = Measured(0, None, None, None)
    part = PartRecord(
        "no clips", dict.fromkeys(spec.target.subsets, nothing), dict.fromkeys(spec.target.alone, nothing), {}
    )
    fused = {kept: Temperature(1.0, 0, "not fitted: 0 clips") for kept in spec.calibration.fused}
    run, training = replace(spec.run, target=""), replace(spec.training, target_accuracy=None)
    calibration = replace(spec.calibration, fused=fused)
    card = model_card(replace(spec, target=part, run=run, training=training, calibration=calibration))
    assert "**- %** on 0 clips: no clips" in card
    assert "| low | everything else | 33.3 | 50.0 | - | - |" in card
    assert card.count("- not fitted: 0 clips") == 1
    assert "What it does in another one was not tested." in card
