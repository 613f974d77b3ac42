"""Model selection: which evaluation of a finished run is reported. Rules read stored curves, after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.errors import UsageError, choose

Curves = Mapping[str, Sequence[float | None]]


def _best(curves: Curves, name: str, rule: str) -> int:
    """Position of the highest value; ties go to the later evaluation, as in SSMDG's release."""
    values = [(-1.0 if value is None else value, i) for i, value in enumerate(curves.get(name, ()))]
    if not values or max(values)[0] < 0:
        raise UsageError(f"selection {rule!r} needs the curve {name!r}, which has no values; use --selection last")
    return max(values)[1]


def last(curves: Curves) -> int:
    """The last evaluation: uses no labels at all."""
    return len(curves["step"]) - 1


def source_val(curves: Curves) -> int:
    """Highest accuracy on the source domains' validation clips: uses their labels, more than the budget holds."""
    return _best(curves, "val/fused", "source-val")


def oracle(curves: Curves) -> int:
    """Highest accuracy on the target domain: an upper bound, never a result."""
    return _best(curves, "target/fused", "oracle")


def label_honest(curves: Curves) -> int:
    """Highest mean accuracy over folds of the run's own labeled clips: uses no label outside the budget.

    Every fold is a run that is trained without that part of the labeled clips and validated on it.
    """
    return _best(curves, "folds/fused", "label-honest")


SELECTION: dict[str, Callable[[Curves], int]] = {
    "last": last,
    "label-honest": label_honest,
    "source-val": source_val,
    "oracle": oracle,
}


def picks_latest(curves: Curves, rule: str) -> bool:
    """Whether a rule would report the latest evaluation, were it the last one."""
    try:
        return _position(curves, rule) == len(curves["step"]) - 1
    except UsageError:  # no values yet
        return False


def _position(curves: Curves, rule: str) -> int:
    return 0 if len(curves["step"]) == 1 else SELECTION[rule](curves)  # of one evaluation, that one


def selected(curves: Curves, rule: str) -> dict[str, float | None]:
    """Return every curve's value at the evaluation that a rule picks, and ``selected_step``."""
    choose("selection rule", rule, SELECTION)
    position = _position(curves, rule)
    values = {name: series[position] for name, series in curves.items() if name != "step"}
    return {"selected_step": curves["step"][position], **values}
