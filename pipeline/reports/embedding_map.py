"""Maps of learned embeddings and prototypes, per modality, as in figures 4 and 5 of B-MM (arXiv 2510.10986)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.reports.drawing import CLASS_COLOURS, INK, house_style, marker_sample, svg_text, swatch
from pipeline.reports.figures import MARKERS, Panel, PanelFigure
from pipeline.reports.inputs import EmbeddedRun, MapMethod
from pipeline.reports.settings import METHOD_NAMES
from pipeline.reports.wording import percent

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

SIDE = 3.1  # inches
REST = "#8a8a8a"  # classes beyond
COMPONENTS = 50  # of the PCA before t-SNE
PERPLEXITY = 30.0
ITERATIONS = 500
ANGLE = 0.7  # of the Barnes-Hut approximation: a fifth less time than scikit-learn's 0.5, and the same loss to 1 %
FEWEST = 10  # clips of a map
SEED = 0


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Clips and prototypes of one modality on a plane."""

    modality: str
    clips: NDArray[np.float32]  # (clips, 2)
    rows: NDArray[np.int64]  # (clips,) which of the run's clips they are
    prototypes: NDArray[np.float32]  # (prototypes, 2)
    prototype_classes: tuple[int, ...]
    same_class: float  # share (0..1) of clips whose nearest neighbour is of their class, before the map
    same_domain: float  # likewise for the domain


def map_embeddings(run: EmbeddedRun, method: MapMethod = "t-SNE") -> list[EmbeddingMap]:
    """Lay out the clips of every modality that has enough of them.

    Embeddings are brought to unit length first, as prototypes are; so distances are those of directions.

    Raises:
        UsageError: UMAP is asked for and not installed.
    """
    import numpy as np

    maps = []
    for modality, values in run.values.items():
        rows = np.flatnonzero(run.present[modality] & np.isfinite(values).all(1))
        if len(rows) < FEWEST:
            continue
        points = _unit(values[rows])
        vectors, classes = _known_prototypes(run, modality)
        together = np.concatenate([points, _unit(vectors)]) if len(vectors) else points
        places = (_tsne if method == "t-SNE" else _umap)(together)
        nearest = _nearest(points)
        labels, domains = run.labels[rows], run.domains[rows]
        maps.append(
            EmbeddingMap(
                modality=modality,
                clips=places[: len(rows)],
                rows=rows,
                prototypes=places[len(rows) :],
                prototype_classes=tuple(classes),
                same_class=float((labels[nearest] == labels).mean()),
                same_domain=float((domains[nearest] == domains).mean()),
            )
        )
    return maps


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows at unit length; zero rows stay."""
    import numpy as np

    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (values / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def _known_prototypes(run: EmbeddedRun, modality: str) -> tuple[NDArray[np.float32], list[int]]:
    """Prototypes that a labeled clip has reached, ``(prototypes, dim)``, and their classes."""
    import numpy as np

    if run.prototypes is None:
        return np.zeros((0, run.values[modality].shape[1]), np.float32), []
    found = run.prototypes[modality]
    known = np.isfinite(found).all(-1)
    return found[known], np.nonzero(known)[1].tolist()


def _nearest(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Position of every unit row's nearest other row."""
    import numpy as np

    likeness = points @ points.T
    np.fill_diagonal(likeness, -np.inf)
    nearest: NDArray[np.int64] = likeness.argmax(1)
    return nearest


