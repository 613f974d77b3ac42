"""Every file in configs/: it is read strictly, says what it is, and plans as many runs as the documentation says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cache.layout import ClipRecord, Identity, Status
from cache.store import FeatureTable
from pipeline.axes import expand, parse_axes
from pipeline.datasets import DATASETS, epic, hac
from pipeline.errors import UsageError
from pipeline.plan import SweepSettings
from pipeline.sweepfile import SweepFile, read_sweep_file, shortened, with_axes
from pipeline.sweeping import chosen_sweep
from pipeline.sweeps import plan_sweep, sweep_modalities
from pipeline.types import MODALITIES, Clip, Manifest, RunSpec
from pipeline.workspace import DatasetOptions
from tests.conftest import ROOT

FILES = sorted((ROOT / "configs").glob("*.toml"))
DOCUMENT = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
DEMO_DOMAINS = ("workshop", "street", "cartoon")
DOMAINS = {"demo": DEMO_DOMAINS, "epic": tuple(epic.DOMAINS), "hac": hac.DOMAINS}  # the others have one, their name
CLASSES = ("swim", "run")
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def small_manifest(dataset: str, domains: tuple[str, ...]) -> Manifest:
    """More training clips than the largest budget labels, so that some are unlabeled, and a test part."""
    clips = [
        Clip(f"{d}-{c}-{i}", d, c, "train" if i < 12 else "test", f"{d}-{c}-{i}", {"video": Path("none")})
        for d in domains
        for c in CLASSES
        for i in range(14)
    ]
    return Manifest(dataset, CLASSES, domains, tuple(clips), Path())


def table(manifest: Manifest, modality: str) -> FeatureTable:
    ids = tuple(clip.clip_id for clip in manifest.clips)
    identity = Identity(manifest.dataset, modality, "none", "random:0", "pool", ("clean0", "weak0", "strong0"), 0, {})
    features = np.zeros((len(ids), 3, 8), dtype=np.float16)
    return FeatureTable(identity, "0" * 64, ids, features, tuple(ClipRecord(c, Status.PRESENT) for c in ids))


def plan(sweep: SweepFile) -> tuple[list[RunSpec], dict[str, str]]:
    """Runs on a data set in little with the real one's domains, and the name of the case of those that have one."""
    dataset = sweep.about.dataset or "demo"
    manifest = small_manifest(dataset, DOMAINS.get(dataset, (dataset,)))
    default = sweep.features.modalities or MODALITIES
    return plan_sweep(sweep, manifest, {m: table(manifest, m) for m in sweep_modalities(sweep, default)}, default)


def header(path: Path) -> list[str]:
    """The comment that a file begins with, line by line, without its signs."""
    text = path.read_text(encoding="utf-8")
    return [line.removeprefix("#").removeprefix(" ") for line in re.match(r"(#.*\n)+", text)[0].splitlines()]  # type: ignore[index]


def stated_runs(path: Path) -> int:
    (number,) = [re.match(r"Runs: (\d+)", line) for line in header(path) if line.startswith("Runs:")]
    assert number is not None
    return int(number[1])


def documented() -> dict[str, tuple[int, str]]:
    """Number of runs and what is not there, per file, as the table in the documentation says."""
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\| (\d+) \|([^|]*)\|$", DOCUMENT, re.M)
    assert len({row[0] for row in rows}) == len(rows)
    return {name: (int(number), rest.strip()) for name, number, rest in rows}


@every_file
def test_the_header_says_what_it_is_how_to_run_it_and_how_long(path: Path) -> None:
    lines = header(path)
    for label in ("Paper", "Runs", "Time", "Test", "Differs"):
        assert sum(line.startswith(f"{label}: ") for line in lines) == 1, label
    commands = [line.strip() for line in lines if line.startswith("  pipe ")]
    assert f"configs/{path.name}" in commands[0]
    assert re.match(r"pipe (sweep|train-heads --dataset demo --config) configs/", commands[0])
    about = read_sweep_file(path).about
    assert ("--root DIR" in commands[0]) == (about.dataset not in ("", "demo"))
    for command in commands[1:]:
        assert f"--dataset {about.dataset} --root DIR" in command


