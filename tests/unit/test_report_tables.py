"""Tables: what is averaged, what is never mixed, what is said when runs are missing, and the exact text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import UsageError
from pipeline.reports import ReportInputs, render_page
from pipeline.reports.published import PublishedCell
from pipeline.reports.settings import setting_titles
from pipeline.reports.statistics import Record, bootstrap_interval
from pipeline.reports.tables import (
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
    # pairs of target and seed: A 0.05 and 0.01, B 0.05 and -0.01
    assert fixmatch.record == Record(wins=3, ties=0, losses=1)
    assert (fixmatch.paired.p, fixmatch.p_holm, table.comparisons) == (1, 1, 1)  # 0.05 of 0.05, 0.05, -0.05, -0.05
    assert fixmatch.interval is fixmatch.paired.interval is None  # two seeds
    assert (erm.paired, erm.record, erm.p_holm) == (None, None, None)
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


def test_what_makes_a_method_another_one_does_not_keep_it_from_its_baseline() -> None:
    """MM is the baseline with another mixing: it is compared with the variant of its own fusion."""
    fusions = {"sum": 0.1, "film": 0.5}
    runs = [
        run(method, "A", seed, level + gain + 0.01 * seed, hparams={"fusion": fusion, "mixing": mixing})
        for fusion, level in fusions.items()
        for method, mixing, gain in (("erm", "none", 0.0), ("mm", "mm", 0.2))
        for seed in (0, 1, 2)
    ]
    paired = {dict(r.variant.hparams)["fusion"]: r.paired for r in result_table(runs).rows if r.method == "mm"}
    assert paired.keys() == fusions.keys()
    assert all(p is not None and p.mean == pytest.approx(0.2) for p in paired.values())
    other = [run("mm", "A", seed, 0.9, hparams={"fusion": "concat", "mixing": "mm"}) for seed in (0, 1, 2)]
    (lonely,) = (r for r in result_table([*runs, *other]).rows if dict(r.variant.hparams)["fusion"] == "concat")
    assert lonely.paired is None


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


def five() -> list[RunResult]:
    """Three methods, two targets, five seeds. FixMatch is above ERM on every seed, SSMDG sometimes, never far."""
    erm = (0.40, 0.44, 0.48, 0.42, 0.46)
    above = {"A": (0.03, 0.05, 0.01, 0.04, 0.02), "B": (0.01, 0.0004, 0.03, -0.01, 0.04)}
    off = {"A": (0.01, -0.02, 0.0, 0.03, -0.01), "B": (-0.01, 0.02, 0.0, 0.01, -0.01)}
    parts = {"erm": {"A": (0.0,) * 5, "B": (0.0,) * 5}, "fixmatch": above, "ssmdg": off}
    return [
        run(method, target, seed, erm[seed] - shift + part[target][seed])
        for method, part in parts.items()
        for target, shift in (("A", 0.0), ("B", 0.2))
        for seed in range(5)
    ]


def random_weights(results: list[RunResult]) -> list[RunResult]:
    """The same runs on features of a backbone without pretrained weights, and of one with."""
    features = {
        "video": {"backbone": "slowfast", "digest": "1", "weights": "random:0"},
        "audio": {"backbone": "vggish", "digest": "2", "weights": "sha256 of a file"},
    }
    return [replace(result, spec=replace(result.spec, features=features)) for result in results]


# The intervals agree with those of scipy.stats.bootstrap over 200,000 other resamples.
MARKDOWN = """\
**tiny: 5 labeled clips per class and source domain, video + audio**

| method | A | B | average | difference |
| --- | ---: | ---: | ---: | ---: |
| Labeled only (ERM) | 44.0 ± 1.4 | 24.0 ± 1.4 | 34.0 ± 1.4 | – |
| FixMatch | **47.0 ± 1.1** | **25.4 ± 2.2** | **36.2 ± 1.5** | +2.2 ± 0.3 |
| FixMatch, published [1] | 51.25 | – | 40.0 | – |
| SSMDG | *44.2 ± 1.2* | *24.2 ± 1.5* | *34.2 ± 1.3* | +0.2 ± 0.5 |

- Accuracy in % of the fused prediction on all clips of the target domain.
- Selection rule: last (the last evaluation of every run; nothing is selected).
- Protocol: strict (labeled, unlabeled, validation and test clips are disjoint, groups stay whole, and no clip of the \
target domain is seen in training).
- Chance level: 25.0 % (1 of 4 classes).
- ± is the standard error over n = 5 seeds (sample deviation), or over the n in brackets: the deviation with divisor \
n - 1, divided by the square root of n; it describes seeds, not other target domains, and is no significance test.
- Difference: to Labeled only (ERM), paired by seed, average over the targets, percentage points.
- [1] Published, not measured here: Sohn et al. 2020, table 9. Difference in protocol: their encoders are trained.
- Published numbers are in no rank, mark, difference or test.

