"""Published backbones from the command line: weights that come, are checked, make features and name themselves."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner

from extractors.audio_resnet import build_vggsound_r18
from extractors.backbone import BACKBONES
from extractors.initialise import initialise
from extractors.loading import load_last_stage, random_weights
from pipeline.cli import app
from tests.file_server import Answer, serving
from tests.in_process import extraction_in_process

CLIPS = 8
SMALL = ("--weak", "1", "--strong", "1")
TRAIN = ("--method", "erm", "--labels", "1", "--seeds", "1", "--steps", "3", "--eval-every", "3")


def run(*arguments: str | Path, code: int = 0) -> str:
    """A command in this process, which has PyTorch loaded already; returns what it printed."""
    with extraction_in_process():
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def mine(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Eight real mp4 files of two classes and two domains; the arguments that name them."""
    folder = tmp_path_factory.mktemp("mine")
    source = demo_run[0] / "data" / "demo" / "manifest.csv"
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        chosen.setdefault((row["domain"], row["label"]), []).append(row)
    domains = sorted({d for d, _ in chosen})[:2]
    labels = sorted({c for _, c in chosen})[:2]
    kept = [row for d in domains for c in labels for row in chosen[d, c][:2]]
    assert len(kept) == CLIPS
    path = folder / "mine.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return "--dataset", str(path), "--root", str(source.parent), "--work", str(folder / "work")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder."""
    folder = tmp_path / "weights"
    monkeypatch.setenv("PIPE_WEIGHTS", str(folder))
    return folder


def groups(mine: tuple[str, ...], pattern: str) -> list[zarr.Group]:
    cache = Path(mine[-1]) / "cache" / "mine"
    return [zarr.open_group(str(path), mode="r") for path in sorted(cache.glob(pattern))]


def test_what_is_not_here_is_said_and_nothing_is_made(mine: tuple[str, ...], weights: Path) -> None:
    text = run("extract", *mine, *SMALL, "--backbones", "ssmdg", code=2)
    assert "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth" in text
    assert str(weights) in text
    assert not groups(mine, "*slowfast*")
    assert "no" in run("weights", "list")
    assert "There are no weight files" in run("weights", "check")


def test_random_weights_work_by_name_and_every_table_says_so(mine: tuple[str, ...], weights: Path) -> None:
    chosen = ("--modalities", "audio,video", "--backbones", "resnet18,resnet18-spec", "--weights", "random:1")
    text = run("extract", *mine, *SMALL, *chosen)
    assert "RANDOM WEIGHTS drawn from seed 1" in text
    assert "Everything was extracted already" in run("extract", *mine, *SMALL, *chosen)
    assert "resnet18: RANDOM WEIGHTS drawn from seed 1" in run("train-heads", *mine, *SMALL, *chosen, *TRAIN)
    run("report", *mine, *SMALL, *chosen)
    for name in ("results.md", "report.html", "tables.tex"):
        pages = list((Path(mine[-1]) / "report").rglob(name))
        assert pages, name
        assert all("RANDOM WEIGHTS" in page.read_text(encoding="utf-8") for page in pages)
    (group,) = groups(mine, "video-resnet18-*")
    assert group.attrs["identity"]["weights"] == "random:1"  # type: ignore[index, call-overload]
    refused = run("train-heads", *mine, *SMALL, *TRAIN, "--backbones", "resnet18", "--modalities", "video", code=2)
    assert "resnet18-f37072fd.pth" in refused