@every_file
def test_it_fits_on_a_screen(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120


@every_file
def test_it_is_read_and_its_data_set_is_known(path: Path) -> None:
    sweep = read_sweep_file(path)
    assert sweep.name == path.stem
    assert (sweep.about.dataset or "demo") in DATASETS
    if not path.stem.startswith("demo"):
        dataset, kind = sweep.about.dataset, path.stem.split("-")[0]
        assert path.stem.startswith(f"{kind}-{dataset}-")
        assert sweep.about.title
        assert re.search(r"arXiv \d{4}\.\d{5}", sweep.about.source)


@every_file
def test_it_plans_the_runs_that_are_stated(path: Path) -> None:
    sweep = read_sweep_file(path)
    assert expand(sweep.settings, sweep.features.modalities or MODALITIES, sweep.axes)
    runs, _ = plan(sweep)
    assert len({run.run_id for run in runs}) == len(runs) == stated_runs(path) == documented()[path.stem][0]


@every_file
def test_no_case_is_another_one_by_a_second_name(path: Path) -> None:
    sweep = read_sweep_file(path)
    _, cases = plan(sweep)
    assert set(cases.values()) == {case.name for case in sweep.axes.cases}


@every_file
def test_every_hyperparameter_belongs_to_one_of_its_methods(path: Path) -> None:
    sweep = read_sweep_file(path)
    settings = set(SweepSettings.__dataclass_fields__) | {"modalities", "batch"}
    named = {*sweep.settings.hparams, *sweep.axes.drawn, *sweep.axes.lists}
    for case in sweep.axes.cases:
        named |= set(case.changes)
    known = {name for run in plan(sweep)[0] for name in run.hparams}
    assert named - settings <= known


@every_file
def test_published_numbers_have_a_source_and_a_difference(path: Path) -> None:
    published = read_sweep_file(path).published
    assert len({(number.method, number.column) for number in published}) == len(published)
    for number in published:
        assert number.method
        assert number.column == "average"
        assert 0 < number.percent < 100
        assert "arXiv" in number.source
        assert number.difference.endswith(".")


@every_file
def test_what_is_not_built_stands_in_the_documentation(path: Path) -> None:
    rest = documented()[path.stem][1]
    for row in read_sweep_file(path).about.not_built:
        assert row.removeprefix("Concat + ").split(" (")[0] in rest


def test_the_documentation_names_every_file_and_no_other() -> None:
    assert set(documented()) == {path.stem for path in FILES}


@pytest.mark.parametrize("name", ["sweep", "features", "run", "axes", "cases", "random", "published", "tables"])
def test_a_key_that_nothing_reads_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.toml"
    given = {"cases": '[[cases]]\nname = "a"\nnobody = 1\n', "published": "[[published]]\nnobody = 1\n"}
    path.write_text('[axes]\nmethods = ["erm"]\n' + given.get(name, "" if name == "axes" else f"[{name}]\n"))
    if name not in given:
        path.write_text(path.read_text() + f"nobody = {[1]}\n")
    with pytest.raises(UsageError, match=r"nobody|tables"):
        plan(read_sweep_file(path))


def test_published_numbers_of_several_methods_share_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[published]]\nsource = "a book"\nlabels = "5"\n[published.percents]\n"A + B" = 12\nC = 3.5\n')
    found = [(n.method, n.percent, n.source, n.labels, n.column) for n in read_sweep_file(path).published]
    assert found == [("A + B", 12, "a book", "5", "average"), ("C", 3.5, "a book", "5", "average")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[published]]\nmethod = "erm"\n[published.percents]\nC = 3\n', "has percents, .* and method"),
        ('[[published]]\npercents = { C = "3" }\n', r"percents\.C is '3'; it must be a number"),
        ("[[published]]\npercents = 3\n", "percents is 3; it must be a table"),
        ('[random]\ndraws = "many"\n', r"\[random\]: draws is 'many'; it must be a whole number"),
        ("[random]\ndraws = 2.5\n", r"\[random\]: draws is 2.5; it must be a whole number"),
        ("[random]\nranges = 3\n", "ranges is 3; write it as a table"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_sweep_file(path)


def test_in_little_every_case_stays_and_domains_are_renamed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'cases = [{ name = "a", targets = ["D2"], unlabeled_domains = ["D3"], steps = 900 }, { name = "b" }]\n'
        "[run]\nsteps = 500\n[axes]\nlabels = ['5', '10']\nsteps = [100, 200]\nseeds = [1, 2]\n"
        "[random]\ndraws = 20\n[random.ranges]\nthreshold = { low = 0.5, high = 0.9 }\n"
    )
    small = shortened(read_sweep_file(path), DEMO_DOMAINS)
    cells = [cell.settings for cell in expand(small.settings, MODALITIES, small.axes)]
    assert len(cells) == 2 * 2 * 2  # cases, draws, budgets
    assert {(c.steps, c.eval_every, c.batch_labeled, c.batch_unlabeled, c.seeds) for c in cells} == {(4, 2, 4, 4, (0,))}
    assert [c.targets for c in cells] == [("workshop",)] * 8
    assert {c.unlabeled_domains for c in cells} == {("street",), ()}