def _tsne(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of the first principal components, started from the first two."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(COMPONENTS, len(points) - 1, points.shape[1])
    if components < points.shape[1]:
        points = PCA(components, svd_solver="randomized", random_state=SEED).fit_transform(points)
    start = "pca" if components > 1 else "random"
    layout = TSNE(
        perplexity=perplexity(len(points)), init=start, random_state=SEED, max_iter=ITERATIONS, angle=ANGLE, n_jobs=1
    ).fit_transform(points)
    placed: NDArray[np.float32] = layout
    return placed


def perplexity(points: int) -> float:
    """t-SNE's perplexity: ``PERPLEXITY``, or a third of the points where they are few."""
    return min(PERPLEXITY, (points - 1) / 3)


def _umap(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """UMAP (McInnes, Healy and Melville, arXiv 1802.03426) with the defaults of umap-learn."""
    try:
        from umap import UMAP
    except ModuleNotFoundError:
        raise UsageError(
            "a UMAP map needs umap-learn, which is not installed; `pip install umap-learn`, or leave it at t-SNE"
        ) from None
    placed: NDArray[np.float32] = UMAP(random_state=SEED, n_jobs=1).fit_transform(points)
    return placed


@house_style()
def embedding_map(run: EmbeddedRun, prefix: str = "map", method: MapMethod = "t-SNE") -> PanelFigure:
    """Draw a map per modality: points are clips, colour is the class, shape the domain, stars are prototypes.

    Args:
        run: what is drawn.
        prefix: start of every id in the drawings; different for every figure of a page.
        method: how the plane is made.

    Raises:
        UsageError: UMAP is asked for and not installed.
    """
    maps = map_embeddings(run, method)
    few = [m for m in run.values if m not in {found.modality for found in maps}]
    notes = [f"{', '.join(few)}: not drawn, fewer than {FEWEST} clips have it."] if few else []
    if not maps:
        return PanelFigure((), (), tuple(notes))
    colours = class_colours(run)
    panels = []
    for i, found in enumerate(maps):
        words = _describe(run, found, method)
        panels.append(Panel(found.modality, words, _draw(run, found, colours, f"{prefix}-{i}", words)))
    return PanelFigure(tuple(panels), _legend(run, maps, colours, prefix), (*_facts(run, maps, method), *notes))


def class_colours(run: EmbeddedRun) -> tuple[str, ...]:
    """A colour per class; where there are more classes than colours, the most frequent ones have one."""
    import numpy as np

    classes = len(run.spec.classes)
    counts = np.bincount(run.labels, minlength=classes)
    first = sorted(range(classes), key=lambda c: (-counts[c], c))[: len(CLASS_COLOURS)]
    if classes <= len(CLASS_COLOURS):
        return CLASS_COLOURS[:classes]
    chosen = {c: CLASS_COLOURS[i] for i, c in enumerate(sorted(first))}
    return tuple(chosen.get(c, REST) for c in range(classes))


def _draw(run: EmbeddedRun, found: EmbeddingMap, colours: tuple[str, ...], prefix: str, words: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIDE, SIDE))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(True)
    _points(axes, run, found, colours)
    for place, label in zip(found.prototypes, found.prototype_classes, strict=True):
        axes.plot(*place, "*", color=colours[label], ms=10, mec=INK, mew=0.8, zorder=4)
    return svg_text(figure, prefix, words)


def _points(axes: Axes, run: EmbeddedRun, found: EmbeddingMap, colours: tuple[str, ...]) -> None:
    """All clips; one call per domain and class, so that a shape and a colour stand once in the drawing."""
    labels, domains = run.labels[found.rows], run.domains[found.rows]
    size = 3.4 if len(found.rows) <= 600 else 2.4
    for domain in range(len(run.domain_names)):
        for label in range(len(run.spec.classes)):
            mine = (domains == domain) & (labels == label)
            if mine.any():
                x, y = found.clips[mine].T
                shape = MARKERS[domain % len(MARKERS)]
                axes.plot(x, y, shape, ls="", color=colours[label], ms=size, mec=INK, mew=0.25, zorder=2)


def _legend(
    run: EmbeddedRun, maps: list[EmbeddingMap], colours: tuple[str, ...], prefix: str
) -> tuple[tuple[str, str], ...]:
    """Classes by colour, domains by shape, and the star."""
    named = [(name, colour) for name, colour in zip(run.spec.classes, colours, strict=True) if colour != REST]
    samples = [(name, swatch(colour, framed=True)) for name, colour in named]
    if len(named) < len(run.spec.classes):
        samples.append((f"{len(run.spec.classes) - len(named)} other classes", swatch(REST, framed=True)))
    for i, name in enumerate(run.domain_names):
        role = "target" if name == run.spec.target else "source"
        samples.append((f"{name} ({role})", marker_sample(MARKERS[i % len(MARKERS)], f"{prefix}-domain-{i}")))
    if any(len(found.prototypes) for found in maps):
        samples.append(("prototype", marker_sample("*", f"{prefix}-star")))
    return tuple(samples)


def _facts(run: EmbeddedRun, maps: list[EmbeddingMap], method: MapMethod) -> tuple[str, ...]:
    """How the maps were made, and what they must not be read for."""
    clips = len(run.labels)
    drawn = f"{clips} of {run.total} clips, drawn with seed {run.seed}" if clips < run.total else f"all {clips} clips"
    how = "umap-learn's defaults"
    if method == "t-SNE":
        numbers = sorted({perplexity(len(found.clips) + len(found.prototypes)) for found in maps})
        how = (
            f"of at most {COMPONENTS} principal components, perplexity {', '.join(f'{n:.3g}' for n in numbers)}, "
            f"{ITERATIONS} iterations, started from the first two"
        )
    neighbours = "; ".join(
        f"{m.modality} {percent(m.same_class)} % of the same class, {percent(m.same_domain)} % of the same domain"
        for m in maps
    )
    return (
        f"{method} {how}, seed {SEED}; {drawn}, clean views, embeddings at unit length. Distances between groups and "
        "their sizes mean nothing on such a map.",
        f"Nearest neighbours before the map: {neighbours}.",
    )


def _describe(run: EmbeddedRun, found: EmbeddingMap, method: MapMethod) -> str:
    """One paragraph for those who cannot see the drawing."""
    name = METHOD_NAMES.get(run.spec.method, run.spec.method)
    stars = f" and {len(found.prototypes)} prototypes" if len(found.prototypes) else ""
    return (
        f"{method} map of the {found.modality} embeddings of {len(found.rows)} clips{stars}, {name}, target "
        f"{run.spec.target}. The nearest neighbour before the map is of the same class for {percent(found.same_class)} "
        f"% of the clips, of the same domain for {percent(found.same_domain)} %."
    )