def test_a_file_of_ones_own_becomes_features_and_can_go_away_again(
    mine: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    network = build_vggsound_r18()
    initialise(network, 5, "anything")
    given = tmp_path / "H.pth.tar"
    torch.save({"model_state_dict": network.state_dict(), "epoch": 3}, given)
    assert "sha256" in run("weights", "add", given)
    assert "Here" in run("weights", "check")
    chosen = ("--modalities", "audio", "--backbones", "vggsound-r18", "--feature-precision", "float32")
    assert "pretrained on VGGSound" in run("extract", *mine, *SMALL, *chosen)
    (group,) = groups(mine, "audio-vggsound-*")
    digest = json.loads((weights / "H.pth.tar.json").read_text())["sha256"]
    assert group.attrs["identity"]["weights"] == f"sha256:{digest}"  # type: ignore[index, call-overload]
    shutil.rmtree(weights)
    assert "1" in run("train-heads", *mine, *SMALL, *chosen, *TRAIN)
    assert "pipe weights fetch" in run("extract", *mine, *SMALL, *chosen, code=2)

    (weights).mkdir()
    torch.save({"model_state_dict": {"conv.weight": torch.zeros(1)}}, given)
    assert "conv.weight" in run("weights", "add", given, code=2)
    assert not list(weights.iterdir())


def test_published_weights_are_fetched_resumed_and_checked(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = build_vggsound_r18()
    initialise(network, 6, "anything")
    made = io.BytesIO()
    torch.save({"model_state_dict": network.state_dict()}, made)
    with serving() as server:
        backbone = BACKBONES["vggsound-r18"]
        here = replace(backbone.published[0], url=f"{server.url}/H.pth.tar")
        monkeypatch.setitem(BACKBONES, backbone.name, replace(backbone, published=(here,)))
        server.answers = [Answer(content=made.getvalue(), cut_after=20_000_000), Answer(content=made.getvalue())]
        text = run("weights", "fetch", "vggsound-r18")
        assert hashlib.sha256(made.getvalue()).hexdigest() in text
        assert server.sent < 1.05 * len(made.getvalue())  # the second request went on where the first was cut
        assert "Here" in run("weights", "fetch", "vggsound-r18")
        with (weights / "H.pth.tar").open("r+b") as file:
            file.seek(1_000_000)
            file.write(b"damage")
        assert "H.pth.tar" in run("weights", "check", code=1)
        (weights / "H.pth.tar").unlink()
        server.answers = [Answer(status=404, content=b"")]
        assert "404" in run("weights", "fetch", "vggsound-r18", code=2)
    assert "Did you mean 'vggsound-r18'" in run("weights", "fetch", "vggsound-r19", code=2)


def test_maps_before_the_last_stage_finish_to_the_embedding(mine: tuple[str, ...], weights: Path) -> None:
    chosen = ("--modalities", "audio", "--backbones", "vggsound-r18", "--weights", "random:2")
    plain = (*mine, *SMALL, *chosen, "--feature-precision", "float32")
    run("extract", *plain)
    run("extract", *plain, "--tap", "pre-layer4")
    by_tap = {}
    for group in groups(mine, "audio-vggsound-*"):
        identity = group.attrs["identity"]
        if identity["weights"] == "random:2":  # type: ignore[index, call-overload]
            by_tap[identity["tap"]] = group  # type: ignore[index, call-overload]
    embedding, maps = (np.asarray(by_tap[tap]["features"][:]) for tap in ("pool", "pre-layer4"))
    assert maps.dtype == np.float16
    present = np.asarray(by_tap["pool"]["status"][:]) == 1
    assert present.sum() > 4
    stage = load_last_stage("vggsound-r18", random_weights(2), "pre-layer4").eval()
    rows = torch.from_numpy(maps[present][:, 0])
    finished = stage(rows)
    scale = np.abs(embedding[present]).max()
    assert np.abs(finished.detach().numpy() - embedding[present][:, 0]).max() < 2e-3 * scale  # float16 twice
    finished.sum().backward()
    trained = {name for name, p in stage.named_parameters() if p.grad is not None}
    assert trained
    assert all("layer4" in name for name in trained)


def test_backbones_are_listed_and_described(weights: Path) -> None:
    table = run("backbones")
    for name in ("slowfast-r101", "slowonly-r50-flow", "vggsound-r18", "tiny-rgb", "Preset ssmdg"):
        assert name in table
    text = run("backbones", "slowfast-r50")
    assert "1280x8x7x7 and 128x32x7x7" in text
    assert "download.openmmlab.com" in text
    assert "Did you mean 'slowfast-r50'" in run("backbones", "slowfast-r5", code=2)
