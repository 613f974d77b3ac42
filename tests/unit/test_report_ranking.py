"""Average ranks, Friedman and Nemenyi tests against Demsar 2006 and scipy; the diagram; which runs make a block."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.lines import Line2D
from scipy import stats

from pipeline.reports.rank_figure import draw_ranks, rank_diagram
from pipeline.reports.ranking import (
    Ranking,
    friedman,
    maximal_groups,
    mid_ranks,
    nemenyi_difference,
    rank_scores,
    rankings,
)
from pipeline.reports.tables import ranking_to_markdown
from pipeline.types import RunResult, RunSpec

# Demsar 2006, table 6: AUC of four methods on 14 data sets. In print the last two methods have 0.975 on "voting", with
# the ranks 2 and 3: they differ in a digit that is not printed, here the fourth.
METHODS = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
AUC = [
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749],
    [0.957, 0.978, 0.946, 0.970],
]


def demsar(alpha: float = 0.05) -> Ranking:
    return rank_scores(METHODS, AUC, alpha)


def test_the_example_of_demsar() -> None:
    ranking = demsar()
    ranks = dict(zip(ranking.methods, ranking.average_ranks, strict=True))
    assert {name: round(rank, 3) for name, rank in ranks.items()} == {
        "C4.5": 3.143,
        "C4.5+m": 2.000,
        "C4.5+cf": 2.893,
        "C4.5+m+cf": 1.964,
    }
    assert ranking.methods == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    assert ranking.blocks == 14
    assert ranking.chi_square == pytest.approx(9.28, abs=0.005)
    assert ranking.f == pytest.approx(3.69, abs=0.005)
    assert ranking.critical_difference == pytest.approx(1.25, abs=0.005)
    # F is above its critical value 2.85, and yet no pair differs by the critical difference
    assert stats.f.isf(0.05, 3, 39) == pytest.approx(2.85, abs=0.005)
    assert ranking.rejected
    assert ranking.groups == ((0, 3),)


def test_the_example_of_demsar_at_ten_percent_has_two_overlapping_groups() -> None:
    ranking = demsar(0.10)
    assert ranking.critical_difference == pytest.approx(1.12, abs=0.005)
    assert ranking.groups == ((0, 2), (2, 3))
    assert ranking.indistinct(0) == ["C4.5+m", "C4.5+cf"]
    assert ranking.indistinct(2) == ["C4.5+m+cf", "C4.5+m", "C4.5"]


def test_the_example_of_demsar_by_its_printed_digits_alone() -> None:
    printed = [[round(score, 3) for score in block] for block in AUC]
    ranks = dict(zip(METHODS, np.mean([mid_ranks(block) for block in printed], axis=0), strict=True))
    assert ranks["C4.5+cf"] == pytest.approx((2.893 * 14 + 0.5) / 14, abs=0.001)
    assert ranks["C4.5+m+cf"] == pytest.approx((1.964 * 14 - 0.5) / 14, abs=0.001)


@pytest.mark.parametrize(
    ("methods", "q05", "q10"),  # Demsar 2006, table 5(a)
    [(2, 1.960, 1.645), (3, 2.343, 2.052), (4, 2.569, 2.291), (5, 2.728, 2.459), (8, 3.031, 2.780), (10, 3.164, 2.920)],
)
def test_critical_values_are_the_published_ones(methods: int, q05: float, q10: float) -> None:
    blocks = 14
    unit = math.sqrt(methods * (methods + 1) / (6 * blocks))
    assert nemenyi_difference(methods, blocks) / unit == pytest.approx(q05, abs=0.0011)
    assert nemenyi_difference(methods, blocks, 0.10) / unit == pytest.approx(q10, abs=0.0011)


@pytest.mark.parametrize("seed", range(4))
def test_friedman_is_the_one_of_scipy_without_ties(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(9, 5)) + 0.3 * np.arange(5)
    ranks = np.mean([mid_ranks(block) for block in scores.tolist()], axis=0)
    expected = stats.friedmanchisquare(*scores.T)
    chi_square, f, p = friedman(ranks.tolist(), 9)
    assert chi_square == pytest.approx(expected.statistic)
    assert f == pytest.approx(8 * chi_square / (36 - chi_square))
    assert p == pytest.approx(stats.f.sf(f, 4, 32))


def test_friedman_with_ties_is_the_one_of_scipy_before_its_correction() -> None:
    # two ties of two, one of four: sums of t^3 - t are 6 + 6 + 6 + 60, and scipy divides by 1 - 78 / (14 * 4 * 15)
    ties = [len(set(block)) for block in AUC]
    assert sorted(ties)[:4] == [1, 3, 3, 3]
    corrected = stats.friedmanchisquare(*np.array(AUC).T).statistic
    assert demsar().chi_square == pytest.approx(corrected * (1 - 78 / (14 * 4 * 15)))


def test_blocks_that_all_agree() -> None:
    ranking = rank_scores("abc", [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.3, 0.6, 0.9]])
    assert ranking.methods == ("c", "b", "a")
    assert ranking.average_ranks == (1, 2, 3)
    assert ranking.chi_square == pytest.approx(6)  # n (k - 1)
    assert ranking.f == math.inf
    assert ranking.p == pytest.approx(1 / 36)  # each of the 2 other blocks in the order of the first: (1 / 3!)^2


def test_methods_that_are_all_alike() -> None:
    ranking = rank_scores("abcd", [[0.5] * 4] * 3)
    assert (ranking.chi_square, ranking.f, ranking.p) == (0, 0, 1)
    assert ranking.average_ranks == (2.5,) * 4
    assert ranking.groups == ((0, 3),)


def test_nothing_is_told_apart_where_the_friedman_test_does_not_reject() -> None:
    # first and last differ by more than the critical difference, but Nemenyi's test is only asked after Friedman's
    scores = [[11, 1, 6, 2, 6, 7], [10, 1, 1, 8, 5, 4], [4, -3, 8, 3, 0, 0]]
    ranking = rank_scores("abcdef", scores)
    assert ranking.average_ranks[-1] - ranking.average_ranks[0] > ranking.critical_difference
    assert ranking.p == pytest.approx(0.0773, abs=1e-4)
    assert not ranking.rejected
    assert ranking.groups == ((0, 5),)
    assert rank_scores("abcdef", scores, alpha=0.1).groups != ((0, 5),)


def test_mid_ranks_by_hand() -> None:
    assert mid_ranks([0.2, 0.9, 0.5]) == [3, 1, 2]
    assert mid_ranks([0.5, 0.5, 0.9, 0.1]) == [2.5, 2.5, 1, 4]
    assert mid_ranks([0.1 + 0.2, 0.3, 0.3]) == [2, 2, 2]
    assert mid_ranks([]) == []


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_mid_ranks_are_the_ones_of_scipy(values: list[int]) -> None:
    ranks = mid_ranks([value / 20 for value in values])
    assert ranks == stats.rankdata([-value for value in values]).tolist()
    assert sum(ranks) == len(values) * (len(values) + 1) / 2


@pytest.mark.parametrize(
    ("ranks", "groups"),
    [
        ([1, 2, 3, 4], []),
        ([1, 1.5, 3, 4], [(0, 1)]),
        ([1, 1.5, 2.2, 4], [(0, 1), (1, 2)]),
        ([1, 1.5, 1.9, 2.2], [(0, 2), (1, 3)]),
        ([1, 1, 1], [(0, 2)]),
        ([1, 2], []),  # a difference of exactly the critical one is significant
        ([1, 1.5, 1.9, 2.1, 2.4, 3.5, 4.0], [(0, 2), (1, 4), (5, 6)]),
    ],
)
def test_groups_are_maximal(ranks: list[float], groups: list[tuple[int, int]]) -> None:
    assert maximal_groups(ranks, 1.0) == groups


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1, 9), min_size=2, max_size=9).map(sorted), st.floats(0.1, 5))
def test_two_ranks_share_a_group_if_and_only_if_they_are_close(ranks: list[float], critical: float) -> None:
    groups = maximal_groups(ranks, critical)
    for i in range(len(ranks)):
        for j in range(i + 1, len(ranks)):
            assert (ranks[j] - ranks[i] < critical) == any(a <= i and j <= b for a, b in groups)
    assert all(not (a <= c and d <= b) for a, b in groups for c, d in groups if (a, b) != (c, d))


@pytest.mark.parametrize("scores", [[[1, 2, 3]], [[1, 2], [1, 2]], [[1, 2, 3], [1, 2]], []])
def test_too_little_to_rank_is_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="need 2 blocks and 3 methods or more"):
        rank_scores("abc"[: len(scores[0])] if scores else "abc", scores)


def run(method: str, seed: int, accuracy: float | None, **changes: Any) -> RunResult:
    """A finished run, or a diverged one where the accuracy is None."""
    spec = RunSpec(
        dataset="tiny",
        manifest_digest="m",
        classes=("walk", "run"),
        sources=("B", "C"),
        target="A",
        modalities=("video",),
        features={"video": {"backbone": "v", "digest": "1"}},
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
    selection = changes.pop("selection", "last")
    metrics = {} if accuracy is None else {"target/fused": accuracy, "target/video": -accuracy}
    status: Any = "diverged" if accuracy is None else "finished"
    return RunResult(replace(spec, **changes), metrics, {}, selection, {}, 1.0, status=status)


def three(seeds: int = 3, **changes: Any) -> list[RunResult]:
    """ERM below FixMatch below SSMDG on every seed."""
    gains = {"erm": 0.0, "fixmatch": 0.1, "ssmdg": 0.2}
    return [run(m, seed, 0.3 + 0.01 * seed + gain, **changes) for m, gain in gains.items() for seed in range(seeds)]


def test_a_block_is_a_setting_a_target_and_a_seed() -> None:
    results = [*three(), *three(budget="1"), *three(target="B", sources=("A", "C"))]
    (ranking,) = rankings(results)
    assert (ranking.blocks, ranking.methods) == (9, ("SSMDG", "FixMatch", "Labeled only (ERM)"))
    assert ranking.average_ranks == (1, 2, 3)
    assert ranking == rankings(results[::-1])[0]
    assert ranking == rankings([*results, results[0]])[0]
    assert not any("left out" in note for note in ranking.notes)


def test_blocks_without_every_method_are_left_out_and_counted() -> None:
    results = [r for r in three(5) if (r.spec.method, r.spec.init_seed) not in {("ssmdg", 0), ("erm", 3)}]
    results = [*results, run("erm", 3, None), *three(2, budget="1")[:4]]
    (ranking,) = rankings(results)
    assert ranking.blocks == 3
    assert "4 of 7 blocks lack a value of some method and are left out." in ranking.notes


@pytest.mark.parametrize("results", [three(1), [r for r in three() if r.spec.method != "erm"], []])
def test_too_few_blocks_or_methods_are_not_ranked(results: list[RunResult]) -> None:
    assert rankings(results) == []


def test_selection_rules_and_protocols_are_not_mixed() -> None:
    results = [*three(), *three(4, selection="oracle"), *three(5, protocol="paper")]
    found = rankings(results)
    assert [ranking.blocks for ranking in found] == [5, 3, 4]
    rules = [" ".join(ranking.notes) for ranking in found]
    assert "Protocol: paper." in rules[0]
    assert "Selection rule: last (" in rules[1]
    assert "Selection rule: oracle (" in rules[2]


def test_an_upper_bound_is_not_ranked_and_it_is_said() -> None:
    (ranking,) = rankings([*three(), *(run("supervised", seed, 0.9) for seed in range(3))])
    assert ranking.methods == ("SSMDG", "FixMatch", "Labeled only (ERM)")
    assert ranking.notes[-1].endswith(
        "Not ranked, as it sees labels that the others do not: Fully supervised (upper bound)."
    )


def test_a_method_with_other_hyperparameters_in_another_setting_is_one_method() -> None:
    (ranking,) = rankings([*three(), *three(budget="1", hparams={"lr": 0.1})])
    assert (ranking.blocks, len(ranking.methods)) == (6, 3)


def test_variants_of_one_setting_are_ranked_apart() -> None:
    (ranking,) = rankings([*three(), *(run("erm", seed, 0.9, hparams={"lr": 0.1}) for seed in range(3))])
    assert ranking.methods == ("Labeled only (ERM), lr 0.1", "SSMDG", "FixMatch", "Labeled only (ERM), lr 0.001")


def test_another_metric() -> None:
    (ranking,) = rankings(three(), metric="target/video")
    assert ranking.methods == ("Labeled only (ERM)", "FixMatch", "SSMDG")
    assert ranking.notes[0].startswith("Average rank by target/video over 3 blocks")


def test_random_weights_are_named() -> None:
    features = {"video": {"backbone": "slowfast", "digest": "1", "weights": "random:0"}}
    (ranking,) = rankings(three(features=features))
    assert ranking.notes[-1].startswith("Backbones with RANDOM WEIGHTS: slowfast;")


MARKDOWN = """\
**Average ranks**

