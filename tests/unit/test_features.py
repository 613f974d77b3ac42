"""What a user leaves open about features: backbones, weights, precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cache.store import FeatureGroup
from extractors.backbone import DEFAULT_BACKBONES, PRESETS
from extractors.encoder import PRECISIONS
from extractors.loading import Weights, random_weights
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.features import FeatureRequest, chosen_backbones, fast_precision, settle, weight_choices

AUDIO = ("audio",)


def request_(folder: Path, **changes: object) -> FeatureRequest:
    return replace(FeatureRequest(weights_folder=folder / "weights"), **changes)  # type: ignore[arg-type]


def make_group(cache: Path, settings: ExtractSettings, modality: str = "audio") -> None:
    """An empty group, as an extraction leaves it when it was stopped at once."""
    notes = {"weights": settings.weights_of(modality).note}
    identity = settings.identity("mine", modality)
    FeatureGroup.open_or_create(cache, identity, ["a"], settings.backbone(modality).dim, 1, {}, notes)


def vggsound(weights: Weights, precision: str = "float32") -> ExtractSettings:
    return ExtractSettings(
        AUDIO, {**DEFAULT_BACKBONES, "audio": "vggsound-r18"}, {"audio": weights}, precision={"audio": precision}
    )


def test_presets_and_names_make_one_backbone_per_modality() -> None:
    assert chosen_backbones((), "tiny") == DEFAULT_BACKBONES
    assert chosen_backbones(("bmm",), "tiny") == PRESETS["bmm"]
    assert chosen_backbones(("vggsound-r18",), "tiny") == {**DEFAULT_BACKBONES, "audio": "vggsound-r18"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("slowfast-r51",), "'slowfast-r51' is not a backbone. Did you mean 'slowfast-r50'"),
        (("slowfast-r50", "resnet18"), "'slowfast-r50' and 'resnet18', both for video"),
        (("torchvision:mvit_v3",), "mvit_v"),
    ],
)
def test_wrong_names_of_backbones(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen_backbones(names, "tiny")


def test_weights_are_for_all_or_for_one_and_never_for_built_in_ones() -> None:
    used = ["tiny-rgb", "vggsound-r18", "slowonly-r50-flow"]
    assert weight_choices(["random:3"], used) == {
        "tiny-rgb": "",
        "vggsound-r18": "random:3",
        "slowonly-r50-flow": "random:3",
    }
    assert weight_choices(["random:3", "vggsound-r18=vggsound"], used)["vggsound-r18"] == "vggsound"
    with pytest.raises(UsageError, match=r"'resnet18' is not a backbone of this command"):
        weight_choices(["resnet18=imagenet"], used)


def test_built_in_weights_need_nothing_and_stay_float32(tmp_path: Path) -> None:
    settings = settle(request_(tmp_path, precision="auto"), "mine", "tiny", tmp_path, extracting=True)
    assert settings.precision == dict.fromkeys(DEFAULT_BACKBONES, "float32")
    # The identity of caches made before weights could be chosen.
    assert settings.identity("mine", "audio") == ExtractSettings().identity("mine", "audio")
    assert "precision" not in settings.identity("mine", "audio").settings
    assert "kind" not in settings.identity("mine", "audio").settings["input"]


def test_weights_that_are_not_here_are_named_with_the_way_to_get_them(tmp_path: Path) -> None:
    wish = request_(tmp_path, backbones=("vggsound-r18",), modalities=AUDIO)
    with pytest.raises(UsageError) as caught:
        settle(wish, "mine", "tiny", tmp_path, extracting=True)
    for part in ("H.pth.tar", str(tmp_path / "weights"), "https://", "pipe weights fetch", "pipe weights add"):
        assert part in str(caught.value)


def test_training_needs_no_weights_where_the_cache_knows_them(tmp_path: Path) -> None:
    made = vggsound(Weights("sha256:abc", "pretrained on VGGSound, H.pth.tar of its authors"))
    make_group(tmp_path, made)
    wish = request_(tmp_path, backbones=("vggsound-r18",), modalities=AUDIO)
    assert settle(wish, "mine", "tiny", tmp_path, extracting=False).identity("mine", "audio") == made.identity(
        "mine", "audio"
    )
    with pytest.raises(UsageError, match="pipe weights fetch"):  # extraction would have to compute something
        settle(wish, "mine", "tiny", tmp_path, extracting=True)
    make_group(tmp_path, vggsound(Weights("sha256:def", "from the user's file own.pth")))
    with pytest.raises(UsageError, match=r"from 2 weights: sha256:abc .*; sha256:def"):
        settle(wish, "mine", "tiny", tmp_path, extracting=False)
    by_name = replace(wish, weights=("vggsound",))
    assert settle(by_name, "mine", "tiny", tmp_path, extracting=False).weights["audio"].identity == "sha256:abc"


def test_random_weights_are_taken_by_their_name_only(tmp_path: Path) -> None:
    make_group(tmp_path, vggsound(random_weights(0)))
    wish = request_(tmp_path, backbones=("vggsound-r18",), modalities=AUDIO)
    with pytest.raises(UsageError, match=r"H\.pth\.tar"):
        settle(wish, "mine", "tiny", tmp_path, extracting=False)
    settings = settle(replace(wish, weights=("random:0",)), "mine", "tiny", tmp_path, extracting=False)
    assert settings.weights["audio"].identity == "random:0"
    assert "RANDOM WEIGHTS" in settings.weights["audio"].note
    for text in ("random:", "random:x", "random:-1"):
        with pytest.raises(UsageError, match="random:"):
            settle(replace(wish, weights=(text,)), "mine", "tiny", tmp_path, extracting=True)


def test_an_open_precision_is_the_caches_own_else_what_is_fast_here(tmp_path: Path) -> None:
    wish = request_(tmp_path, backbones=("vggsound-r18",), modalities=AUDIO, weights=("random:0",))

    def settled(precision: str = "auto") -> str:
        chosen = replace(wish, precision=precision)
        return settle(chosen, "mine", "tiny", tmp_path, extracting=True).precision["audio"]

    assert settled() == fast_precision("cpu")
    other = next(p for p in PRECISIONS if p != fast_precision("cpu"))
    make_group(tmp_path, vggsound(random_weights(0), other))
    assert settled() == other
    make_group(tmp_path, vggsound(random_weights(0), fast_precision("cpu")))
    with pytest.raises(UsageError, match="in bfloat16 and in float32; name one with --feature-precision"):
        settled()
    assert settled("float32") == "float32"
    with pytest.raises(UsageError, match="'float16' is not a precision"):
        settled("float16")


@pytest.mark.parametrize(
    ("backbones", "tap", "message"),
    [
        ((), "pre-layer4", "tiny-rgb has no tap 'pre-layer4'"),
        (("ssmdg",), "pre-layer4", "slowonly-r50-flow sees clean views at 256 and the others at 224"),
        (("ssmdg",), "pre-layer4@0", "pre-layer4@GRID"),
        (("ssmdg",), "layer3", "tap 'layer3'"),
    ],
)
def test_taps_that_a_network_does_not_have(tmp_path: Path, backbones: tuple[str, ...], tap: str, message: str) -> None:
    wish = request_(tmp_path, backbones=backbones, tap=tap, weights=("random:0",))
    with pytest.raises(UsageError, match=message):
        settle(wish, "mine", "tiny", tmp_path, extracting=True)


def test_a_flow_network_takes_weights_by_name_and_the_cache_knows_them(tmp_path: Path) -> None:
    request = FeatureRequest(
        modalities=("flow",),
        flow_method="raft-small",
        weights_folder=tmp_path / "none",
        weights=("raft-small=random:3",),
    )
    settings = settle(request, "small", "tiny", tmp_path, extracting=True)
    assert settings.flow_weights is not None
    assert settings.flow_weights.identity == "random:3"
    with pytest.raises(UsageError, match=r"raft_small_C_T_V2-01064c6d.pth"):
        settle(replace(request, weights=()), "small", "tiny", tmp_path, extracting=True)
    identity = replace(settings, flow_weights=Weights("sha256:abc", "")).identity("small", "flow")
    FeatureGroup.open_or_create(tmp_path, identity, ["c"], 160, 1, {}, {"weights": "", "flow": "from a file"})
    known = settle(replace(request, weights=()), "small", "tiny", tmp_path, extracting=False)
    assert known.flow_weights == Weights("sha256:abc", "from a file")
    plain = settle(replace(request, weights=(), flow_method="tvl1"), "small", "tiny", tmp_path, extracting=True)
    assert plain.flow_weights is None
