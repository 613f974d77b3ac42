"""Arrays as a user of scikit-learn has them: checked, labels and domains encoded, missing rows found."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError, choose

UNLABELED = -1  # of an encoded label, and of a label as scikit-learn's semi-supervised classifiers read it
PLAIN = "features"  # name of the one modality of a plain array
NAMED_ROWS = 5  # rows that a message names, of all it is about


class InputError(UsageError, ValueError):
    """Arrays or parameters of an estimator that are not allowed; scikit-learn expects a ``ValueError``."""


@dataclass(frozen=True)
class Modality:
    """Features of one modality."""

    values: NDArray[np.float64]  # (rows, views, dim), zero where absent; view 0 is the clean one
    present: NDArray[np.bool_]  # (rows,)
    step: float  # relative distance of two neighbouring numbers of the type that the features came in

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.present.shape != self.values.shape[:1]:
            raise ValueError(f"values are {self.values.shape} and present is {self.present.shape}")

    @property
    def clean(self) -> NDArray[np.float64]:
        """The clean view, ``(rows, dim)``."""
        return self.values[:, 0]


def read_modalities(X: Mapping[str, Any], known: Sequence[str] = ()) -> dict[str, Modality]:
    """Check a dict of arrays ``(rows, dim)`` or ``(rows, views, dim)``; a missing row is all NaN.

    Args:
        X: arrays, lists or data frames per modality.
        known: modalities that are allowed, at least one of them given; empty: any.

    Raises:
        InputError: no modality, another name, other numbers of rows, more or fewer than 2 or 3 axes, no column, an
            infinite number, a row that is NaN in part, or rows without any modality.
    """
    if not X:
        raise InputError("X is an empty dict; give an array per modality, for example {'video': A, 'audio': B}")
    for name in X:
        if not isinstance(name, str):
            raise InputError(f"a modality is named {name!r}; names of modalities are text")
        if known:
            _choose("modality of this estimator", name, known)
    found = {name: _modality(name, array) for name, array in X.items()}
    rows = {name: len(modality.present) for name, modality in found.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} {number}" for name, number in rows.items())
        raise InputError(f"the modalities have different numbers of rows: {counts}; a missing row is a row of NaN")
    nothing = np.flatnonzero(~np.any([modality.present for modality in found.values()], axis=0))
    if len(nothing):
        raise InputError(
            f"{len(nothing)} of {next(iter(rows.values()))} rows have no modality at all ({_named(nothing)}); every "
            f"row needs at least one of {', '.join(found)}: leave such rows out"
        )
    return found


def _choose(kind: str, name: str, allowed: Sequence[str]) -> str:
    try:
        return choose(kind, name, allowed)
    except UsageError as error:
        raise InputError(str(error)) from None


def _named(rows: NDArray[np.int64]) -> str:
    """Positions of rows, the first few."""
    more = ", ..." if len(rows) > NAMED_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:NAMED_ROWS]))}{more}"


def _modality(name: str, array: Any) -> Modality:
    """One array of a dict."""
    from sklearn.utils import check_array

    kind = getattr(array, "dtype", None)
    # Refuses sparse, complex and text, infinite numbers, and no row or no column.
    values: NDArray[np.float64] = check_array(
        array,
        dtype=np.float64,
        ensure_all_finite="allow-nan",
        allow_nd=True,
        ensure_min_features=1,
        input_name=name,
    )
    if values.ndim == 2:
        values = values[:, None]
    if values.ndim != 3 or 0 in values.shape:
        raise InputError(f"{name} has the shape {np.shape(array)}; it must be (rows, dim) or (rows, views, dim)")
    missing: NDArray[np.bool_] = np.isnan(values)
    present: NDArray[np.bool_] = ~np.asarray(missing.all((1, 2)))
    partly = np.flatnonzero(missing.any((1, 2)) & present)
    if len(partly):
        raise InputError(
            f"{name} is NaN in part in {_named(partly)}; a missing modality is a row that is NaN as a whole. Fill in "
            "single values first, for example with sklearn.impute.SimpleImputer"
        )
    return Modality(np.where(present[:, None, None], values, 0.0), present, float_step(kind))


def float_step(dtype: Any) -> float:
    """Relative distance of two neighbouring numbers of a type; of anything but a floating type that of float64."""
    floating = isinstance(dtype, np.dtype) and dtype.kind == "f"
    return float(np.finfo(dtype if floating else np.float64).eps)


def read_labels(y: Any, rows: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes, and the position of every row's class among them; ``UNLABELED`` where there is no label.

    No label is -1 in numbers. In text it is -1 (the number), None, NaN or the empty text, in an array of objects or
    in a list; an array of fixed-width text can only hold the empty one. The text "-1" is refused: it is what numpy
    makes of -1 among texts.

    Args:
        y: labels.
        rows: number of rows of X.

    Raises:
        InputError: no label, other than one per row, fewer than two classes, the text "-1", or classes of types that
            have no order.
        ValueError: what scikit-learn refuses as classes, for example fractions.
    """
    from sklearn.utils.multiclass import check_classification_targets

    labels, missing = without_label(y)
    if len(labels) != rows:
        raise InputError(f"y has {len(labels)} labels and X has {rows} rows; give one label per row, -1 for none")
    if missing.all():
        raise InputError(f"none of the {rows} rows has a label; label at least one row of each class")
    try:
        classes, codes = np.unique(labels[~missing], return_inverse=True)
    except TypeError:
        kinds = ", ".join(sorted({type(value).__name__ for value in labels[~missing]}))
        raise InputError(f"the classes in y are of the types {kinds}, which have no order; use one type") from None
    check_classification_targets(labels[~missing])
    if len(classes) < 2:
        raise InputError(
            f"y has 1 class, {classes[0]}, and {int(missing.sum())} rows without a label; a classifier needs at least "
            "2 classes. -1 means no label: if it is one of the classes, give that class another name"
        )
    positions = np.full(rows, UNLABELED, dtype=np.int64)
    positions[~missing] = codes
    return classes, positions


