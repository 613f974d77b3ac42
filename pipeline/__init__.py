"""pipe: cached frozen features and stacked lightweight heads for multimodal video with few labels.

``from pipeline import sweep, report`` are the commands for notebooks (``pipeline.api``);
``from pipeline import SSMDGClassifier`` is the estimator for arrays (``pipeline.estimator``).
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["FewLabelClassifier", "SSMDGClassifier", "__version__", "report", "sweep"]


def __getattr__(name: str) -> Any:
    if name in ("sweep", "report"):
        from pipeline import api

        return getattr(api, name)
    if name in ("FewLabelClassifier", "SSMDGClassifier"):
        from pipeline import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
