"""Tables: what is averaged, what is never mixed, what is said when runs are missing, and the exact text."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import UsageError
from pipeline.report.settings import setting_titles
from pipeline.report.tables import (
    ResultTable,
    Row,
    group_by_setting,
    result_table,
    runs_to_csv,
    to_csv,
    to_latex,
    to_markdown,
    to_rich,
)
from pipeline.types import RunResult, RunSpec


def run(method: str, target: str, seed: int, accuracy: float | None, **changes: Any) -> RunResult:
    """A finished run, or a diverged one where the accuracy is None."""
    spec = RunSpec(
        dataset="tiny",
        manifest_digest="m" * 8,
        classes=("walk", "run", "a<b>", "d&e"),
        sources=tuple(domain for domain in ("A", "B", "C") if domain != target),
        target=target,
        modalities=("video", "audio"),
        features={"video": {"backbone": "v", "digest": "1"}, "audio": {"backbone": "a", "digest": "2"}},
        budget="5",
        method=method,
        hparams={"lr": 0.001},
        split_seed=seed,
        init_seed=seed,
        steps=100,
        batch_labeled=4,
        batch_unlabeled=8,
        eval_every=50,
    )
    metrics: dict[str, float | None] = {} if accuracy is None else {"target/fused": accuracy, "selected_step": 100.0}
    return RunResult(
        spec=replace(spec, **changes),
        metrics=metrics,
        curves={"step": [50, 100], "target/fused": [accuracy, accuracy]},
        selection="last",
        environment={"torch": "2"},
        seconds=1.5,
        status="diverged" if accuracy is None else "finished",
    )


def tiny() -> list[RunResult]:
    """Two methods, two targets, two seeds; every number below follows from these eight by hand."""
    accuracies = {
        ("erm", "A"): (0.50, 0.60),
        ("erm", "B"): (0.30, 0.40),
        ("fixmatch", "A"): (0.55, 0.61),
        ("fixmatch", "B"): (0.35, 0.39),
    }
    return [
        run(method, target, seed, value)
        for (method, target), pair in accuracies.items()
        for seed, value in enumerate(pair)
    ]


def row(table: ResultTable, method: str) -> Row:
    (found,) = (row for row in table.rows if row.method == method)
    return found


def test_cells_by_hand() -> None:
    table = result_table(tiny())
    assert table.columns == ("A", "B", "average")
    assert table.chance == 0.25
    erm, fixmatch = row(table, "erm"), row(table, "fixmatch")
    assert [cell.mean for cell in erm.cells] == pytest.approx([0.55, 0.35, 0.45])
    assert [cell.se for cell in erm.cells] == pytest.approx([0.05, 0.05, 0.05])
    # per-seed averages 0.45 and 0.50 against 0.40 and 0.50: differences 0.05 and 0
    assert fixmatch.average.mean == pytest.approx(0.475)
    assert fixmatch.average.se == pytest.approx(0.025)
    assert fixmatch.paired is not None
    assert fixmatch.paired.mean == pytest.approx(0.025)
    assert fixmatch.paired.se == pytest.approx(0.025)
    assert (fixmatch.paired.wins, fixmatch.paired.ties, fixmatch.paired.losses) == (1, 1, 0)
    assert erm.paired is None
    assert table.notes == ()


def test_order_of_the_runs_does_not_matter() -> None:
    assert result_table(tiny()) == result_table(tiny()[::-1])


def test_no_results_say_what_to_do() -> None:
    with pytest.raises(UsageError, match="pipe train-heads"):
        result_table([])


def test_a_seed_without_every_target_is_in_no_average() -> None:
    results = [r for r in tiny() if (r.spec.method, r.spec.target, r.spec.split_seed) != ("fixmatch", "B", 1)]
    table = result_table(results)
    fixmatch = row(table, "fixmatch")
    assert [cell.n for cell in fixmatch.cells] == [2, 1, 1]
    assert fixmatch.average.mean == pytest.approx(0.45)  # seed 0 alone; not the mean of unequal columns
    assert fixmatch.average.se is None
    assert fixmatch.paired is not None
    assert (fixmatch.paired.n, fixmatch.paired.se) == (1, None)
    assert table.notes == ("FixMatch: incomplete; the average is over 1 of 2 seeds. Missing: B seed 1 (not run).",)
    assert "45.0 (n=1)" in to_markdown(table)


def test_cells_over_fewer_seeds_are_not_ranked() -> None:
    results = [r for r in tiny() if (r.spec.method, r.spec.target, r.spec.split_seed) != ("fixmatch", "A", 0)]
    table = result_table(results)
    assert table.ranks(0) == (0, 0)
    assert table.ranks(1) == (0, 1)


def test_ranks_mark_best_and_second_and_ties_at_the_printed_digit() -> None:
    def ranks(*accuracies: float) -> tuple[int, ...]:
        methods = ("erm", "fixmatch", "ssmdg")
        return result_table([run(m, "A", 0, a) for m, a in zip(methods, accuracies, strict=False)]).ranks(0)

    assert ranks(0.5, 0.7, 0.6) == (0, 1, 2)
    assert ranks(0.5, 0.70001, 0.70002) == (0, 1, 1)
    assert ranks(0.5, 0.7) == (0, 1)
    assert ranks(0.5) == (0,)


def test_a_table_of_one_domain_says_that_there_was_no_new_one() -> None:
    table = result_table([run("erm", "A", 0, 0.5, sources=("A",), target_part="test")])
    assert "nothing here is about a new domain" in table.setting.protocol_text
    assert "nothing here" not in result_table(tiny()).setting.protocol_text


def test_an_upper_bound_is_never_marked_as_best() -> None:
    results = [run(m, "A", 0, a) for m, a in (("erm", 0.5), ("ssmdg", 0.6), ("supervised", 0.9))]
    table = result_table(results)
    assert [r.method for r in table.rows] == ["erm", "ssmdg", "supervised"]
    assert table.ranks(0) == (0, 1, 0)


def test_diverged_runs_are_in_no_mean_and_are_named() -> None:
    lost = run("fixmatch", "A", 1, None)
    results = [r for r in tiny() if (r.spec.method, r.spec.target, r.spec.split_seed) != ("fixmatch", "A", 1)]
    table = result_table([*results, lost])
    assert row(table, "fixmatch").cells[0].mean == pytest.approx(0.55)
    assert row(table, "fixmatch").cells[0].n == 1
    assert table.diverged == (lost.spec.run_id,)
    assert "A seed 1 (diverged)" in table.notes[0]
    assert lost.spec.run_id in to_markdown(table)


def test_only_diverged_runs_make_an_empty_table() -> None:
    table = result_table([run("erm", "A", 0, None)])
    assert row(table, "erm").average.mean is None
    assert "| Labeled only (ERM) | – | – |" in to_markdown(table)  # noqa: RUF001


@pytest.mark.parametrize(
    "change",
    [
        {"budget": "10"},
        {"steps": 200},
        {"modalities": ("video",)},
        {"target_part": "test"},
        {"version": "2"},
        {"manifest_digest": "other"},
        {"batch_labeled": 5},
        {"eval_every": 25},
        {"sources": ("B",)},
        {"dataset": "other"},
        {"features": {"video": {"backbone": "v", "digest": "9"}, "audio": {"backbone": "a", "digest": "2"}}},
    ],
)
def test_settings_are_never_mixed(change: dict[str, Any]) -> None:
    results = [run("erm", "A", 0, 0.5), run("fixmatch", "A", 0, 0.6, **change)]
    groups = group_by_setting(results)
    assert [len(runs) for _, runs in groups] == [1, 1]
    assert groups == group_by_setting(results[::-1])
    with pytest.raises(ValueError, match="2 settings"):
        result_table(results)


def test_the_selection_rule_is_part_of_the_setting() -> None:
    results = [run("erm", "A", 0, 0.5), replace(run("erm", "A", 0, 0.6), selection="oracle")]
    assert {setting.selection for setting, _ in group_by_setting(results)} == {"last", "oracle"}


def test_method_seeds_targets_and_hyperparameters_share_a_setting() -> None:
    results = [*tiny(), run("ssmdg", "C", 7, 0.3, hparams={"lr": 0.1, "weight_align": 1.0}, init_seed=3)]
    assert len(group_by_setting(results)) == 1


def test_budgets_are_ordered_by_size() -> None:
    results = [run("erm", "A", 0, 0.5, budget=budget) for budget in ("5%", "10", "5", "50%")]
    assert [setting.budget for setting, _ in group_by_setting(results)] == ["5", "10", "5%", "50%"]


def test_titles_name_what_tells_settings_apart() -> None:
    results = [run("erm", "A", 0, 0.5), run("erm", "A", 0, 0.5, steps=200), run("erm", "A", 0, 0.5, budget="1")]
    assert setting_titles([setting for setting, _ in group_by_setting(results)]) == [
        "tiny: 1 labeled clip per class and source domain, video + audio",
        "tiny: 5 labeled clips per class and source domain, video + audio (steps 100)",
        "tiny: 5 labeled clips per class and source domain, video + audio (steps 200)",
    ]


def test_hyperparameters_make_rows_of_their_own_paired_with_the_matching_baseline() -> None:
    results = [
        run(method, "A", 0, value, hparams={"lr": lr, **extra})
        for method, lr, extra, value in [
            ("erm", 0.1, {}, 0.40),
            ("erm", 0.2, {}, 0.50),
            ("fixmatch", 0.1, {"threshold": 0.9}, 0.45),
            ("fixmatch", 0.2, {"threshold": 0.9}, 0.58),
        ]
    ]
    table = result_table(results)
    assert [row.label for row in table.rows] == [
        "Labeled only (ERM), lr 0.1",
        "Labeled only (ERM), lr 0.2",
        "FixMatch, lr 0.1",
        "FixMatch, lr 0.2",
    ]
    assert [row.paired and round(row.paired.mean, 6) for row in table.rows] == [None, None, 0.05, 0.08]


def test_without_the_baseline_there_is_no_comparison() -> None:
    table = result_table([r for r in tiny() if r.spec.method == "fixmatch"])
    assert "difference" not in to_markdown(table).lower()


def test_a_run_given_twice_is_counted_once() -> None:
    table = result_table([*tiny(), tiny()[0]])
    assert [r.cells for r in table.rows] == [r.cells for r in result_table(tiny()).rows]
    assert table.notes == ("9 runs were given, 8 of them different; each counts once.",)


def test_a_target_with_several_source_sets_has_a_column_for_each() -> None:
    results = [run("erm", "A", 0, 0.5, sources=("B",)), run("erm", "A", 0, 0.7, sources=("C",))]
    assert result_table(results).columns == ("B → A", "C → A", "average")


def test_other_metrics() -> None:
    result = replace(run("erm", "A", 0, 0.5), metrics={"target/audio": 0.4})
    assert row(result_table([result], metric="target/audio"), "erm").average.mean == 0.4
    assert row(result_table([result]), "erm").average.mean is None


MARKDOWN = """\
**tiny: 5 labeled clips per class and source domain, video + audio**