**Intervals and paired tests**

| method | average [95 % CI] | difference [95 % CI] | p | p (Holm) | wins / ties / losses |
| --- | ---: | ---: | ---: | ---: | ---: |
| Labeled only (ERM) | 34.0 [31.6, 36.4] | – | – | – | – |
| FixMatch | 36.2 [33.5, 38.9] | +2.2 [+1.8, +2.7] | 0.0625 | 0.1250 | 8 / 1 / 1 |
| SSMDG | 34.2 [31.8, 36.4] | +0.2 [−0.4, +1.2] | 1.0000 | 1.0000 | 4 / 2 / 4 |

- Accuracy in % of the fused prediction, average over the targets; selection rule: last.
- Square brackets: 95 % confidence interval of the mean over n = 5 seeds, or over the n in round brackets, by the \
bias-corrected and accelerated bootstrap (Efron 1987; 10,000 resamples of whole seeds, drawn from a fixed state); none \
below 3 seeds. It is too short where seeds are few: of normal values it covers the mean in about 73 % of cases with 3 \
seeds, 83 % with 5, 90 % with 10 and 93 % with 20.
- Difference: to Labeled only (ERM), paired by seed, percentage points.
- p: two-sided sign-flip permutation test of the mean difference over seeds (Fisher 1935, Pitman 1937; exact: all 2^n \
patterns of signs). It speaks of seeds, not of other target domains. p (Holm): adjusted for the 2 comparisons of this \
table (Holm 1979).
- The smallest p that 5 seeds can reach is 0.0625, after the correction 0.1250: no difference here can be significant \
at 0.05, however large it is; that takes 7 seeds.
- Wins / ties / losses: pairs of target and seed above, level with and below the baseline; differences below 0.05 \
points, half the printed digit, are ties.
"""  # noqa: RUF001

CSV = """\
method,label,column,mean,se,n,values,ci_low,ci_high,difference,difference_se,difference_n,difference_ci_low,\
difference_ci_high,p,p_holm,wins,ties,losses,baseline,test,chance,selection,published,published_source,\
published_difference,warnings
erm,Labeled only (ERM),A,0.5,0.125,2,0.375 0.625,,,,,,,,,,,,,,,0.25,last,,,,
erm,Labeled only (ERM),average,0.5,0.125,2,0.375 0.625,,,,,,,,,,,,,,,0.25,last,,,,
fixmatch,FixMatch,A,0.625,0.125,2,0.5 0.75,,,,,,,,,,,,,,,0.25,last,,,,
fixmatch,FixMatch,average,0.625,0.125,2,0.5 0.75,,,0.125,0.0,2,,,0.5,0.5,2,0,0,erm,permutation,0.25,last,,,,
"""

LATEX = r"""
    \toprule
    method & A & B & average & difference \\
    \midrule
    Labeled only (ERM) & 44.0 $\pm$ 1.4 & 24.0 $\pm$ 1.4 & 34.0 $\pm$ 1.4 & -- \\
    FixMatch & \textbf{47.0 $\pm$ 1.1} & \textbf{25.4 $\pm$ 2.2} & \textbf{36.2 $\pm$ 1.5} & +2.2 $\pm$ 0.3 \\
    FixMatch, published [1] & 51.25 & -- & 40.0 & -- \\
    SSMDG & \underline{44.2 $\pm$ 1.2} & \underline{24.2 $\pm$ 1.5} & \underline{34.2 $\pm$ 1.3} & +0.2 $\pm$ 0.5 \\
    \bottomrule
  \end{tabular}
\end{table}
"""

LATEX_STATISTICS = r"""
    \toprule
    method & average [95 \% CI] & difference [95 \% CI] & p & p (Holm) & wins / ties / losses \\
    \midrule
    Labeled only (ERM) & 34.0 [31.6, 36.4] & -- & -- & -- & -- \\
    FixMatch & 36.2 [33.5, 38.9] & +2.2 [+1.8, +2.7] & 0.0625 & 0.1250 & 8 / 1 / 1 \\
    SSMDG & 34.2 [31.8, 36.4] & +0.2 [$-$0.4, +1.2] & 1.0000 & 1.0000 & 4 / 2 / 4 \\
    \bottomrule
  \end{tabular}
