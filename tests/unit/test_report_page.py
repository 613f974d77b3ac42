"""The page: complete, self-contained, escaped, and drawn from whatever runs there are."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.errors import UsageError
from pipeline.reports import (
    ExtractionSummary,
    ModalityCount,
    Probe,
    Quarantined,
    ReportInputs,
    render_page,
    result_table,
    write_report,
)
from pipeline.reports.figures import learning_curves, pseudo_label_curves, result_points
from pipeline.types import RunResult, RunSpec

EVIL = "<script>alert('x')</script>&\"|$a_b$"
VOID = {"meta", "link", "img", "br", "hr"}


def png() -> bytes:
    """A picture of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\x00\x80")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def run(
    method: str = "erm", target: str = "A", seed: int = 0, steps: int = 3, classes: tuple[str, ...] = ("walk", "run")
) -> RunResult:
    """A finished run with smooth curves."""
    spec = RunSpec(
        dataset="tiny",
        manifest_digest="0123abcd",
        classes=classes,
        sources=tuple(domain for domain in ("A", "B") if domain != target),
        target=target,
        modalities=("video", "audio"),
        features={m: {"backbone": f"{m}_net", "digest": f"{m}-digest"} for m in ("video", "audio")},
        budget="5",
        method=method,
        hparams={"lr": 0.001},
        split_seed=seed,
        init_seed=seed,
        steps=10 * steps,
        batch_labeled=4,
        batch_unlabeled=8,
        eval_every=10,
        version="1.2.3",
    )
    curves: dict[str, list[float | None]] = {
        "step": [10.0 * (i + 1) for i in range(steps)],
        "target/fused": [0.5 + 0.02 * i + 0.01 * seed for i in range(steps)],
    }
    masks = {"erm": (), "fixmatch": ("accepted",), "ssmdg": ("accepted", "nonconsensus")}.get(method, ())
    for mask in masks:
        curves[f"pseudo/{mask}/coverage"] = [0.1 * i for i in range(steps)]
        curves[f"pseudo/{mask}/precision"] = [None if i == 0 else 0.8 for i in range(steps)]
    metrics = {name: curve[-1] for name, curve in curves.items() if name != "step"}
    metrics["selected_step"] = curves["step"][-1]
    return RunResult(spec, metrics, curves, "last", {"torch": "2.13", "device": "cpu"}, 2.0, notes=("9 labeled",))


def grid() -> list[RunResult]:
    """Three methods, two targets, two seeds."""
    return [run(m, t, s) for m in ("erm", "fixmatch", "ssmdg") for t in ("A", "B") for s in (0, 1)]


def full(results: list[RunResult] | None = None) -> ReportInputs:
    """Inputs with every part."""
    return ReportInputs(
        results=grid() if results is None else results,
        probe=[Probe("video", "A", 30, 10, 0.715), Probe("all", "A", 30, 10, 0.8), Probe("all", "B", 28, 9, 0.9)],
        sample_pictures=[("A", [("walk", png()), (EVIL, png())]), ("B", [("walk", png())])],
        extraction=ExtractionSummary(
            counts=[ModalityCount("video", 39, 0, 1), ModalityCount("audio", 20, 20, 0)],
            quarantined=[
                Quarantined("clip/<7>", "video", "failed", "truncated: 3 of 9 frames"),
                *(Quarantined(f"clip/{i}", "audio", "absent", "no_audio: no such stream") for i in range(20)),
            ],
        ),
        title="Tiny & small",
        notes=["The data are synthetic."],
    )