| method | A | B | average | difference | wins / ties / losses |
| --- | ---: | ---: | ---: | ---: | ---: |
| Labeled only (ERM) | 55.0 ± 5.0 | 35.0 ± 5.0 | 45.0 ± 5.0 | – | – |
| FixMatch | **58.0 ± 3.0** | **37.0 ± 2.0** | **47.5 ± 2.5** | +2.5 ± 2.5 | 1 / 1 / 0 |

- Accuracy in % of the fused prediction on all clips of the target domain.
- Selection rule: last (the last evaluation of every run; nothing is selected).
- Protocol: strict (labeled, unlabeled, validation and test clips are disjoint, groups stay whole, and no clip of the \
target domain is seen in training).
- Chance level: 25.0 % (1 of 4 classes).
- ± is the standard error over n = 2 seeds (sample deviation), or over the n in brackets; it describes seeds, not \
other target domains, and is no significance test.
- Difference: to Labeled only (ERM), paired by seed, average over the targets, percentage points; wins / ties / losses \
count seeds.
"""  # noqa: RUF001

CSV = """\
method,label,column,mean,se,n,difference,difference_se,difference_n,wins,ties,losses,chance
erm,Labeled only (ERM),A,0.550000,0.050000,2,,,,,,,0.250000
erm,Labeled only (ERM),B,0.350000,0.050000,2,,,,,,,0.250000
erm,Labeled only (ERM),average,0.450000,0.050000,2,,,,,,,0.250000
fixmatch,FixMatch,A,0.580000,0.030000,2,,,,,,,0.250000
fixmatch,FixMatch,B,0.370000,0.020000,2,,,,,,,0.250000
fixmatch,FixMatch,average,0.475000,0.025000,2,0.025000,0.025000,2,1,1,0,0.250000
"""

LATEX = r"""
    \toprule
    method & A & B & average & difference & wins / ties / losses \\
    \midrule
    Labeled only (ERM) & 55.0 $\pm$ 5.0 & 35.0 $\pm$ 5.0 & 45.0 $\pm$ 5.0 & -- & -- \\
    FixMatch & \textbf{58.0 $\pm$ 3.0} & \textbf{37.0 $\pm$ 2.0} & \textbf{47.5 $\pm$ 2.5} & +2.5 $\pm$ 2.5 & 1 / 1 / 0 \\
    \bottomrule
  \end{tabular}
