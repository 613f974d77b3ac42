"""The page in a real browser: it opens without a word on the console, for screen, phone and print."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.reports import ReportInputs, write_report
from pipeline.types import RunResult
from tests.report_runs import EVIL, make_run
from tests.unit.test_report_embeddings import embedded, prototypes
from tests.unit.test_report_missing import Row

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLASSES = (EVIL, "run")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")


def run(method: str, target: str, seed: int, budget: str) -> RunResult:
    heads = ("fused", "video", "audio")
    curves: dict[str, list[float | None]] = {"step": [50.0, 100.0]}
    curves |= {f"{part}/{head}": [0.3, 0.5] for part in ("target", "val") for head in heads}
    if method == "ssmdg":
        groups = ["", *(f"class/{name}/" for name in CLASSES), "domain/B/"]
        curves |= {
            f"pseudo/accepted/{group}{kind}": [0.3, 0.6] for group in groups for kind in ("coverage", "precision")
        }
        curves |= {f"pseudo/{kind}/video": [0.5, 0.6] for kind in ("agree", "right")}
    own = {"threshold": 0.9} if method == "ssmdg" else {}
    return make_run(
        method,
        target,
        seed,
        0.4 + seed / 10,
        curves=curves,
        confusion=((4, 1), (2, 3)),
        hparams=own,
        budget=budget,
        classes=CLASSES,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every figure."""
    results = [run(m, t, s, b) for m in ("erm", "ssmdg") for t in ("A", "B") for s in (0, 1) for b in ("5", "10")]
    rows = {r.spec.run_id: [Row(("video", "audio"), EVIL, 0.5), Row(("video",), EVIL, 0.4)] for r in results}
    cases = {r.spec.run_id: f"{r.spec.method} {EVIL}" for r in results if r.spec.budget == "5"}
    shown = embedded(spec=results[-1].spec, labels=np.arange(24) % 2)
    shown = embedded(spec=results[-1].spec, prototypes=prototypes(shown))
    inputs = ReportInputs(results, cases=cases, missing_rows=rows, embeddings=[shown], title=EVIL, source=EVIL)
    return write_report(tmp_path_factory.mktemp("page"), inputs)["report.html"]


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page without a window; returns what the browser wrote."""
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command = [str(BROWSER), *fixed, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_every_figure_is_on_the_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for heading in (
        "Label budgets",
        "Ablation",
        "Learning curves",
        "Single modalities and their fusion",
        "Pseudo-labels",
        "Confusion between classes",
        "Missing modalities",
        "Maps of learned embeddings",
    ):
        assert f">{heading}</h" in text


def test_it_opens_without_a_word_on_the_console(page: Path) -> None:
    done = browse(page, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert "<main>" in done.stdout
    assert done.stdout.count('role="img"') == page.read_text(encoding="utf-8").count('role="img"') > 30
    assert "<script" not in done.stdout


def test_a_script_would_be_refused_and_seen(page: Path, tmp_path: Path) -> None:
    """The test above can fail: the console is read, and the page's policy forbids what it does not hold itself."""
    text = page.read_text(encoding="utf-8").replace("</main>", "<script>alert(1)</script></main>")
    broken = tmp_path / "broken.html"
    broken.write_text(text, encoding="utf-8")
    assert re.search(r"CONSOLE.*Content Security Policy", browse(broken, "--dump-dom").stderr)


def test_it_can_be_printed(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    browse(page, f"--print-to-pdf={target}")
    assert target.read_bytes().startswith(b"%PDF")
