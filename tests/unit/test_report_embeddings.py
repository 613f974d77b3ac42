"""Maps of embeddings: what is laid out, neighbours by hand, colours, and what is said beside a map."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.reports import ReportInputs, render_page
from pipeline.reports.drawing import CLASS_COLOURS
from pipeline.reports.embedding_map import REST, class_colours, embedding_map, map_embeddings, perplexity
from pipeline.types import RunSpec
from tests.report_runs import EVIL, label_of, make_run


@dataclass(frozen=True)
class Embedded:
    """Two classes in two directions, of three domains."""

    spec: RunSpec
    values: dict[str, NDArray[np.float32]]
    present: dict[str, NDArray[np.bool_]]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    prototypes: dict[str, NDArray[np.float32]] | None = None
    domain_names: tuple[str, ...] = ("A", "B", "C")
    total: int = 24
    seed: int = field(default=0)


def embedded(clips: int = 24, dim: int = 6, **changes: object) -> Embedded:
    rng = np.random.default_rng(1)
    labels, domains = np.arange(clips) % 2, np.arange(clips) % 3
    centres = np.zeros((2, dim), np.float32)
    centres[0, 0] = centres[1, 1] = 5
    values = {m: (centres[labels] + rng.normal(size=(clips, dim)) / 10).astype(np.float32) for m in ("video", "audio")}
    present = {m: np.ones(clips, dtype=bool) for m in values}
    spec = make_run("ssmdg").spec
    return replace(Embedded(spec, values, present, labels, domains), **changes)  # type: ignore[arg-type]


def prototypes(run: Embedded) -> dict[str, NDArray[np.float32]]:
    """Two source domains, two classes; one cell was never reached."""
    dim = run.values["video"].shape[1]
    found = np.zeros((2, 2, dim), np.float32)
    found[:, 0, 0] = found[:, 1, 1] = 1
    found[1, 1] = np.nan
    return {m: found.copy() for m in run.values}


def test_classes_in_two_directions_are_apart_on_the_map() -> None:
    for found in map_embeddings(embedded()):
        places, labels = found.clips, np.arange(24) % 2
        centres = np.stack([places[labels == k].mean(0) for k in (0, 1)])
        nearer = np.linalg.norm(places[:, None] - centres, axis=-1).argmin(1)
        assert (nearer == labels).all()
        assert found.same_class == 1.0


def test_the_same_run_gives_the_same_map() -> None:
    one, two = map_embeddings(embedded()), map_embeddings(embedded())
    assert all(np.array_equal(a.clips, b.clips) for a, b in zip(one, two, strict=True))


def test_neighbours_are_those_of_directions_and_not_of_lengths() -> None:
    angles = np.array([0, 1, 40, 41, 80, 81, 120, 121, 160, 161]) * np.pi / 180
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * np.linspace(0.1, 50, 10)[:, None]
    run = embedded(
        10,
        values={"video": points.astype(np.float32)},
        present={"video": np.ones(10, dtype=bool)},
        labels=np.array([0, 0, 1, 1, 0, 1, 0, 1, 1, 1]),  # neighbours are pairs: 3 of 5 agree
        domains=np.array([0, 1, 0, 0, 1, 1, 2, 2, 0, 0]),  # 4 of 5
    )
    (found,) = map_embeddings(run)
    assert found.same_class == pytest.approx(0.6)
    assert found.same_domain == pytest.approx(0.8)


def test_prototypes_that_no_clip_has_reached_are_not_drawn() -> None:
    run = embedded()
    run = replace(run, prototypes=prototypes(run))
    for found in map_embeddings(run):
        assert found.prototype_classes == (0, 1, 0)
        assert found.prototypes.shape == (3, 2)
        labels = np.arange(24) % 2
        for place, label in zip(found.prototypes, found.prototype_classes, strict=True):
            distances = [np.linalg.norm(found.clips[labels == k] - place, axis=1).min() for k in (0, 1)]
            assert np.argmin(distances) == label
    figure = embedding_map(run)
    assert figure.legend[-1][0] == "prototype"
    assert "24 clips and 3 prototypes, SSMDG, target A" in figure.panels[0].description


def test_clips_without_the_modality_are_not_on_its_map() -> None:
    run = embedded()
    run.present["audio"][:5] = False
    video, audio = map_embeddings(run)
    assert (len(video.clips), len(audio.clips)) == (24, 19)
    assert audio.rows.tolist() == list(range(5, 24))
    run.present["audio"][:20] = False
    figure = embedding_map(run)
    assert [panel.title for panel in figure.panels] == ["video"]
    assert figure.notes[-1] == "audio: not drawn, fewer than 10 clips have it."


def test_the_facts_of_the_map_are_said() -> None:
    figure = embedding_map(embedded(total=900))
    assert figure.notes[0] == (
        "t-SNE of at most 50 principal components, perplexity 7.67, 500 iterations, started from the first two, seed "
        "0; 24 of 900 clips, drawn with seed 0, clean views, embeddings at unit length. Distances between groups and "
        "their sizes mean nothing on such a map."
    )
    assert figure.notes[1].startswith("Nearest neighbours before the map: video 100.0 % of the same class, ")
    assert "all 24 clips, clean views" in embedding_map(embedded()).notes[0]
    assert (perplexity(1500), perplexity(31)) == (30, 10)
    assert [label for label, _ in figure.legend] == ["walk", "run", "A (target)", "B (source)", "C (source)"]
    assert label_of(figure.panels[0]).startswith("t-SNE map of the video embeddings of 24 clips, SSMDG, target A.")


def test_many_values_go_through_principal_components_first() -> None:
    run = embedded(60, 300)
    (found,) = map_embeddings(replace(run, values={"video": run.values["video"]}))
    assert found.clips.shape == (60, 2)


def test_of_many_classes_the_most_frequent_have_colours() -> None:
    names = tuple(f"c{i}" for i in range(12))
    labels = np.array([11] * 3 + [i % 12 for i in range(21)])  # each of 0..8 twice, of 9, 10 once, of 11 four times
    run = embedded(spec=make_run("ssmdg", classes=names).spec, labels=labels)
    colours = class_colours(run)
    assert [i for i, colour in enumerate(colours) if colour == REST] == [8, 9, 10]
    assert len(set(colours)) == 10
    assert class_colours(embedded()) == CLASS_COLOURS[:2]
    figure = embedding_map(run)
    assert [label for label, _ in figure.legend][8:11] == ["c11", "3 other classes", "A (target)"]


def test_without_umap_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match="umap-learn, which is not installed; `pip install umap-learn`, or leave"):
        map_embeddings(embedded(), "UMAP")


def test_the_page_shows_maps_only_where_there_are_some() -> None:
    runs = [make_run("ssmdg")]
    assert "Maps of learned embeddings" not in render_page(ReportInputs(runs))
    run = embedded()
    page = render_page(ReportInputs(runs, embeddings=[replace(run, prototypes=prototypes(run)), run]))
    assert page.count('<h2 id="maps">Maps of learned embeddings</h2>') == 1
    assert page.count("Stars are prototypes") == 1
    assert f"Embeddings of run {run.spec.run_id} (SSMDG, target A, seed 0, 5 labels)." in page
    none = {m: np.zeros(24, dtype=bool) for m in run.values}
    page = render_page(ReportInputs(runs, embeddings=[replace(run, present=none)]))
    assert "video, audio: not drawn, fewer than 10 clips have it." in page


def test_hostile_names_are_escaped() -> None:
    spec = make_run(EVIL, EVIL, classes=(EVIL, "x")).spec
    page = render_page(ReportInputs([make_run()], embeddings=[embedded(spec=spec, domain_names=(EVIL, "B", "C"))]))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
