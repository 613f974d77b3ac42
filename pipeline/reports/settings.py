"""What one table holds fixed, and how it is put into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from pipeline.types import PerClass, RunResult, parse_budget

METHOD_NAMES = {  # in the order of the tables
    "erm": "Labeled only (ERM)",
    "logistic": "Logistic regression",
    "ncm": "Nearest class mean",
    "knn": "k nearest neighbours",
    "mm": "MM",
    "bmm": "B-MM",
    "ogm-ge": "OGM-GE",
    "pseudolabel": "PseudoLabel",
    "fixmatch": "FixMatch",
    "freematch": "FreeMatch",
    "ssmdg": "SSMDG",
    "supervised": "Fully supervised (upper bound)",
}

UPPER_BOUNDS = frozenset({"supervised"})  # methods that see labels which the others do not; never marked as best

SELECTION_RULES = {
    "last": "the last evaluation of every run; nothing is selected",
    "label-honest": "the evaluation with the highest mean accuracy over folds of the labeled clips themselves: runs "
    "trained without a fold and validated on it; no label outside the budget is used",
    "source-val": "the evaluation with the highest accuracy on the source domains' validation clips, "
    "whose labels the budget does not count",
    "oracle": "the best evaluation on the target's own labels, which nobody has in practice: an upper bound",
}
TARGET_PARTS = {"all": "all clips of the target domain", "test": "the test part of the target domain"}
INSIDE = "one domain: trained on its train part, tested on its test part; nothing here is about a new domain"
PROTOCOLS = {
    "strict": "labeled, unlabeled, validation and test clips are disjoint, groups stay whole, "
    "and no clip of the target domain is seen in training",
    "paper": "the labeled clips of the authors' code (one fixed draw for all seeds), validation on the sources' test "
    "parts, groups not looked at",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything of a spec but domains, seeds, method and its hyperparameters: runs share a table only if all agree."""

    dataset: str
    manifest_digest: str
    classes: tuple[str, ...]
    num_sources: int  # source domains of each run
    inside: bool  # the target is the only domain there is: no new domain
    modalities: tuple[str, ...]
    features: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # (modality, ((field, value), ...)), sorted
    budget: str
    steps: int
    batch_labeled: int
    batch_unlabeled: int
    eval_every: int  # steps
    protocol: str
    target_part: str
    selection: str  # the rule that picked the reported evaluation
    unlabeled_domains: tuple[str, ...]  # domains of which no clip is labeled where they are sources
    given_labels: bool  # the labeled clips were given as lists and not drawn
    folds: int  # of the selection rule label-honest
    projection: str  # of the features
    precision: str  # of matrix products in training
    patience: int  # evaluations; 0: no early stopping
    version: str

    @classmethod
    def of(cls, result: RunResult) -> Setting:
        """Return the setting of a run."""
        spec = result.spec
        features = sorted((modality, tuple(sorted(values.items()))) for modality, values in spec.features.items())
        return cls(
            dataset=spec.dataset,
            manifest_digest=spec.manifest_digest,
            classes=spec.classes,
            num_sources=len(spec.sources),
            inside=spec.target in spec.sources,
            modalities=spec.modalities,
            features=tuple(features),
            budget=spec.budget,
            steps=spec.steps,
            batch_labeled=spec.batch_labeled,
            batch_unlabeled=spec.batch_unlabeled,
            eval_every=spec.eval_every,
            protocol=spec.protocol,
            target_part=spec.target_part,
            selection=result.selection,
            unlabeled_domains=spec.unlabeled_domains,
            given_labels=bool(spec.labeled_ids),
            folds=spec.folds,
            projection=spec.projection,
            precision=spec.precision,
            patience=spec.patience,
            version=spec.version,
        )

    @property
    def chance(self) -> float:
        """Accuracy of guessing uniformly among the classes, 0..1."""
        return 1 / len(self.classes)

    @property
    def budget_text(self) -> str:
        """The label budget in words."""
        budget = parse_budget(self.budget)
        if isinstance(budget, PerClass):
            return f"{budget.count} labeled {'clip' if budget.count == 1 else 'clips'} per class and source domain"
        return f"{budget} of each class of each source domain labeled"

    @property
    def title(self) -> str:
        """Data set, budget and modalities, the three things a reader looks for first."""
        return f"{self.dataset}: {self.budget_text}, {' + '.join(self.modalities)}"

    @property
    def selection_text(self) -> str:
        """The selection rule, with its meaning where the name is not enough."""
        meaning = SELECTION_RULES.get(self.selection)
        return f"{self.selection} ({meaning})" if meaning else self.selection

    @property
    def protocol_text(self) -> str:
        """The protocol, with its meaning."""
        if self.inside:
            return f"{self.protocol} ({INSIDE})"
        meaning = PROTOCOLS.get(self.protocol)
        return f"{self.protocol} ({meaning})" if meaning else self.protocol

    @property
    def target_text(self) -> str:
        """Which clips the target accuracy is measured on."""
        return TARGET_PARTS.get(self.target_part, self.target_part)

    def feature_rows(self) -> list[tuple[str, str, str]]:
        """(modality, field, value) of everything known about the cached features."""
        return [(modality, name, value) for modality, values in self.features for name, value in values]