| method | average rank | not told apart from |
| --- | ---: | ---: |
| SSMDG | 1.00 | FixMatch |
| FixMatch | 2.00 | SSMDG, Labeled only (ERM) |
| Labeled only (ERM) | 3.00 | FixMatch |

- Average rank by accuracy of the fused prediction over 3 blocks, 1 is best, ties share the mean of their ranks. A \
block is one setting, target and seed in which every method has a value.
- Selection rule: last (the last evaluation of every run; nothing is selected). Protocol: strict.
- Friedman test with the correction of Iman and Davenport: F(2, 4) = inf, p 0.0278; it rejects at 0.05 that all \
methods are ranked alike.
- Nemenyi test: average ranks that differ by less than the critical difference, CD = 1.91, are not told apart at 0.05 \
(Demsar 2006).
- Blocks that differ only in the seed share their clips. The tests take them as independent, so they find differences \
too easily, and they say nothing about other data sets.
"""


def test_markdown_text() -> None:
    assert ranking_to_markdown(rankings(three())[0]) == MARKDOWN


def test_markdown_where_nothing_is_rejected_and_where_everything_is_told_apart() -> None:
    results = [
        run(m, s, v[s]) for m, v in {"erm": (0.1, 0.3), "mm": (0.2, 0.2), "ssmdg": (0.3, 0.1)}.items() for s in (0, 1)
    ]
    assert "it does not reject at 0.05 that all methods are ranked alike, so no two of them are told apart." in (
        ranking_to_markdown(rankings(results)[0])
    )
    assert "| SSMDG | 1.00 | none |" in ranking_to_markdown(rankings(three(40))[0])


def close() -> Ranking:
    """Two groups of two whose nearest ranks differ by next to nothing."""
    ranks, groups = (1.0, 2.0, 2.01, 3.0, 5.0), ((0, 1), (2, 3))
    return Ranking(tuple("abcde"), ranks, 30, 9.0, 9.0, 0.01, 0.05, 1.005, groups)


def heights(line: Line2D) -> list[float]:
    """Where the points of a line lie, in inches from the top."""
    found: list[float] = np.asarray(line.get_ydata(), dtype=float).tolist()
    return found


def drawn(methods: int, blocks: int = 30, noise: float = 0.3) -> Ranking:
    """A ranking with long names and overlapping groups."""
    scores = np.arange(methods) * 0.1 + np.random.default_rng(0).normal(size=(blocks, methods)) * noise
    names = [f"method {i}, learning_rate 0.001, threshold 0.{i}5" if i % 3 == 0 else f"m{i}" for i in range(methods)]
    return rank_scores(names, scores.tolist())


@pytest.mark.parametrize("methods", [3, 8, 12])
def test_diagram_names_every_method_its_rank_the_difference_and_the_blocks(methods: int) -> None:
    ranking = drawn(methods)
    panel = rank_diagram(ranking, "p")
    root = ElementTree.fromstring(panel.svg)
    words = " ".join(" ".join("".join(node.itertext()).split()) for node in root.iter("text"))
    for method, rank in zip(ranking.methods, ranking.average_ranks, strict=True):
        assert f"{rank:.2f} {method}" in words
        assert f"{method} {rank:.2f}" in panel.description
    assert f"CD = {ranking.critical_difference:.2f} at level 0.05, 30 blocks" in words
    assert panel.title == "average rank over 30 blocks"
    assert root.attrib["aria-label"] == panel.description
    assert all(name.startswith("p-") for name in re.findall(r'id="([^"]+)"', panel.svg))


@pytest.mark.parametrize("ranking", [drawn(3), drawn(8), drawn(12), close()])
def test_bars_span_their_groups_and_do_not_touch(ranking: Ranking) -> None:
    (axes,) = draw_ranks(ranking).axes
    dots = sorted(heights(line)[0] for line in axes.lines if line.get_marker() == "o")
    bars = [line for line in axes.lines if line.get_linewidth() > 3]
    spans = [(np.asarray(bar.get_xdata()).tolist()[0], *heights(bar)) for bar in bars]
    assert len(dots) == len(ranking.methods)
    ends = [end for _, *found in spans for end in found]
    assert ends == pytest.approx([y for a, b in ranking.groups for y in (dots[a] - 0.03, dots[b] + 0.03)])
    for i, (x, first, last) in enumerate(spans):
        for other_x, other_first, other_last in spans[:i]:
            assert abs(x - other_x) > 0.05 or first > other_last + 0.02 or last + 0.02 < other_first


@pytest.mark.parametrize("ranking", [drawn(3), drawn(8), drawn(12), drawn(12, 3), drawn(3, 2)])
def test_diagram_lies_inside_its_paper_and_labels_do_not_overlap(ranking: Ranking) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_ranks(ranking)
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    width, height = figure.canvas.get_width_height()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    low, high = axes.get_ylim()[1], axes.get_ylim()[0]
    assert all(low <= y <= high for line in axes.lines for y in heights(line))
