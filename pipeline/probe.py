"""Linear probe: are the frozen features informative inside a domain, when every label is known?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.layout import write_atomically
from cache.store import FeatureTable
from pipeline.reports.inputs import Probe
from pipeline.types import Manifest, digest


def linear_probe(manifest: Manifest, tables: Mapping[str, FeatureTable], store: Path) -> list[Probe]:
    """Fit logistic regression on all training labels of a domain and test on its ``test`` part.

    Features are standardised with the training part's statistics; a clip without the modality is left out, and counts
    with zeros in the row ``all`` (all modalities side by side). Results are kept in ``store`` by the features' digests.

    Args:
        manifest: the data set.
        tables: cached features per modality; the clean view is used.
        store: folder of earlier probes.
    """
    key = digest({"manifest": manifest.digest, "features": {m: t.digest for m, t in tables.items()}})[:16]
    path = store / f"{key}.json"
    if path.exists():
        return [Probe(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    ids = [clip.clip_id for clip in manifest.clips]
    selected = {m: table.select(ids) for m, table in tables.items()}
    clean = {m: tables[m].identity.views.index("clean0") for m in tables}
    labels = np.array(manifest.label_indices())
    rows: list[Probe] = []
    for domain in manifest.domains:
        here = np.array([clip.domain == domain for clip in manifest.clips])
        train = here & np.array([clip.split == "train" for clip in manifest.clips])
        test = here & np.array([clip.split == "test" for clip in manifest.clips])
        parts = {
            m: (_scaled(values[:, clean[m]].astype(np.float64), present & train) * present[:, None], present)
            for m, (values, present) in selected.items()
        }
        if len(parts) > 1:
            some = np.any([present for _, present in parts.values()], axis=0)
            parts["all"] = (np.concatenate([x for x, _ in parts.values()], axis=1), some)
        for modality, (x, present) in parts.items():
            probe = _fit(modality, domain, x, labels, present & train, present & test)
            if probe is not None:
                rows.append(probe)
    store.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps([asdict(row) for row in rows]))
    return rows


def _scaled(x: NDArray[np.float64], train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Standardise columns with the statistics of the training rows."""
    if not train.any():
        return x
    scaled: NDArray[np.float64] = (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)
    return scaled


def _fit(
    modality: str,
    domain: str,
    x: NDArray[np.float64],
    labels: NDArray[np.int64],
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
) -> Probe | None:
    """Fit and test one probe; ``None`` where the domain has too little to do so."""
    if not test.any() or len(np.unique(labels[train])) < 2:
        return None
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes: any solution will do
        model = LogisticRegression(C=0.1, max_iter=300).fit(x[train], labels[train])
    accuracy = float((model.predict(x[test]) == labels[test]).mean())
    return Probe(modality, domain, int(train.sum()), int(test.sum()), accuracy)
