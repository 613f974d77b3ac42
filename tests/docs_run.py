"""Runs the command blocks of README.md and docs/ in little, in the folder it is called in; prints a JSON line for each.

What is changed is said here: data sets are miniatures, numbers of labels, seeds and steps are small, backbones are the
tiny ones, extraction and training take no processes of their own, and names that stand for the reader's own (RUN,
GROUP, DIR) are those of this folder. Nothing else is.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.in_process import extraction_in_process

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md") if p.name != "reference.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)
DATASETS = ("hac", "epic", "crema-d", "kinetics-sounds", "ucf101")
PARSED_ONLY = {  # command -> why it is not run here
    "weights fetch": "it needs the internet",
    "weights add": "it needs a published file",
    "doctor": "it takes seconds, and has tests of its own",
    "demo": "the workspace that this starts from is what it made",
}
IN_LITTLE = (  # pattern, what stands for it
    (r"/data/", "data/"),
    (r"seed=0\.\.\d+", "seed=0"),
    (r"\blabels=[\d,]+", "labels=1"),
    (r"--seeds \d+", "--seeds 1"),
    (r"--labels 5 (.*label-honest)", r"--labels 2 \1 --method erm"),  # of two clips a class none is left unlabeled
    (r"--labels 5%?(?= |$)", "--labels 1"),
    (r"labels=\[[\d, ]+\]", "labels=[1]"),
    (r"seed=range\(\d+\)", "seed=range(1), steps=4, workers=1"),
    (r"--random \d+", "--random 2"),
    (r"--finetune-translators \d+", "--finetune-translators 2"),
    (r"--clips \d+", "--clips 2"),
    (r"--backbones \S+", "--backbones tiny"),
    (r"s3://bucket/\w+", "elsewhere"),
    (r"cache export DIR", "cache export exported"),
    (r"--root DIR", "--root data/epic"),
)
FEATURES = ("extract", "train-heads", "sweep", "reproduce", "report", "eval", "probe", "export")  # that take backbones


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of every block of commands or Python."""
    for found in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        if found[1] in ("bash", "sh", "console", "python"):
            yield found[1], found[2]


def commands(text: str) -> Iterator[str]:
    """Commands of a block, without comments, lines that go on joined."""
    for line in text.replace("\\\n", " ").splitlines():
        bare = re.sub(r"(^|\s)#.*", "", line).strip()
        if bare:
            yield bare