def test_in_little_a_domain_without_labels_is_never_the_target(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[axes]\nunlabeled_domains = [["D1"], ["D2"], []]\n')
    small = shortened(read_sweep_file(path), DEMO_DOMAINS)
    assert small.axes.lists["unlabeled_domains"] == (("street",), ("cartoon",), ())
    assert small.axes.lists["targets"] == ("workshop",)
    path.write_text('[run]\nunlabeled_domains = ["D3"]\ntargets = ["D1", "D2"]\n')
    small = shortened(read_sweep_file(path), DEMO_DOMAINS)
    assert small.settings.unlabeled_domains == ("cartoon",)
    assert small.axes.lists["targets"] == ("workshop",)


def test_a_case_beats_axes_and_draws(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'cases = [{ name = "a", threshold = 0.5, modalities = "va", methods = ["ssmdg"] }, { name = "b" }]\n'
        '[axes]\nthreshold = [0.8, 0.9]\nmodalities = ["vf"]\nmethods = ["fixmatch"]\n'
        "[random]\ndraws = 1\n[random.ranges]\ngce_q = { low = 0.1, high = 0.2 }\n"
    )
    sweep = read_sweep_file(path)
    cells = expand(sweep.settings, MODALITIES, sweep.axes)
    assert [(c.case, c.settings.hparams["threshold"], c.modalities[1], c.settings.methods[0]) for c in cells] == [
        ("a", 0.5, "audio", "ssmdg"),
        ("b", 0.8, "flow", "fixmatch"),
        ("b", 0.9, "flow", "fixmatch"),
    ]


@pytest.mark.parametrize(
    ("name", "axes", "runs"),
    [
        ("ssmdg-epic-labels", ["protocol=strict"], 180),
        ("ssmdg-epic-labels", ["protocol=strict", "seed=0..1", "project=pca:4"], 72),
        ("ssmdg-epic-domain", ["target=D1", "seed=0"], 12),
        ("ssmdg-epic-domain", ["target=all", "seed=0"], 36),
        ("ssmdg-epic-domain", ["unlabeled-domains=D3", "method=erm"], 10),
        ("ssmdg-epic-ablation", ["method=ssmdg", "seed=0", "target=D2"], 9),
        ("ssmdg-epic-modalities", ["modalities=av"], 90),
        ("ssmdg-epic-sensitivity", ["threshold=0.8,0.95"], 3 * 5 * 26),
        ("bmm-crema-d-fusion", ["fusion=sum,film", "seed=0"], 4),
        ("bmm-crema-d-fusion", ["method=mm,bmm"], 18),
    ],
)
def test_axes_behind_a_file_s_name_take_a_part_of_it(name: str, axes: list[str], runs: int) -> None:
    sweep = read_sweep_file(ROOT / "configs" / f"{name}.toml")
    assert len(plan(with_axes(sweep, parse_axes(axes)))[0]) == runs


def test_axes_that_leave_no_case_are_refused() -> None:
    sweep = read_sweep_file(ROOT / "configs" / "bmm-crema-d-fusion.toml")
    with pytest.raises(UsageError, match="no case of bmm-crema-d-fusion is left with methods ogm-ge"):
        with_axes(sweep, parse_axes(["method=ogm-ge"]))


def test_more_draws_of_a_file_are_another_sweep_with_the_same_first_draws() -> None:
    own, options = chosen_sweep(["demo-search"], DatasetOptions(""))
    more, _ = chosen_sweep(["demo-search"], DatasetOptions(""), draws=20)
    assert options.dataset == "demo"
    assert own.name == "demo-search"
    assert more.name.startswith("demo-search-")
    assert more.name != chosen_sweep(["demo-search"], DatasetOptions(""), draws=21)[0].name
    assert more.name != chosen_sweep(["demo-search"], DatasetOptions(""), draws=20, draw_seed=1)[0].name
    assert expand(more.settings, MODALITIES, more.axes)[:12] == expand(own.settings, MODALITIES, own.axes)
    with pytest.raises(UsageError, match="3 draws but nothing to draw"):
        expand(SweepSettings(), MODALITIES, chosen_sweep(["seed=0"], DatasetOptions("demo"), draws=3)[0].axes)
