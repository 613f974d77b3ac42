"""Configuration files: strict, typed, and every file in configs/ is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from heads.methods import METHODS
from pipeline.cli import app
from pipeline.errors import UsageError
from pipeline.hparams import ALL_CHOICES, resolve_hparams
from pipeline.plan import SweepSettings, read_sweep
from pipeline.types import MODALITIES
from tests.conftest import ROOT

DIMS = [("video", 8), ("audio", 8)]


def sweep(tmp_path: Path, text: str) -> SweepSettings:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return read_sweep(path)


FOR_TRAIN_HEADS = [p for p in sorted((ROOT / "configs").glob("*.toml")) if "pipe train-heads" in p.read_text()]


@pytest.mark.parametrize("path", FOR_TRAIN_HEADS, ids=lambda p: p.stem)
def test_every_shipped_file_for_train_heads_is_read(path: Path) -> None:
    assert read_sweep(path).methods


def test_the_demo_file_is_the_default() -> None:
    assert read_sweep(ROOT / "configs" / "demo.toml") == SweepSettings()


def test_values_replace_defaults(tmp_path: Path) -> None:
    settings = sweep(tmp_path, '[run]\nlabels = "10%"\nsteps = 7\n[run.hparams]\nthreshold = 1\n[axes]\nseeds = [3]\n')
    assert (settings.labels, settings.steps, settings.seeds) == ("10%", 7, (3,))
    assert settings.hparams == {"threshold": 1}
    assert settings.methods == SweepSettings().methods


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nstep = 7\n", r"'step' is not a setting. Did you mean 'steps'\?"),
        ('[run]\nsteps = "7"\n', r"steps is '7'; it must be a whole number"),
        ("[run]\nsteps = true\n", r"steps is True; it must be a whole number"),
        ("[run]\nlabels = 5\n", r"labels is 5; it must be a text in quotes"),
        ('[axes]\nmethods = "erm"\n', r"methods is 'erm'; it must be a list"),
        ('[axes]\nseeds = [0, "1"]\n', r"seeds\[1\] is '1'; it must be a whole number"),
        ("[axes]\nseeds = [0, 0]\n", r"they must differ"),
        ("[axes]\nsteps = 7\n", r"'steps' stands in \[axes\]; it belongs into \[run\]"),
        ('[axes]\nmethods = ["ssmgd"]\n', r"'ssmgd' is not a method. Did you mean 'ssmdg'\?"),
        ("[axis]\nseeds = [0]\n", r"'axis' is not a table of .* Did you mean 'axes'\?"),
        ('[run]\nselection = "best"\n', r"'best' is not a selection rule"),
        ("run = 3\n", r"run is 3; write it as a table"),
        ("[run\n", r"is not TOML: .*line 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_sweep(tmp_path / "none.toml")


def train_heads() -> Any:
    """The command, with its options."""
    return typer.main.get_command(app).commands["train-heads"]  # type: ignore[attr-defined]


def test_the_help_names_every_choice() -> None:
    options = {p.name: p for p in train_heads().params}
    for name in ("mixing", "fusion", "adapter", "optimizer"):
        text = options[name].help.removesuffix(".").removesuffix(", for every method")
        assert re.split(", | or ", text) == list(ALL_CHOICES[name])


def test_the_defaults_that_the_help_names_are_the_settings() -> None:
    command = train_heads()
    named = {p.name: p.show_default for p in command.params if isinstance(p.show_default, str)}
    settings = SweepSettings()
    hparams = resolve_hparams("erm", DIMS, settings.hparams)
    assert named.pop("cache") == "in the workspace"
    assert named == {
        "labels": settings.labels,
        "seeds": str(len(settings.seeds)),
        "method": ",".join(settings.methods),
        "target": "all" if settings.targets == () else ",".join(settings.targets),
        "steps": str(settings.steps),
        "batch": str(settings.batch_labeled),
        "eval_every": str(settings.eval_every),
        "selection": settings.selection,
        "target_part": {"": "all; test with --protocol paper or inside a single domain"}[settings.target_part],
        "protocol": settings.protocol,
        "unlabeled_domains": ",".join(settings.unlabeled_domains) or "none",
        "folds": str(settings.folds),
        "variant": settings.variant,
        "mixing": "the method's own",
        **{name: hparams[name] for name in ("fusion", "adapter", "optimizer")},
        "project": settings.projection,
        "precision": settings.precision,
        "patience": "never" if settings.patience == 0 else str(settings.patience),
        "keep_weights": "keep" if settings.keep_weights else "do not",
        "modalities": ",".join(MODALITIES),
        "backbones": "the data set's",
        "weights": "the published ones",
    }
    for method in METHODS:
        own = resolve_hparams(method, DIMS, settings.hparams)
        assert all(own[name] == named[name] for name in ("fusion", "adapter", "optimizer")), method
    assert settings.seeds == tuple(range(len(settings.seeds)))
    assert settings.batch_labeled == settings.batch_unlabeled