def prepare() -> None:
    """Make the media that the pages speak of, beside the workspace ``pipe-work`` of a small demo."""
    import csv

    import h5py
    import numpy as np

    for name in DATASETS:
        Path("data", name).mkdir(parents=True)
        importlib.import_module(f"tests.miniatures.{name.replace('-', '_')}").write(Path("data", name))
    shutil.copytree(ROOT / "configs", "configs")
    demo = Path("pipe-work/data/demo")
    rows = [row for row in csv.DictReader((demo / "manifest.csv").open()) if row["clip_id"][-3:] != "003"]
    for row in rows:
        place = Path(row["domain"], row["split"], row["label"])
        for tree in ("clips", *(["data/mine"] if row["split"] == "test" else [])):
            (tree / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(demo / row["path"], tree / place)
    for folder in ("new-clips", "recordings", "cameras"):
        Path(folder).mkdir()
        for row in rows[:2]:
            shutil.copy(demo / row["path"], folder)
    shutil.copy(demo / rows[0]["path"], "clip.mp4")
    Path("list.csv").write_text(f"path,label\nclip.mp4,{rows[0]['label']}\n", encoding="utf-8")
    Path("mine").mkdir()
    for name, media in (("mine.csv", demo), ("mine/manifest.csv", Path("media"))):
        with Path(name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            some = rows if name == "mine/manifest.csv" else [r for r in rows if r["clip_id"][-3:] != "002"]
            writer.writerows({**row, "path": str(media / row["path"])} for row in some)
    shutil.copytree(demo, "mine/media")
    with h5py.File("features.h5", "w") as store:
        for number, row in enumerate(r for r in rows if r["clip_id"][-3:] != "002"):
            store[row["clip_id"]] = np.random.default_rng(number).normal(size=8).astype(np.float32)


def in_little(command: str) -> str:
    """The command as it is run here."""
    for pattern, replacement in IN_LITTLE:
        command = re.sub(pattern, replacement, command)
    if "GROUP GROUP" in command:
        groups = sorted(p.name for p in Path("pipe-work/cache/demo").glob("*.zarr"))
        command = command.replace("GROUP GROUP", f"{groups[0]} {groups[0]}")
    if " RUN " in command or " 3f2a" in command:
        named = dict(re.findall(r"--(work|dataset) (\S+)", command))
        dataset = Path(named["dataset"]).parent.name or named["dataset"]
        folder = Path(named.get("work", os.environ.get("PIPE_WORK", "pipe-work")), "results", dataset)
        run = next(p.stem for p in sorted(folder.glob("*.json")) if '"method":"ssmdg"' in p.read_text())
        command = command.replace(" RUN ", f" {run} ").replace(" 3f2a", f" {run[:8]}")
    return command


def arguments(command: str) -> tuple[list[str], str]:
    """Arguments of ``pipe`` and the file that the output goes to."""
    found = re.fullmatch(r"(.*) > ([\w./-]+)", command)
    command, target = (found[1], found[2]) if found else (command, "")
    words = shlex.split(command)
    words = words[words.index("pipe") + 1 :]
    if words[0] in FEATURES and "--features" not in words and "--backbones" not in words:
        words += ["--backbones", "tiny"]
    if words[0] == "train-heads":
        words += ["--steps", "4", "--eval-every", "4", "--seeds", "1", "--folds", "2"]
        words += [] if "--labels" in words or "--splits" in words else ["--labels", "1"]
    if words[0] in ("extract", "train-heads", "sweep", "reproduce", "predict"):
        words += ["--workers", "1"]  # processes that only train would load PyTorch again
    if words[0] in ("sweep", "reproduce"):
        given = [word.partition("=")[0] for word in words]
        if words[1].endswith(".toml") and not any("=" in word for word in words):
            words += ["--sweep-name", Path(words[1]).stem]  # what follows would make it another sweep
        words += [w for w in ("labels=1", "seed=0", "steps=4", "eval_every=4") if w.partition("=")[0] not in given]
    return words, target


def call(words: list[str]) -> int:
    """Exit code of ``pipe`` with these arguments."""
    from pipeline.cli import app

    try:
        app(words, prog_name="pipe")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def parses(words: list[str]) -> int:
    """0 where ``pipe`` takes these arguments; nothing is run."""
    import typer

    context: Any = None
    command: Any = typer.main.get_command(importlib.import_module("pipeline.cli").app)
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    context = command.make_context("pipe", rest)
    return 0 if context is not None else 1


def run_page(page: str, folder: Path) -> Iterator[dict[str, object]]:
    """Results of all blocks of a page."""
    os.environ.pop("PIPE_WORK", None)
    shutil.rmtree(folder / "model", ignore_errors=True)  # of the page before
    scope: dict[str, object] = {}
    for language, text in blocks(page):
        for command in [text] if language == "python" else commands(text):
            os.chdir(folder)
            said, code, start = io.StringIO(), 0, time.perf_counter()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    code = _run_python(command, scope) if language == "python" else _run(command, said)
                except BaseException:
                    traceback.print_exc()
                    code = 70
            yield {
                "page": page,
                "command": command.strip(),
                "code": code,
                "seconds": round(time.perf_counter() - start, 2),
                "said": said.getvalue()[-3000:],
            }


def _run(command: str, said: io.StringIO) -> int:
    if command.startswith("export "):
        name, _, value = command.removeprefix("export ").partition("=")
        os.environ[name] = value
        return 0
    if command in ("uv run pytest", "uv run python docs/make_reference.py"):  # this; and a test of its own
        return 0
    source, bar, last = command.rpartition(" | ")
    if bar:  # what the first command prints is what the last one reads
        with Path("listed.txt").open("w") as listed:
            subprocess.run(in_little(source).replace("/cameras", "cameras"), shell=True, stdout=listed, check=True)
        sys.stdin, command = Path("listed.txt").open(), last  # noqa: SIM115 - the command reads it, as a shell has it
    if not re.match(r"(uv run )?pipe ", command):
        raise ValueError(f"not a command that is known here: {command}")
    words, target = arguments(in_little(command))
    if any(" ".join(words).startswith(known) for known in PARSED_ONLY):
        return parses(words)
    code = call(words)
    if target:
        Path(target).write_text(said.getvalue(), encoding="utf-8")
    return code


def _run_python(text: str, scope: dict[str, object]) -> int:
    import torch

    scope.setdefault("features", torch.zeros(1, 274176))  # of the tap that the page on backbones names
    if "model" in text and Path("model").is_dir():
        from pipeline.bundle import load_bundle

        dims = load_bundle(Path("model")).head.dims
        scope.update(a=torch.zeros(2, dims["video"]).numpy(), b=torch.zeros(2, dims["audio"]).numpy())
    text = in_little(text)
    for found in re.findall(r'"(pipe-work/cache/\S+)-\.\.\.\.zarr"', text):
        (group,) = Path().glob(f"{found}-*.zarr")
        text = text.replace(f"{found}-....zarr", str(group))
    exec(compile(text, "block", "exec"), scope)
    return 0


def main() -> None:
    """Run the pages that are named, or all."""
    folder = Path.cwd()
    prepare()
    with extraction_in_process():
        run_pages(folder)


def run_pages(folder: Path) -> None:
    """Print the results of the pages that are named, or of all."""
    for page in sys.argv[1:] or PAGES:
        for result in run_page(page, folder):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