def _order(setting: Setting) -> tuple[object, ...]:
    """Sort key: data set, more modalities first, budget by size, then whatever is left."""
    budget = parse_budget(setting.budget)
    size = (0, float(budget.count)) if isinstance(budget, PerClass) else (1, budget.share)
    rest = tuple(str(getattr(setting, field.name)) for field in fields(setting))
    return (setting.dataset, -len(setting.modalities), setting.modalities, size, setting.steps, rest)


def group_by_setting(results: Sequence[RunResult]) -> list[tuple[Setting, list[RunResult]]]:
    """Sort runs into settings; the order of the settings does not depend on the order of the runs."""
    groups: dict[Setting, list[RunResult]] = {}
    for result in results:
        groups.setdefault(Setting.of(result), []).append(result)
    return sorted(groups.items(), key=lambda group: _order(group[0]))


def setting_titles(settings: Sequence[Setting], name_of: Callable[[Setting], str] | None = None) -> list[str]:
    """Title of each setting; where two would read the same, the fields in which they differ are added.

    Args:
        settings: all that are told apart.
        name_of: what a title begins with; None for ``Setting.title``.
    """
    names = [setting.title if name_of is None else name_of(setting) for setting in settings]
    groups: dict[str, list[Setting]] = {}
    for name, setting in zip(names, settings, strict=True):
        groups.setdefault(name, []).append(setting)
    differing = {name: _differing(twins) for name, twins in groups.items()}
    titles = []
    for name, setting in zip(names, settings, strict=True):
        own = [f"{field.replace('_', ' ')} {_short(getattr(setting, field))}" for field in differing[name]]
        own += _feature_differences(setting, groups[name]) if len(groups[name]) > 1 else []
        titles.append(f"{name} ({', '.join(own)})" if own else name)
    return titles


def _differing(twins: Sequence[Setting]) -> list[str]:
    """Names of the fields, other than long ones, that not all of these settings share."""
    names = [field.name for field in fields(Setting) if field.name not in ("features", "classes")]
    return [name for name in names if len({getattr(twin, name) for twin in twins}) > 1]


def _feature_differences(setting: Setting, twins: Sequence[Setting]) -> list[str]:
    """The facts about the features of ``setting`` that not all of its twins share."""
    shared = set(setting.feature_rows())
    for twin in twins:
        shared &= set(twin.feature_rows())
    own = [row for row in setting.feature_rows() if row not in shared]
    return [f"{modality} {name} {_short(value)}" for modality, name, value in own]


def _short(value: object) -> str:
    """Text of a value for a title; digests are cut to 12 characters."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def method_order(method: str) -> tuple[int, str]:
    """Sort key of methods: the known ones as in ``METHOD_NAMES``, then others by name."""
    names = list(METHOD_NAMES)
    return (names.index(method) if method in names else len(names), method)


@dataclass(frozen=True, slots=True)
class Variant:
    """A method with its resolved hyperparameters: one row of a table, one line of a figure."""

    method: str
    hparams: tuple[tuple[str, float | str], ...]  # (name, value), sorted by name

    @classmethod
    def of(cls, result: RunResult) -> Variant:
        """Return the variant of a run."""
        return cls(result.spec.method, tuple(sorted(result.spec.hparams.items())))

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key: known methods first, then values of the hyperparameters, numbers before text."""
        values = tuple((name, isinstance(v, str), v if isinstance(v, str) else float(v)) for name, v in self.hparams)
        return (method_order(self.method), values)


def runs_by_variant(results: Iterable[RunResult]) -> dict[Variant, list[RunResult]]:
    """Sort runs by variant, in table order."""
    groups: dict[Variant, list[RunResult]] = {}
    for result in results:
        groups.setdefault(Variant.of(result), []).append(result)
    return dict(sorted(groups.items(), key=lambda group: group[0].order))


def label_variants(variants: Iterable[Variant]) -> dict[Variant, str]:
    """Name of every variant, in table order; variants of one method are told apart by what differs between them."""
    ordered = sorted(set(variants), key=lambda variant: variant.order)
    methods = Counter(variant.method for variant in ordered)
    shared = Counter((variant.method, *pair) for variant in ordered for pair in variant.hparams)
    labels = {}
    for variant in ordered:
        twins = methods[variant.method]
        own = [f"{name} {value}" for name, value in variant.hparams if shared[variant.method, name, value] < twins]
        name = METHOD_NAMES.get(variant.method, variant.method)
        labels[variant] = f"{name}, {', '.join(own)}" if own else name
    return labels


def variant_labels(results: Sequence[RunResult]) -> dict[Variant, str]:
    """``label_variants`` of runs."""
    return label_variants(Variant.of(result) for result in results)
