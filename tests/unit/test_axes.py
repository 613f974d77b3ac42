"""Axes of a sweep: what the product is, what is refused, and that draws do not move each other."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.axes import Axes, Case, Drawn, expand, parse_axes
from pipeline.errors import UsageError
from pipeline.plan import SweepSettings

ALL = ("video", "flow", "audio")


def test_lists_ranges_and_letters() -> None:
    axes = parse_axes(
        ["labels=5,10%", "method=erm,ssmdg", "seed=0..3,7", "target=all", "modalities=va,video+flow+audio"]
    )
    assert axes.lists == {
        "labels": ("5", "10%"),
        "methods": ("erm", "ssmdg"),
        "seeds": (0, 1, 2, 3, 7),
        "targets": (),
        "modalities": ("va", "video+flow+audio"),
    }
    cells = expand(SweepSettings(), ALL, axes)
    assert [(c.settings.labels, c.modalities) for c in cells] == [
        ("5", ("video", "audio")),
        ("5", ALL),
        ("10%", ("video", "audio")),
        ("10%", ALL),
    ]
    assert all(c.settings.methods == ("erm", "ssmdg") and c.settings.seeds == (0, 1, 2, 3, 7) for c in cells)


def test_hyperparameters_settings_and_choices_are_axes() -> None:
    axes = parse_axes(
        ["threshold=0.8,0.95", "fusion=sum,film", "steps=100", "batch=16,32", "unlabeled-domains=none,a+b"]
    )
    cells = expand(SweepSettings(hparams={"weight_gce": 1.0}), ALL, axes)
    assert len(cells) == 16
    assert {c.settings.hparams["threshold"] for c in cells} == {0.8, 0.95}
    assert all(c.settings.hparams["weight_gce"] == 1.0 and c.settings.steps == 100 for c in cells)
    assert {(c.settings.batch_labeled, c.settings.batch_unlabeled) for c in cells} == {(16, 16), (32, 32)}
    assert {c.settings.unlabeled_domains for c in cells} == {(), ("a", "b")}


def test_cases_change_several_settings_together() -> None:
    cases = (Case("full", {}), Case("without prototypes", {"weight_prototype": 0.0, "modalities": "vf"}))
    cells = expand(SweepSettings(), ALL, Axes({"labels": ("5", "10")}, cases))
    assert [(c.case, c.settings.labels, c.settings.hparams.get("weight_prototype"), c.modalities) for c in cells] == [
        ("full", "5", None, ALL),
        ("full", "10", None, ALL),
        ("without prototypes", "5", 0.0, ("video", "flow")),
        ("without prototypes", "10", 0.0, ("video", "flow")),
    ]


def test_random_search_draws_each_setting_from_its_own_stream() -> None:
    axes = parse_axes(["learning_rate=log:1e-4..1e-2", "dropout=linear:0..0.8"], draws=20)
    cells = expand(SweepSettings(), ALL, axes)
    rates = [float(c.settings.hparams["learning_rate"]) for c in cells]
    assert len(set(rates)) == 20
    assert all(1e-4 <= r <= 1e-2 for r in rates)
    assert sum(r < 1e-3 for r in rates) in range(4, 17)  # the middle of the logarithmic range
    fewer = expand(SweepSettings(), ALL, parse_axes(["learning_rate=log:1e-4..1e-2"], draws=5))
    assert [c.settings.hparams["learning_rate"] for c in fewer] == rates[:5]
    other = expand(SweepSettings(), ALL, parse_axes(["learning_rate=log:1e-4..1e-2"], draws=5, draw_seed=1))
    assert [c.settings.hparams["learning_rate"] for c in other] != rates[:5]


@given(st.integers(0, 2**32), st.integers(0, 1000), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_draws_stay_in_their_range(seed: int, draw: int, low: float, width: float) -> None:
    drawn = Drawn(low, low + width)
    value = drawn.value("x", seed, draw)
    assert isinstance(value, float)
    assert low <= value <= low + width
    assert value == drawn.value("x", seed, draw)
    assert Drawn(choices=("a", "b")).value("x", seed, draw) in ("a", "b")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["labels"], "axis 'labels': write name=value,value"),
        (["labels="], "axis 'labels='"),
        (["labels=5", "budget=10"], "axis labels is given twice"),
        (["seed=5..1"], "the range 5..1 ends before it begins"),
        (["seed=1,1"], "axis seeds names a value twice"),
        (["modalities=vx"], "'vx' is not a modality"),
        (["modalities=vv"], "names one twice"),
        (["method=ermm"], "'ermm' is not a method. Did you mean 'erm'"),
        (["steps=many"], "axes: steps is 'many'; it must be a whole number"),
        (["labels=x"], "labels: 'x'; write a number per class"),
        (["learning_rate=log:1e-4..1e-2"], "ranges but no number of draws"),
        (["protocol=paperr"], "'paperr' is not a protocol. Did you mean 'paper'"),
    ],
)
def test_what_is_no_axis_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        expand(SweepSettings(), ALL, parse_axes(texts))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axes({"labels": ()}), "axis labels has no values; the product would be empty"),
        (lambda: Axes({}, (Case("a", {}), Case("a", {}))), "two cases have one name: a"),
        (lambda: expand(SweepSettings(), ALL, Axes(draws=3)), "3 draws but nothing to draw"),
        (lambda: Drawn(2.0, 1.0), "the lower end comes first"),
        (lambda: Drawn(0.0, 1.0, "log"), "must begin above 0"),
        (lambda: Drawn(scale="cubic"), "'cubic' is not a scale"),
        (
            lambda: expand(
                SweepSettings(), ALL, Axes({"threshold": tuple(range(1000)), "dropout": tuple(range(1000))})
            ),
            "1000000 cells",
        ),
        (lambda: expand(SweepSettings(), ALL, Axes({"threshold": (True,)})), "a hyperparameter is a number or a text"),
    ],
)
def test_impossible_axes(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make()  # type: ignore[operator]
