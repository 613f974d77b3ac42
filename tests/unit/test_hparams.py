"""Hyperparameters of a run: which names there are, what values are allowed, and what a sweep makes of overrides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cache.layout import ClipRecord, Status
from cache.store import FeatureTable
from heads.fusion import FUSIONS
from heads.method import SHARED_HPARAMS
from heads.methods import METHODS
from heads.mixing import MIXING_HPARAMS
from heads.optimiser import OPTIMISERS, Rate
from pipeline import plan
from pipeline.classical import CLASSICAL
from pipeline.errors import UsageError
from pipeline.hparams import STRUCTURE, head_shape, rate, resolve_hparams, stacked_hparams
from pipeline.plan import SweepSettings, plan_runs
from pipeline.types import RunSpec
from tests.unit.test_bank import manifest
from tests.unit.test_cache_store import identity
from tests.unit.test_types import run_spec

DIMS = [("video", 40), ("flow", 30), ("audio", 20)]
ALWAYS = {"adapter", "fusion", "fused_hidden", "translator_hidden", "mixing", "optimizer", *SHARED_HPARAMS}

every_method = pytest.mark.parametrize("method", METHODS)
every_name = pytest.mark.parametrize("method", [*METHODS, *CLASSICAL])


@every_method
def test_a_method_has_the_shared_hyperparameters_its_own_and_those_of_its_mixing(method: str) -> None:
    recipe = METHODS[method]
    own = MIXING_HPARAMS[str(recipe.hparams.get("mixing", "none"))]
    found = resolve_hparams(method, DIMS, {})
    assert found.keys() == ALWAYS | recipe.hparams.keys() | own.keys()
    for name, value in {**SHARED_HPARAMS, **own, **recipe.hparams}.items():
        assert found[name] == value, name


@pytest.mark.parametrize("method", CLASSICAL)
def test_a_method_that_is_fitted_has_its_own_hyperparameters_alone(method: str) -> None:
    assert resolve_hparams(method, DIMS, {}) == CLASSICAL[method].hparams
    with pytest.raises(UsageError, match=f"'mixing' is not a hyperparameter of {method}"):
        resolve_hparams(method, DIMS, {"mixing": "mm"})


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_only_sgd_has_a_momentum(optimizer: str) -> None:
    found = resolve_hparams("erm", DIMS, {"optimizer": optimizer})
    assert found.get("momentum") == (0.9 if optimizer == "sgd" else None)
    if optimizer == "sgd":
        assert resolve_hparams("erm", DIMS, {"optimizer": optimizer, "momentum": 0.5})["momentum"] == 0.5
    else:
        with pytest.raises(UsageError, match="'momentum' is not a hyperparameter of erm"):
            resolve_hparams("erm", DIMS, {"optimizer": optimizer, "momentum": 0.5})


@pytest.mark.parametrize("mixing", MIXING_HPARAMS)
@pytest.mark.parametrize("method", ["erm", "mm", "bmm", "ssmdg"])
def test_a_mixing_brings_its_own_hyperparameters_and_no_others(method: str, mixing: str) -> None:
    found = resolve_hparams(method, DIMS, {"mixing": mixing})
    assert found["mixing"] == mixing
    assert {name: found[name] for name in found if name in MIXING_HPARAMS["bmm"]} == MIXING_HPARAMS[mixing]
    assert found.keys() == ALWAYS | MIXING_HPARAMS[mixing].keys() | METHODS[method].hparams.keys()


def test_a_hyperparameter_of_another_mixing_is_refused() -> None:
    with pytest.raises(UsageError, match="'mix_alpha' is not a hyperparameter of erm"):
        resolve_hparams("erm", DIMS, {"mix_alpha": 0.3})
    with pytest.raises(UsageError, match="'mix_warmup_epochs' is not a hyperparameter of mm"):
        resolve_hparams("mm", DIMS, {"mix_warmup_epochs": 2.0})
    assert resolve_hparams("mm", DIMS, {"mix_alpha": 0.3})["mix_alpha"] == 0.3


@pytest.mark.parametrize(
    ("overrides", "fused", "translator"),
    [
        ({}, 90, 40),
        ({"adapter": "scale"}, 90, 40),
        ({"adapter": "project", "adapter_width": 12.0}, 36, 12),
        ({"adapter": "project"}, 512, 256),
        ({"adapter": "project", "adapter_width": 2000}, 512, 1028),
        ({"fused_hidden": 7, "translator_hidden": 8.0}, 7, 8),
    ],
)
def test_hidden_sizes_follow_the_embeddings_up_to_the_papers(
    overrides: dict[str, float | str], fused: int, translator: int
) -> None:
    found = resolve_hparams("ssmdg", DIMS, overrides)
    assert (found["fused_hidden"], found["translator_hidden"]) == (fused, translator)
    assert isinstance(found["fused_hidden"], int)
    assert isinstance(found["translator_hidden"], int)


def test_only_the_adapter_project_has_a_width() -> None:
    assert resolve_hparams("erm", DIMS, {"adapter": "project"})["adapter_width"] == 256
    assert resolve_hparams("erm", DIMS, {"adapter": "project", "adapter_width": 12.0})["adapter_width"] == 12
    for adapter in ("none", "scale", "residual"):
        assert "adapter_width" not in resolve_hparams("erm", DIMS, {"adapter": adapter})
        with pytest.raises(UsageError, match="'adapter_width' is not a hyperparameter of erm"):
            resolve_hparams("erm", DIMS, {"adapter": adapter, "adapter_width": 12.0})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("treshold", 0.9, "'treshold' is not a hyperparameter of ssmdg. Did you mean 'threshold'?"),
        ("treshold", 0.9, "Allowed: adapter, fusion"),
        ("mixing", "bm", "'bm' is not a mixing. Did you mean 'bmm'? Allowed: none, mm, bmm"),
        ("adapter", "projet", "Did you mean 'project'? Allowed: none, scale, residual, project"),
        ("fusion", "film2", "'film2' is not a fusion. Did you mean 'film'?"),
        ("optimizer", "sdg", "Did you mean 'sgd'? Allowed: adamw, adam, sgd"),
        ("schedule", "cosinus", "'cosinus' is not a schedule. Did you mean 'cosine'? Allowed: constant, cosine"),
        ("schedule", 1.0, "'1.0' is not a schedule"),
        ("threshold", "high", "hyperparameter threshold is 'high'; it must be a finite number"),
        ("threshold", float("nan"), "hyperparameter threshold is nan; it must be a finite number"),
        ("learning_rate", float("inf"), "hyperparameter learning_rate is inf; it must be a finite number"),
        ("fused_hidden", "big", "hyperparameter fused_hidden is 'big'; it must be a finite number"),
        ("fused_hidden", 2.5, "hyperparameter fused_hidden is 2.5; it must be a whole number of at least 1"),
        ("fused_hidden", 0, "hyperparameter fused_hidden is 0; it must be a whole number of at least 1"),
        ("translator_hidden", -1.0, "hyperparameter translator_hidden is -1.0; it must be a whole number"),
        ("dropout_fused", 1.0, "hyperparameter dropout_fused is 1.0; a dropout probability is at least 0 and less"),
        ("dropout_translator", -0.1, "hyperparameter dropout_translator is -0.1; a dropout probability"),
    ],
)
def test_what_is_not_allowed_is_named(name: str, value: float | str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_hparams("ssmdg", DIMS, {name: value})
    assert message in str(caught.value)


@pytest.mark.parametrize("name", [name for name in resolve_hparams("ssmdg", DIMS, {}) if name.startswith("dropout_")])
def test_a_dropout_is_at_least_zero_and_less_than_one(name: str) -> None:
    for value in (0, 0.999):
        assert resolve_hparams("ssmdg", DIMS, {name: value})[name] == value
    for value in (-1e-9, 1, 1.5):
        with pytest.raises(UsageError, match=f"hyperparameter {name} is "):
            resolve_hparams("ssmdg", DIMS, {name: value})


@pytest.mark.parametrize(("width", "said"), [(2.5, "is 2.5"), (-3, "is -3")])
def test_the_width_of_an_adapter_is_a_whole_number(width: float, said: str) -> None:
    with pytest.raises(UsageError, match=f"hyperparameter adapter_width {said}; it must be a whole number"):
        resolve_hparams("erm", DIMS, {"adapter": "project", "adapter_width": width})


@pytest.mark.parametrize("width", ["wide", float("nan"), float("inf")])
def test_a_width_that_is_no_number_is_refused_with_a_message(width: float | str) -> None:
    with pytest.raises(UsageError, match=r"hyperparameter adapter_width is .*; it must be a finite number"):
        resolve_hparams("erm", DIMS, {"adapter": "project", "adapter_width": width})


def test_a_width_of_zero_is_refused_with_the_right_message() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_hparams("erm", DIMS, {"adapter": "project", "adapter_width": 0})
    assert "it must be a whole number of at least 1" in str(caught.value)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "momentum"])
def test_a_negative_rate_is_refused_before_training(name: str) -> None:
    with pytest.raises(UsageError):
        resolve_hparams("erm", DIMS, {"optimizer": "sgd", name: -1.0})


@every_name
def test_unknown_methods_and_variants_are_named(method: str) -> None:
    with pytest.raises(UsageError, match=r"'ssmgd' is not a method. Did you mean 'ssmdg'\?"):
        resolve_hparams("ssmgd", DIMS, {})
    with pytest.raises(UsageError, match=r"'papers' is not a variant. Did you mean 'paper'\? Allowed: strict, paper"):
        resolve_hparams(method, DIMS, {}, "papers")  # type: ignore[arg-type]


@every_name
def test_the_variant_paper_sets_what_the_recipe_says_and_nothing_else(method: str) -> None:
    strict, paper = resolve_hparams(method, DIMS, {}), resolve_hparams(method, DIMS, {}, "paper")
    switches = METHODS[method].paper if method in METHODS else {}
    assert switches.keys() <= strict.keys()
    assert paper == {**strict, **switches}
    assert all(strict[name] != value for name, value in switches.items())
    assert (paper == strict) == (not switches)


def test_some_method_has_switches_of_its_paper() -> None:
    """Otherwise the test above would test nothing."""
    assert METHODS["ssmdg"].paper == {"unseen_prototypes": 1.0, "distances_after_dropout": 1.0}


def test_an_override_beats_the_variant() -> None:
    found = resolve_hparams("ssmdg", DIMS, {"unseen_prototypes": 0.0}, "paper")
    assert found == {**resolve_hparams("ssmdg", DIMS, {}), "distances_after_dropout": 1.0}


def spelled_out(method: str, choice: dict[str, float | str]) -> tuple[RunSpec, RunSpec]:
    """A run by its defaults, and with all of them given as the command line does: every number as a float."""
    found = resolve_hparams(method, DIMS, choice)
    plain = {k: v if isinstance(v, str) else float(v) for k, v in found.items()}
    return run_spec(hparams=found), run_spec(hparams=resolve_hparams(method, DIMS, {**choice, **plain}))


@every_method
@pytest.mark.parametrize("choice", [{}, {"optimizer": "sgd"}, {"mixing": "bmm"}], ids=str)
def test_a_default_that_is_written_out_is_the_same_run(method: str, choice: dict[str, float | str]) -> None:
    short, long = spelled_out(method, choice)
    assert short == long
    assert short.run_id == long.run_id


def test_the_default_width_that_is_written_out_is_the_same_run() -> None:
    short, long = spelled_out("erm", {"adapter": "project"})
    assert short.run_id == long.run_id


def test_a_stack_holds_choices_as_positions_and_no_structure() -> None:
    first = resolve_hparams("bmm", DIMS, {"schedule": "linear", "mix_ratio_form": "raw"})
    second = resolve_hparams("bmm", DIMS, {"mix_label_degree": "mean", "learning_rate": 0.5})
    found = stacked_hparams([run_spec(hparams=first), run_spec(hparams=second)])
    assert found.keys() == first.keys() - STRUCTURE.keys()
    assert {name: found[name].tolist() for name in ("schedule", "mix_ratio_form", "mix_label_degree")} == {
        "schedule": [2.0, 0.0],
        "mix_ratio_form": [1.0, 0.0],
        "mix_label_degree": [0.0, 1.0],
    }
    assert torch.equal(found["learning_rate"], torch.tensor([1e-3, 0.5]))


def test_a_run_has_the_rate_that_its_hyperparameters_say() -> None:
    plain = {"learning_rate": 0.1, "weight_decay": 0.2, "schedule": "cosine", "warmup_steps": 3.0}
    spec = run_spec(hparams=resolve_hparams("erm", DIMS, {**plain, "optimizer": "sgd", "momentum": 0.4}), steps=77)
    assert rate(spec) == Rate(0.1, 0.2, 0.4, "cosine", 3, 77)
    assert rate(replace(spec, hparams=resolve_hparams("erm", DIMS, plain))).momentum == 0


def test_runs_share_a_shape_when_their_structure_is_the_same() -> None:
    def shape(**overrides: float | str) -> object:
        return head_shape(run_spec(hparams=resolve_hparams("erm", DIMS, overrides)), DIMS)

    base = shape()
    assert shape(learning_rate=0.5, schedule="linear", dropout_fused=0.1) == base
    changes: list[dict[str, float | str]] = [
        {"adapter": "scale"},
        {"adapter": "project"},
        {"fused_hidden": 5},
        {"translator_hidden": 5},
        {"mixing": "mm"},
        *({"fusion": name} for name in FUSIONS if name != "concat"),
    ]
    shapes = [shape(**change) for change in changes]
    assert all(one != base for one in shapes)
    assert len(set(shapes)) == len(shapes)
    assert shape(adapter="project", adapter_width=8) != shape(adapter="project")


def own(method: str, hparams: dict[str, float | str], *methods: str) -> dict[str, float | str]:
    return plan._own_overrides(method, DIMS, SweepSettings(methods=methods or (method,), hparams=hparams))


def test_an_override_goes_to_the_methods_that_know_it() -> None:
    both = {"threshold": 0.8, "mix_alpha": 0.3, "learning_rate": 0.1, "neighbors": 3.0}
    methods = ("erm", "mm", "fixmatch", "knn")
    assert own("erm", both, *methods) == {"learning_rate": 0.1}
    assert own("mm", both, *methods) == {"mix_alpha": 0.3, "learning_rate": 0.1}
    assert own("fixmatch", both, *methods) == {"threshold": 0.8, "learning_rate": 0.1}
    assert own("knn", both, *methods) == {"neighbors": 3.0}


def test_a_mixing_that_is_set_makes_its_hyperparameters_known() -> None:
    chosen: dict[str, float | str] = {"mixing": "bmm", "mix_alpha": 0.3, "mix_warmup_epochs": 1.0}
    for method in ("erm", "mm", "ssmdg"):
        assert own(method, chosen, "erm", "mm", "ssmdg", "ncm") == chosen
    assert own("ncm", chosen, "erm", "mm", "ssmdg", "ncm") == {}
    with pytest.raises(UsageError, match="'mix_warmup_epochs' is not a hyperparameter"):
        own("erm", {"mixing": "mm", "mix_warmup_epochs": 1.0})
    with pytest.raises(UsageError, match="'mix_alpha' is not a hyperparameter"):
        own("mm", {"mixing": "none", "mix_alpha": 0.3})


def test_an_optimiser_that_is_set_makes_its_momentum_known() -> None:
    chosen: dict[str, float | str] = {"optimizer": "sgd", "momentum": 0.5}
    assert own("erm", chosen, "erm", "knn") == chosen
    with pytest.raises(UsageError, match="'momentum' is not a hyperparameter"):
        own("erm", {"momentum": 0.5})


def test_an_override_that_no_chosen_method_knows_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"'treshold' is not a hyperparameter. Did you mean 'threshold'\?"):
        own("erm", {"treshold": 0.9}, "erm", "ssmdg")
    with pytest.raises(UsageError, match="'threshold' is not a hyperparameter"):
        own("erm", {"threshold": 0.9}, "erm", "mm")
    with pytest.raises(UsageError, match="'mixing' is not a hyperparameter"):
        own("ncm", {"mixing": "mm"}, "ncm", "knn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "papers"}, r"'papers' is not a variant. Did you mean 'paper'\? Allowed: strict, paper"),
        ({"precision": "float16"}, "'float16' is not a precision.* Allowed: float32, bfloat16"),
        ({"projection": "pca"}, "projection 'pca' has no width"),
        ({"projection": "pcb:3"}, "projection 'pcb:3' is of unknown kind 'pcb'"),
        ({"selection": "best"}, "'best' is not a selection rule"),
        ({"target_part": "val"}, "'val' is not a target part"),
        ({"methods": ("ssmgd",)}, "'ssmgd' is not a method"),
        ({"methods": ()}, "there is nothing to run"),
        ({"labels": "many"}, "labels: 'many'"),
        ({"seeds": (0, 0)}, "they must differ"),
    ],
)
def test_settings_of_a_sweep_are_checked_before_anything_is_read(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SweepSettings(**change)  # type: ignore[arg-type]


def test_every_setting_reaches_the_planned_runs() -> None:
    two = manifest("a", "b")
    clips = (two.clips[0], replace(two.clips[1], domain="kitchen"))
    two = replace(two, clips=clips, domains=("yard", "kitchen"))
    values = np.zeros((2, 1, 40), dtype=np.float16)
    records = tuple(ClipRecord(c, Status.PRESENT) for c in "ab")
    tables = {m: FeatureTable(identity(), f"digest of {m}", ("a", "b"), values, records) for m in ("video", "audio")}
    settings = SweepSettings(
        methods=("ssmdg", "ncm"),
        seeds=(4,),
        variant="paper",
        projection="pca:16",
        precision="bfloat16",
        patience=3,
        hparams={"mixing": "mm", "mix_alpha": 0.5},
    )
    specs = plan_runs(two, tables, settings)
    assert [(s.method, s.sources, s.target) for s in specs] == [
        (m, (source,), target)
        for m in ("ssmdg", "ncm")
        for source, target in (("kitchen", "yard"), ("yard", "kitchen"))
    ]
    overrides: dict[str, float | str] = {"mixing": "mm", "mix_alpha": 0.5}
    for spec in specs:
        assert (spec.projection, spec.precision, spec.patience) == ("pca:16", "bfloat16", 3)
        assert (spec.split_seed, spec.init_seed) == (4, 4)
        trained = spec.method == "ssmdg"
        expected = resolve_hparams(spec.method, [("video", 16), ("audio", 16)], overrides if trained else {}, "paper")
        assert spec.hparams == expected
        assert [spec.features[m]["digest"] for m in spec.modalities] == ["digest of video", "digest of audio"]
    assert specs[0].hparams["fused_hidden"] == 32
    assert specs[0].hparams["unseen_prototypes"] == 1
