"""What is printed about runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline import show_runs
from pipeline.runs import runs_frame
from pipeline.show_runs import SPARK_WIDTH, SPARKS, show_run, show_runs_list, show_skipped, sparkline
from pipeline.types import RunResult
from tests.unit.test_types import run_result, run_spec


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=120, highlight=False, soft_wrap=True, record=True)
    monkeypatch.setattr(show_runs, "out", console)
    return console


def some_runs() -> list[RunResult]:
    results = []
    for seed in range(4):
        hparams = {"learning_rate": 1e-3 * (1 + seed // 2), "mixing": "[none]", "depth": 2}
        spec = run_spec(split_seed=seed, target=("studio", "cellar")[seed % 2], hparams=hparams)
        metrics: dict[str, float | None] = {"selected_step": 100, "target/fused": None if seed == 3 else seed / 7}
        results.append(run_result(spec=spec, metrics=metrics))
    return results


def test_the_list_says_once_what_all_runs_share(printed: Console) -> None:
    results = some_runs()
    show_runs_list(runs_frame(results), 3)
    text = printed.export_text()
    shared, heading = text.splitlines()[0], next(line for line in text.splitlines() if "run_id" in line)
    assert "dataset small" in shared
    assert "method fixmatch" in shared
    assert heading.split() == ["run_id", "target", "split_seed", "h.learning_rate", "target/fused"]
    for result in results[:3]:
        assert result.spec.run_id in text
    assert results[3].spec.run_id not in text
    assert "0.1429" in text
    assert "4 runs, 1 of them not shown (--limit)" in text


def test_the_list_shows_the_columns_that_are_asked_for(printed: Console) -> None:
    show_runs_list(runs_frame(some_runs()), 10, ["h.mixing", "target/fused"])
    lines = printed.export_text().splitlines()
    assert lines[1].split() == ["h.mixing", "target/fused"]
    assert [line.split() for line in lines[3:7]] == [["[none]", v] for v in ("0", "0.1429", "0.2857", "-")]
    assert lines[-1] == "4 runs"


def test_a_list_of_no_or_one_run_is_no_error(printed: Console) -> None:
    show_runs_list(runs_frame([]), 10)
    assert printed.export_text() == "No runs.\n"
    show_runs_list(runs_frame(some_runs()[:1]), 10)
    text = printed.export_text()
    assert "studio" in text
    assert "1 runs" in text


def test_many_different_hyperparameters_are_named_and_not_all_shown(printed: Console) -> None:
    results = [run_result(spec=run_spec(hparams={f"x{k}": float(i) for k in range(7)})) for i in range(2)]
    show_runs_list(runs_frame(results), 10)
    text = printed.export_text()
    assert "Also different: h.x4, h.x5, h.x6 (--columns shows them)" in text


def test_hyperparameters_that_only_other_methods_have_tell_no_runs_apart(printed: Console) -> None:
    results = [
        run_result(spec=run_spec(method="erm", hparams={"dropout": 0.5})),
        run_result(spec=run_spec(method="ssmdg", hparams={"dropout": 0.5, "weight_prototype": 1.0})),
    ]
    show_runs_list(runs_frame(results), 10)
    assert "h." not in printed.export_text()


def test_skipped_files_are_named_with_their_reason(printed: Console) -> None:
    show_skipped([])
    assert printed.export_text() == ""
    show_skipped([(Path(f"{i}.json"), "cut off [x]") for i in range(7)])
    text = printed.export_text()
    assert "Skipped: 7 files" in text
    assert "  4.json: cut off [x]" in text
    assert "5.json" not in text
    assert "... and 2 more" in text


def test_everything_about_a_run_is_shown(printed: Console) -> None:
    result = run_result(
        spec=run_spec(hparams={"learning_rate": 3e-3, "mixing": "[bmm]"}, classes=("spin", "wave", "drop")),
        confusion=((3, 1, 0), (1, 4, 0), (0, 0, 0)),
        sizes={"labeled": 20, "test": 4},
        curves={"step": [50, 100], "target/fused": [0.25, 0.75], "pseudo/accepted/precision": [None, None]},
        metrics={"selected_step": 100, "target/fused": 0.75, "pseudo/accepted/precision": None},
        notes=("kitchen/wave has [3] clips",),
    )
    show_run(result)
    text = printed.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert f"Run {result.spec.run_id}: fixmatch on small, kitchen+yard -> studio" in text
    assert "labeled 20, test 4 clips" in text
    assert "Note: kitchen/wave has [3] clips" in text
    assert "Features of video: backbone tiny-video, weights random:0, digest cd34" in text
    for name, value in (("mixing", "[bmm]"), ("learning_rate", "0.003"), ("torch", "2.13"), ("patience", "0")):
        assert any(name in line and line[line.index(name) + 1] == value for line in lines), name
    assert "Curves: 2 evaluations, steps 50 to 100, selected by last: step 100" in text
    assert ["target/fused", "▁█", "0.25", "0.75", "0.75", "0.75"] in lines
    assert ["pseudo/accepted/precision", "··", "-", "-", "-", "-"] in lines
    assert ["spin", "3", "1", ".", "75%"] in lines
    assert ["wave", "1", "4", ".", "80%"] in lines
    assert ["drop", ".", ".", ".", "-"] in lines


def test_a_diverged_run_and_one_without_curves_are_shown(printed: Console) -> None:
    show_run(run_result(status="diverged", metrics={}, confusion=()))
    show_run(run_result(status="diverged", metrics={}, curves={}))
    assert "diverged" in printed.export_text()


def test_of_many_classes_the_most_confused_are_listed(printed: Console) -> None:
    classes = tuple(f"class {i}" for i in range(20))
    matrix = [[0] * 20 for _ in range(20)]
    matrix[3][3], matrix[3][4], matrix[7][1] = 50, 2, 9
    curves: dict[str, list[float | None]] = {"step": [1], "target/fused": [0.5]}
    curves |= {f"pseudo/accepted/class/{label}/coverage": [0.1] for label in classes}
    result = run_result(spec=run_spec(classes=classes), confusion=tuple(map(tuple, matrix)), curves=curves, metrics={})
    show_run(result)
    text = printed.export_text()
    assert "confused most, of 61:\n  9 of class 7 taken for class 1\n  2 of class 3 taken for class 4\n" in text
    assert "20 curves per class are not shown" in text
    assert "pseudo/accepted/class" not in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([None], "·"),
        ([0.5], "▄"),
        ([0.5, 0.5], "▄▄"),
        ([0, 1], "▁█"),
        ([1, None, 0, 0.5], "█·▁▅"),
        ([0, 1, 2, 3, 4, 5, 6, 7], SPARKS),
    ],
)
def test_these_curves_have_these_sparks(values: list[float | None], expected: str) -> None:
    assert sparkline(values) == expected


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=200))
def test_a_spark_is_never_wider_than_a_line(values: list[float | None]) -> None:
    line = sparkline(values)
    assert len(line) == min(len(values), SPARK_WIDTH)
    assert set(line) <= {*SPARKS, "·"}


def test_a_long_curve_is_averaged_over_stretches() -> None:
    assert sparkline([0.0] * 40 + [1.0] * 40) == "▁" * 20 + "█" * 20