\end{table}
"""

SOHN = [
    PublishedCell("fixmatch", column, number, "Sohn et al. 2020, table 9", "their encoders are trained")
    for column, number in (("A", 51.25), ("average", 40))
]


def test_markdown_text() -> None:
    assert to_markdown(result_table(five(), published=SOHN)) == MARKDOWN


def test_statistics_by_hand() -> None:
    """Per-seed differences of the averages: 2, 2.52, 2, 1.5, 3 points and 0, 0, 0, 2, -1 points."""
    table = result_table(five())
    fixmatch, ssmdg = row(table, "fixmatch"), row(table, "ssmdg")
    assert fixmatch.paired is not None
    assert ssmdg.paired is not None
    assert fixmatch.paired.p == 2 / 32
    assert ssmdg.paired.p == 1  # |2 - 1| is reached by all patterns: 3, 1, -1, -3
    assert (fixmatch.p_holm, ssmdg.p_holm, table.comparisons) == (2 * 2 / 32, 1, 2)
    assert fixmatch.interval == bootstrap_interval(fixmatch.average.values)
    assert fixmatch.paired.interval == pytest.approx(bootstrap_interval([0.02, 0.0252, 0.02, 0.015, 0.03]), abs=1e-12)
    assert fixmatch.record == Record(wins=8, ties=1, losses=1)  # 0.0004 is a tie
    assert ssmdg.record == Record(wins=4, ties=2, losses=4)


def test_another_baseline_and_another_test() -> None:
    table = result_table(five(), baseline="ssmdg", test="wilcoxon")
    erm, fixmatch = row(table, "erm"), row(table, "fixmatch")
    assert row(table, "ssmdg").paired is None
    assert erm.paired is not None
    assert erm.record == Record(wins=4, ties=2, losses=4)
    # of 0, 0, 0, -2, 1 the zeros are dropped: W+ = 1 of 0, 1, 2, 3; p = 1
    assert erm.paired.p == 1
    assert fixmatch.p_holm == pytest.approx(2 * (fixmatch.paired.p or 0) if fixmatch.paired else None)
    text = to_markdown(table)
    assert "Difference: to SSMDG, paired by seed" in text
    assert "two-sided Wilcoxon signed-rank test of the differences over seeds (Wilcoxon 1945)" in text
    assert "sign-flip" not in text


def test_enough_seeds_are_not_said_to_be_too_few() -> None:
    results = [
        run(m, "A", seed, 0.3 + 0.01 * seed + gain) for m, gain in (("erm", 0), ("mm", 0.1)) for seed in range(6)
    ]
    text = to_markdown(result_table(results))
    assert "The smallest p that 6 seeds can reach is 0.0312, after the correction 0.0312.\n" in text
    assert "adjusted for the one comparison of this table" in text
    assert "| 0.0312 | 0.0312 | 6 / 0 / 0 |" in text
    more = to_markdown(result_table([*results, *(run("bmm", "A", seed, 0.5) for seed in range(6))]))
    assert "after the correction 0.0625: no difference here can be significant at 0.05, however large it is" in more


def test_many_seeds_are_tested_by_drawn_patterns_and_it_is_said() -> None:
    results = [
        run(m, "A", seed, 0.3 + 0.01 * seed + gain) for m, gain in (("erm", 0), ("mm", 0.1)) for seed in range(17)
    ]
    text = to_markdown(result_table(results))
    assert "above 16 seeds 9,999 random patterns, p = (1 + hits) / (1 + patterns)" in text
    assert "| 0.0001 | 0.0001 | 17 / 0 / 0 |" in text


def test_few_seeds_have_no_interval_and_one_has_no_test() -> None:
    two = to_markdown(result_table(tiny()))
    assert "No confidence intervals: the bootstrap needs 3 seeds or more." in two
    assert "| FixMatch | 47.5 | +2.5 | 1.0000 | 1.0000 | 3 / 0 / 1 |" in two
    one = to_markdown(result_table([r for r in tiny() if r.spec.init_seed == 0]))
    assert "| FixMatch | 45.0 | +5.0 | – | – | 2 / 0 / 0 |" in one  # noqa: RUF001
    assert "No p values: a paired test needs 2 seeds or more." in one
    assert "The smallest p" not in one


def test_pairs_of_target_and_seed_count_even_where_no_average_can_be_compared() -> None:
    results = [r for r in tiny() if r.spec.method == "erm" or (r.spec.target, r.spec.init_seed) in {("A", 0), ("B", 1)}]
    fixmatch = row(result_table(results), "fixmatch")
    assert fixmatch.paired is None
    assert fixmatch.record == Record(wins=1, ties=0, losses=1)
    assert "| FixMatch | – | – | – | – | 1 / 0 / 1 |" in to_markdown(result_table(results))  # noqa: RUF001


def test_one_method_alone_has_an_interval_and_no_comparison() -> None:
    text = to_markdown(result_table([r for r in five() if r.spec.method == "erm"]))
    assert "| method | average [95 % CI] |\n| --- | ---: |\n| Labeled only (ERM) | 34.0 [31.6, 36.4] |" in text
    assert "Holm" not in text


def test_an_average_over_fewer_seeds_says_so_beside_its_interval() -> None:
    results = [r for r in five() if (r.spec.method, r.spec.target, r.spec.init_seed) != ("ssmdg", "B", 4)]
    text = to_markdown(result_table(results))
    assert re.search(r"\| SSMDG \| 34.0 \[\S+, \S+\] \(n=4\) \| \+0.5 \[\S+, \S+\] \(n=4\) \| 1.0000 \|", text)


@pytest.mark.parametrize(("write", "places"), [(to_markdown, 2), (to_latex, 2), (to_csv, 9)])  # of the CSV every line
def test_random_weights_are_named_under_every_table(write: Callable[[ResultTable], str], places: int) -> None:
    table = result_table(random_weights(five()))
    text = write(table)
    sentence = "Backbones with RANDOM WEIGHTS: slowfast; nothing in them was pretrained"
    assert text.count(sentence) == places
    assert "RANDOM" not in write(result_table(five()))


def test_random_weights_are_named_on_the_page_in_the_terminal_and_per_run() -> None:
    results = random_weights(five())
    sentence = "Backbones with RANDOM WEIGHTS: slowfast; nothing in them was pretrained"
    assert printed(result_table(results)).count(sentence) == 1
    rows = list(csv.DictReader(io.StringIO(runs_to_csv([*results, *tiny()]))))
    assert [bool(row["warnings"]) for row in rows].count(True) == len(results)
    page = render_page(ReportInputs(results))
    assert page.count(sentence) == 3  # two tables and the ranks
    assert "RANDOM" not in render_page(ReportInputs(tiny()))


def test_the_page_shows_what_the_tables_show() -> None:
    page = render_page(ReportInputs(five()))
    for text in ("+2.2 [+1.8, +2.7]", "0.0625", "0.1250", "8 / 1 / 1", "that takes 7 seeds", "[95 % CI]"):
        assert text in page
    assert page.count('<table class="statistics">') == 1
    assert "Critical-difference diagram" in page
    assert "Critical-difference" not in render_page(ReportInputs(tiny()))
    assert '<table class="statistics">' not in render_page(ReportInputs([run("erm", "A", 0, 0.5)]))


def test_csv_text() -> None:
    exact = {"erm": (0.375, 0.625), "fixmatch": (0.5, 0.75)}
    results = [run(method, "A", seed, values[seed]) for method, values in exact.items() for seed in (0, 1)]
    assert to_csv(result_table(results)) == CSV


def test_csv_is_not_rounded() -> None:
    table = result_table(five(), published=SOHN)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    (found,) = (r for r in rows if (r["method"], r["column"], r["mean"] != "") == ("fixmatch", "average", True))
    fixmatch = row(table, "fixmatch")
    assert fixmatch.paired is not None
    assert tuple(float(value) for value in found["values"].split()) == fixmatch.average.values
    assert (float(found["ci_low"]), float(found["ci_high"])) == fixmatch.interval
    assert (float(found["difference_ci_low"]), float(found["difference_ci_high"])) == fixmatch.paired.interval
    assert (float(found["p"]), float(found["p_holm"])) == (fixmatch.paired.p, fixmatch.p_holm)
    assert (found["wins"], found["ties"], found["losses"]) == ("8", "1", "1")
    published = [r for r in rows if r["published"]]
    assert [(r["label"], r["column"], r["published"], r["mean"]) for r in published] == [
        ("FixMatch, published [1]", "A", "0.5125", ""),
        ("FixMatch, published [1]", "average", "0.4", ""),
    ]
    assert {r["published_source"] for r in published} == {"Sohn et al. 2020, table 9"}
    assert {r["published_difference"] for r in published} == {"their encoders are trained"}
    assert all(None not in r and None not in r.values() for r in rows)  # as many cells as headings


def test_latex_text() -> None:
    text = to_latex(result_table(five(), published=SOHN))
    _, first, second = text.split("  \\begin{tabular}")
    assert first.startswith("{lrrrr}" + LATEX)
    assert second == "{lrrrrr}" + LATEX_STATISTICS
    assert r"Chance level: 25.0 \% (1 of 4 classes)." in text
    assert r"$\pm$ is the standard error over n = 5 seeds (sample deviation)" in text
    assert r"Square brackets: 95 \% confidence interval" in text


@pytest.mark.parametrize("results", [tiny(), five(), random_weights(five()), [run("x_y|{i}^~", "A", 0, 0.5)]])
def test_latex_is_balanced_and_every_row_fills_its_columns(results: list[RunResult]) -> None:
    published = PublishedCell("ssmdg", "A", 51.2, r"A & B {2020} 50 % \cite_x", "m^2 #1 $ ~")
    for shown in ((), (published,)):
        text = to_latex(result_table(results, published=shown))
        bare = re.sub(r"\\[{}%&$#_]", "", text)
        depth = list(accumulate({"{": 1, "}": -1}.get(character, 0) for character in bare))
        assert min(depth) == depth[-1] == 0
        assert bare.count("$") % 2 == 0
        for begin, end in (("table", "table"), ("tabular", "tabular")):
            assert bare.count(rf"\begin{{{begin}}}") == bare.count(rf"\end{{{end}}}")
        for spec, body in re.findall(r"\\begin{tabular}{(l?r*)}\n(.*?)\\end{tabular}", bare, re.DOTALL):
            rows = [line for line in body.splitlines() if line.endswith(r" \\")]
            assert len(rows) >= 2
            assert {line.count("&") + 1 for line in rows} == {len(spec)}
            assert not re.search(r"(?<!\\)[#%^~_]", body)


def test_names_are_escaped() -> None:
    table = result_table([run("x_y|<i>", "A", 0, 0.5, dataset="50%_a&b$")])
    assert r"| x_y\|&lt;i> | 50.0 |" in to_markdown(table)
    assert r"x\_y|\textless{}i\textgreater{} & 50.0" in to_latex(table)
    assert r"\caption{50\%\_a\&b\$: 5 labeled clips" in to_latex(table)


def test_a_loss_has_a_true_minus_sign_and_zero_has_none() -> None:
    table = result_table([run("erm", "A", 0, 0.5), run("fixmatch", "A", 0, 0.4), run("ssmdg", "A", 0, 0.50001)])
    text = to_markdown(table)
    assert "| 40.0 | −10.0 |\n" in text  # noqa: RUF001
    assert "| 40.0 | −10.0 | – | – | 0 / 0 / 1 |" in text  # noqa: RUF001
    assert "| 50.0 | 0.0 | – | – | 0 / 1 / 0 |" in text  # noqa: RUF001
    assert "$-$10.0" in to_latex(table)


def test_one_seed_is_said_to_have_no_standard_error() -> None:
    text = to_markdown(result_table([run("erm", "A", 0, 0.5)]))
    assert "| Labeled only (ERM) | 50.0 | 50.0 |" in text
    assert "One seed, so no standard error can be given." in text


def printed(table: ResultTable) -> str:
    """What a terminal of 160 columns shows."""
    console = Console(width=160, file=io.StringIO(), force_terminal=False)
    console.print(to_rich(table))
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_terminal_table_shows_names_as_they_are() -> None:
    text = printed(result_table([*tiny(), run("[red]", "A", 0, 0.1)]))
    assert "58.0±3.0" in text
    assert "[red]" in text
    assert "selection last" in text


def test_terminal_table_counts_pairs_and_shows_published_numbers() -> None:
    text = printed(result_table(five(), published=SOHN))
    assert "36.2±1.5 +2.2±0.3 8/1/1" in text
    assert "FixMatch, published [1] 51.25 – 40.0 – –" in text  # noqa: RUF001
    assert "w/t/l: pairs of target and seed won, tied, lost" in text
    assert "Sohn et al. 2020, table 9. Difference in protocol: their encoders are trained." in text


def test_one_csv_row_per_run() -> None:
    results = [*tiny(), run("ssmdg", "A", 0, None)]
    rows = list(csv.DictReader(io.StringIO(runs_to_csv(results))))
    assert len(rows) == 9
    assert {row["run_id"] for row in rows} == {result.spec.run_id for result in results}
    first = rows[0]
    assert (first["method"], first["target"], first["sources"], first["budget"]) == ("erm", "A", "B C", "5")
    assert (first["target/fused"], first["selected_step"], first["hparams"]) == ("0.5", "100", '{"lr": 0.001}')
    assert (rows[-1]["status"], rows[-1]["target/fused"]) == ("diverged", "")