\end{table}
"""  # noqa: E501


def test_markdown_text() -> None:
    assert to_markdown(result_table(tiny())) == MARKDOWN


def test_csv_text() -> None:
    assert to_csv(result_table(tiny())) == CSV


def test_latex_text() -> None:
    text = to_latex(result_table(tiny()))
    head, body = text.split("  \\begin{tabular}{lrrrrr}")
    assert body == LATEX
    assert r"Chance level: 25.0 \% (1 of 4 classes)." in head
    assert r"$\pm$ is the standard error over n = 2 seeds (sample deviation)" in head


def test_names_are_escaped() -> None:
    table = result_table([run("x_y|<i>", "A", 0, 0.5, dataset="50%_a&b$")])
    assert r"| x_y\|&lt;i> | 50.0 |" in to_markdown(table)
    assert r"x\_y|\textless{}i\textgreater{} & 50.0" in to_latex(table)
    assert r"\caption{50\%\_a\&b\$: 5 labeled clips" in to_latex(table)


def test_a_loss_has_a_true_minus_sign_and_zero_has_none() -> None:
    table = result_table([run("erm", "A", 0, 0.5), run("fixmatch", "A", 0, 0.4), run("ssmdg", "A", 0, 0.50001)])
    text = to_markdown(table)
    assert "| −10.0 | 0 / 0 / 1 |" in text  # noqa: RUF001
    assert "| 0.0 | 1 / 0 / 0 |" in text
    assert "$-$10.0" in to_latex(table)


def test_one_seed_is_said_to_have_no_standard_error() -> None:
    text = to_markdown(result_table([run("erm", "A", 0, 0.5)]))
    assert "| Labeled only (ERM) | 50.0 | 50.0 |" in text
    assert "One seed, so no standard error can be given." in text


def test_terminal_table_shows_names_as_they_are() -> None:
    console = Console(width=160, file=io.StringIO(), force_terminal=False)
    console.print(to_rich(result_table([*tiny(), run("[red]", "A", 0, 0.1)])))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "58.0±3.0" in text
    assert "[red]" in text
    assert "selection last" in text


def test_one_csv_row_per_run() -> None:
    results = [*tiny(), run("ssmdg", "A", 0, None)]
    rows = list(csv.DictReader(io.StringIO(runs_to_csv(results))))
    assert len(rows) == 9
    assert {row["run_id"] for row in rows} == {result.spec.run_id for result in results}
    first = rows[0]
    assert (first["method"], first["target"], first["sources"], first["budget"]) == ("erm", "A", "B C", "5")
    assert (first["target/fused"], first["selected_step"], first["hparams"]) == ("0.5", "100", '{"lr": 0.001}')
    assert (rows[-1]["status"], rows[-1]["target/fused"]) == ("diverged", "")