def without_label(y: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Labels as an array ``(rows,)``, and which of them are none.

    Raises:
        InputError: no labels, or the text "-1".
        ValueError: labels with more than one axis, or numbers that are not finite.
    """
    from sklearn.utils import assert_all_finite, column_or_1d

    if y is None:
        raise InputError("the estimator requires y to be passed, but the target y is None; -1 is a row without a label")
    # numpy would turn the -1 of ["a", -1] into a text.
    if isinstance(y, (list, tuple)) and any(isinstance(value, str) for value in y):
        y = np.array(y, dtype=object)
    labels: NDArray[Any] = column_or_1d(y, warn=True)
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
    if labels.dtype.kind in "bifu":
        return labels, labels == UNLABELED if labels.dtype.kind in "if" else np.zeros(len(labels), dtype=bool)
    values = (labels.astype("U") if labels.dtype.kind == "S" else labels).tolist()
    if "-1" in [value for value in values if isinstance(value, str)]:
        raise InputError(
            "y holds the text '-1', which numpy makes of the number -1 among texts; write y as a list, or as an array "
            "with dtype=object, and a row without a label as -1 or None"
        )
    return labels, np.array([is_none(value) or value in ("", UNLABELED) for value in values], dtype=bool)


def is_none(value: object) -> bool:
    """Whether a value stands for nothing: None, NaN, or what pandas has for them."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def read_domains(domain: Any, rows: int) -> tuple[tuple[Hashable, ...], NDArray[np.int64]]:
    """Domains in the order of their first row, and the position of every row's domain.

    Args:
        domain: a hashable value per row; ``None``: one domain.
        rows: number of rows of X.

    Raises:
        InputError: other than one value per row, or a row without a domain.
    """
    if domain is None:
        return ("all",), np.zeros(rows, dtype=np.int64)
    values = list(domain.tolist() if hasattr(domain, "tolist") else domain)
    if len(values) != rows:
        raise InputError(f"domain has {len(values)} values and X has {rows} rows; give one domain per row")
    if any(is_none(value) for value in values):
        at = np.array([i for i, value in enumerate(values) if is_none(value)])
        raise InputError(f"{_named(at)} of X has no domain; give one per row, rows of unknown origin one of their own")
    try:
        places = {value: position for position, value in enumerate(dict.fromkeys(values))}
    except TypeError as error:
        raise InputError(f"a domain is not hashable ({error}); use numbers, texts or tuples") from None
    return tuple(places), np.array([places[value] for value in values], dtype=np.int64)


def take_rows(X: Any, rows: Any) -> Any:
    """Some rows of a dict of arrays, or of one array or data frame.

    Args:
        X: per modality an array with a first axis of rows, or one such array.
        rows: positions or a mask.
    """
    if isinstance(X, Mapping):
        return {modality: take_rows(x, rows) for modality, x in X.items()}
    return X.iloc[rows] if hasattr(X, "iloc") else np.asarray(X)[rows]


def leave_one_domain_out(domain: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of training and of test rows, every domain being the test once, in the order of their first rows.

    With ``take_rows`` this is cross-validation by domain for a dict of arrays, which scikit-learn's own loops do not
    take.

    Args:
        domain: a hashable value per row.

    Raises:
        InputError: fewer than two domains.
    """
    names, positions = read_domains(domain, len(domain))
    if len(names) < 2:
        raise InputError(f"there is one domain, {names[0]!r}; leaving it out leaves nothing to train on")
    for number in range(len(names)):
        yield np.flatnonzero(positions != number), np.flatnonzero(positions == number)