class Page(HTMLParser):
    """Elements, attributes and text of a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]


@pytest.fixture(scope="module")
def text() -> str:
    return render_page(full())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_page_is_well_formed_and_has_no_script(page: Page) -> None:
    assert page.tags["html"] == page.tags["main"] == page.tags["h1"] == 1
    assert page.tags["script"] == page.tags["iframe"] == page.tags["object"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_nothing_is_asked_from_outside(text: str) -> None:
    assert "http:" not in text
    assert "https:" not in text
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "@import" not in text
    parsed = Page(text)
    addresses = parsed.values("src") + parsed.values("href") + parsed.values("xlink:href")
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", text))


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    counts = Counter(page.values("id"))
    assert [name for name, number in counts.items() if number > 1] == []
    named = [value[1:] for value in page.values("href") if value.startswith("#")]
    named += re.findall(r"url\(#([^)]+)\)", " ".join(value for _, _, value in page.attributes))
    named += page.values("aria-labelledby")
    assert named
    assert set(named) <= set(counts)


def test_what_comes_from_data_is_escaped() -> None:
    evil = {"notes": (EVIL,), "environment": {EVIL: EVIL}}
    runs = [run(method, classes=("walk", EVIL)) for method in (EVIL, "ssmdg")]
    results = [replace(r, spec=replace(r.spec, dataset=EVIL, target=EVIL, sources=("B",)), **evil) for r in runs]
    inputs = replace(full(results), title=EVIL, notes=[EVIL], probe=[Probe(EVIL, EVIL, 1, 1, 0.5)])
    text = render_page(inputs)
    parsed = Page(text)
    assert parsed.tags["script"] == 0
    assert "<script>" not in text
    assert parsed.text.count("<script>alert('x')</script>") > 10
    assert f"Frame of class {EVIL} in domain A" in parsed.values("alt")


def test_what_must_be_said_is_said(page: Page) -> None:
    for sentence in (
        "12 runs of Labeled only (ERM), FixMatch and SSMDG on 2 unseen target domains with 2 seeds",
        "The data are synthetic.",
        "cached-embedding results are a different track than fine-tuned backbones",
        "± is the standard error over n = 2 seeds (sample deviation)",
        "Selection rule: last",
        "Protocol: strict",
        "Chance level: 50.0 %",
        "they claim no significance",
        "71.5 (30 / 10)",
        "All 21 tracks, one by one",
        "truncated: 3 of 9 frames",
        "video-digest",
        "0123abcd",
        "1.2.3",
        "24.0 s in total over 12 runs",
        "9 labeled (12 runs)",
        *(result.spec.run_id for result in grid()),
    ):
        assert sentence in page.text


def test_figures_and_pictures_have_words(page: Page) -> None:
    assert all(page.values("alt"))
    drawings = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "role")]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(drawings) == len(labels) == 3 + 2 + 2 + 2 + 1  # seeds, curves, coverage, precision, ranks
    assert "Line chart of target accuracy in % over training steps, target A." in labels[3]
    assert "SSMDG 54.5 at step 30" in labels[3]


def test_settings_are_listed_and_apart() -> None:
    other = [replace(r, spec=replace(r.spec, budget="1")) for r in (run("erm"), run("ssmdg"))]
    parsed = Page(render_page(ReportInputs([run("erm"), run("ssmdg"), *other])))
    assert sum(name == "class" and value == "results" for _, name, value in parsed.attributes) == 2
    assert "Runs of different settings are never in one table." in parsed.text
    assert max(Counter(parsed.values("id")).values()) == 1


def test_diverged_runs_are_listed_and_not_drawn() -> None:
    lost = replace(run("ssmdg"), metrics={}, status="diverged")
    parsed = Page(render_page(ReportInputs([run("erm"), lost])))
    assert f"Diverged, in no mean: {lost.spec.run_id}." in parsed.text
    assert "they are in no mean and no curve" in parsed.text
    assert [label for label, _ in learning_curves([run("erm"), lost]).legend] == ["Labeled only (ERM)", "chance"]


def test_only_diverged_runs_still_make_a_page() -> None:
    parsed = Page(render_page(ReportInputs([replace(run(), metrics={}, status="diverged")])))
    assert "No finished run has a curve." in parsed.text


def test_no_results_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pipe train-heads"):
        render_page(ReportInputs([]))
    with pytest.raises(UsageError, match="pipe train-heads"):
        write_report(tmp_path / "out", ReportInputs([]))
    assert not (tmp_path / "out").exists()


def test_long_lists_are_cut_and_say_so() -> None:
    rows = [Quarantined(f"clip{i}", "audio", "absent", f"no_audio: file {i}") for i in range(700)]
    parsed = Page(
        render_page(replace(full([run()]), extraction=ExtractionSummary([ModalityCount("audio", 0, 700, 0)], rows)))
    )
    assert "The first 500 of 700 tracks" in parsed.text
    assert "audio absent no_audio 700" in parsed.text


def test_pictures_that_are_not_png_are_refused() -> None:
    with pytest.raises(ValueError, match="'walk' in domain 'A' is not a PNG"):
        render_page(replace(full([run()]), sample_pictures=[("A", [("walk", b"GIF89a")])]))


def test_the_same_runs_give_the_same_page() -> None:
    few = grid()[:6]
    assert render_page(full(few)) == render_page(full(few[::-1]))


def test_write_report_writes_all_files_and_nothing_else(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "deep" / "report"
    write_report(folder, full([run()]))
    paths = write_report(folder, full())
    assert {path.name for path in folder.iterdir()} == set(paths)
    assert set(paths) == {"report.html", "results.md", "results.csv", "tables.tex"}
    assert paths["report.html"].read_text(encoding="utf-8") == text
    assert paths["results.md"].read_text(encoding="utf-8").startswith("# Tiny &amp; small\n")
    assert "**Average ranks**" in paths["results.md"].read_text(encoding="utf-8")
    assert len(paths["results.csv"].read_text(encoding="utf-8").splitlines()) == 13
    assert paths["tables.tex"].read_text(encoding="utf-8").count(r"\toprule") == 2  # accuracies; intervals and tests


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, full([run()]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, full([run("ssmdg")]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_run_with_one_step_can_be_drawn() -> None:
    results = [run("ssmdg", steps=1)]
    figure = learning_curves(results)
    assert [panel.title for panel in figure.panels] == ["target A"]
    ElementTree.fromstring(figure.panels[0].svg)
    coverage, precision = pseudo_label_curves(results)
    assert len(coverage.panels) == 1
    assert precision.panels == ()  # nothing was accepted, so there is no precision
    assert [panel.title for panel in result_points(result_table(results)).panels] == ["target A"]
    Page(render_page(ReportInputs(results)))


def test_a_lonely_point_between_gaps_is_marked() -> None:
    result = run("fixmatch", steps=9)
    precision: list[float | None] = [None] * 9
    precision[4] = 0.7
    result = replace(result, curves={**result.curves, "pseudo/accepted/precision": precision})
    (panel,) = pseudo_label_curves([result])[1].panels
    root = ElementTree.fromstring(panel.svg)
    marks = [use for use in root.iter("use") if "--blue" in use.attrib.get("style", "")]
    assert len(marks) == 1


def test_erm_alone_has_no_pseudo_labels() -> None:
    coverage, precision = pseudo_label_curves([run("erm")])
    assert coverage.panels == precision.panels == ()
    assert "Pseudo-labels" not in Page(render_page(ReportInputs([run("erm")]))).text


def test_second_mask_has_its_own_name_and_line() -> None:
    coverage, _ = pseudo_label_curves(grid())
    assert [label for label, _ in coverage.legend] == ["FixMatch, accepted", "SSMDG, accepted", "SSMDG, non-consensus"]


def test_drawings_leave_fonts_and_colours_to_the_page() -> None:
    svg = learning_curves(grid()).panels[0].svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert "currentColor" in svg
    assert "xmlns" not in svg


def test_importing_the_report_is_cheap() -> None:
    heavy = ("matplotlib", "jinja2", "rich", "torch", "scipy", "sklearn", "numpy", "umap")
    code = f"import sys, pipeline.reports; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
