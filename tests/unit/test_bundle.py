"""A model's folder: what is written comes back, and what was tampered with does not."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from extractors.backbone import BACKBONES
from extractors.published import Published
from extractors.weights import WeightsFolder
from pipeline.bundle import FILES, Bundle, load_bundle, write_bundle
from pipeline.bundlespec import BundleSpec, read_spec, write_spec
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.types import digest
from tests.bundles import a_batch, a_bundle, a_head, a_modality, a_plan, a_spec

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle."""
    return a_bundle(tmp_path / "model").folder


def spec_of(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return plain


def change_spec(folder: Path, change: Change, rehash: bool = True) -> None:
    """Change the JSON as somebody would who also mends what depends on it."""
    plain = spec_of(folder)
    change(plain)
    if rehash and isinstance(plain.get("run"), dict):
        plain["run_id"] = digest(plain["run"])[:16]
    (folder / "bundle.json").write_text(json.dumps(plain))


def change_head(folder: Path, content: bytes) -> None:
    """Put another file of tensors in place, with the digest and size that belong to it."""
    (folder / "head.safetensors").write_bytes(content)

    def mend(plain: dict[str, Any]) -> None:
        plain["files"]["head.safetensors"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    change_spec(folder, mend)


@pytest.mark.parametrize("projected", [False, True])
def test_a_bundle_comes_back_as_it_was(tmp_path: Path, projected: bool) -> None:
    head = a_head(a_plan(projected=projected))
    bundle = a_bundle(tmp_path / "new" / "model", head)
    assert {path.name for path in bundle.folder.iterdir()} == set(FILES)
    assert replace(bundle.spec, files={}) == a_spec(head)
    assert bundle.head.plan == head.plan
    batch = a_batch(head)
    wanted, found = head(*batch), bundle.head(*batch)
    assert torch.equal(found.probs.nan_to_num(), wanted.probs.nan_to_num())
    assert all(torch.equal(found.alone[m].nan_to_num(), own.nan_to_num()) for m, own in wanted.alone.items())
    assert not [path for path in bundle.folder.parent.iterdir() if path.name.startswith(".")]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (a_bundle(tmp_path / name).folder for name in ("a", "b"))
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_nothing_else_in_the_folder_is_looked_at(folder: Path) -> None:
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    (folder / "notes.txt").write_text("mine")
    load_bundle(folder)


def test_a_folder_that_is_taken_stays_as_it_is(tmp_path: Path, folder: Path) -> None:
    head, before = a_head(seed=1), (folder / "head.safetensors").read_bytes()
    with pytest.raises(UsageError, match="holds a bundle; name another folder, or replace it with --force"):
        write_bundle(folder, a_spec(head), head, "card")
    assert (folder / "head.safetensors").read_bytes() == before
    write_bundle(folder, a_spec(head), head, "card", force=True)
    assert (folder / "README.md").read_text() == "card"
    assert torch.equal(load_bundle(folder).head.get_buffer("mean_video"), head.get_buffer("mean_video"))
    (folder / "mine.csv").write_text("1")
    with pytest.raises(UsageError, match=r"holds mine\.csv, which is no bundle's"):
        write_bundle(folder, a_spec(head), head, "card", force=True)
    assert (folder / "mine.csv").read_text() == "1"
    other = tmp_path / "other"
    other.mkdir()
    write_bundle(other, a_spec(head), head, "card")
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to(folder)
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="is there and no folder"):
            write_bundle(tmp_path / name, a_spec(head), head, "card", force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "other", "file", "link"}


def test_a_model_that_cannot_be_written_leaves_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (folder / name).read_bytes() for name in FILES}
    real = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", full)
    head = a_head(seed=1)
    with pytest.raises(OSError, match="No space"):
        write_bundle(folder, a_spec(head), head, "card", force=True)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["head.safetensors", "README.md"])
@pytest.mark.parametrize("place", [0, 8, -1])
def test_a_flipped_byte_is_seen(folder: Path, name: str, place: int) -> None:
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"sha256 is another|header|tensor"):
        load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_cut_off_is_said(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3])
    with pytest.raises(UsageError, match=r"when it was exported|is not JSON|model's tensors"):
        load_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(UsageError, match=f"has no {name}: it is no bundle; `pipe export RUN"):
        load_bundle(folder)
    (folder / name).mkdir()
    with pytest.raises(UsageError, match="is no file"):
        load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_links_that_lead_out_are_refused(tmp_path: Path, folder: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(UsageError, match="is a link that leads out of the bundle"):
        load_bundle(folder)
    outside.rename(folder / "inside")
    (folder / name).unlink()
    (folder / name).symlink_to("inside")
    load_bundle(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    with pytest.raises(UsageError, match=f"has no {name}"):
        load_bundle(folder)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    os.mkfifo(folder / "bundle.json")
    with pytest.raises(UsageError, match="is no file"):
        load_bundle(folder)


def _set(path: str, value: object) -> Change:
    """A change of one value; a number in the path is a position."""

    def change(plain: dict[str, Any]) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        place: Any = plain
        for part in way:
            place = place[part]
        place[last] = value

    return change


WRONG: list[tuple[Change, str]] = [
    (_set("schema", 2), "has schema 2; this version reads schema 1: a newer pipe wrote it. Update pipe"),
    (_set("schema", "1"), "has schema '1'; it must be 1"),
    (_set("schema", True), "has schema True; it must be 1"),
    (lambda plain: plain.pop("schema"), "has schema None"),
    (_set("clases", []), "'clases' is unknown to this version. Did you mean 'classes'"),
    (_set("features/decodr", "x"), "bundle.json.features: 'decodr' is unknown to this version"),
    (lambda plain: plain.pop("threshold"), "'threshold' is missing"),
    (_set("classes", "open"), "bundle.json.classes is 'open'; it must be a list"),
    (_set("classes/1", 3), "bundle.json.classes[1] is 3; it must be a text"),
    (_set("translators", 1), "bundle.json.translators is 1; it must be true or false"),
    (_set("threshold", True), "bundle.json.threshold is True; it must be a number"),
    (_set("threshold", 1.5), "threshold is 1.5"),
    (_set("modalities/0/dim", 12.5), "bundle.json.modalities[0].dim is 12.5; it must be a whole number"),
    (_set("modalities/0/dim", 10**12), "dim of video is 1000000000000; a model has 1 to 16777216"),
    (_set("modalities/0/dim", 10**400), "dim of video is 1000"),
    (_set("modalities/0/dim", -5), "dim of video is -5"),
    (_set("modalities/0/width", 13), "width of video is 13"),
    (_set("modalities/0/modality", "audio"), "are not those of its run"),
    (_set("modalities", []), "modalities none"),
    (_set("run/hparams/fused_hidden", 10**12), "fused_hidden is 1000000000000; a model has 1 to 65536"),
    (_set("run/hparams/translator_hidden", 1e300), "translator_hidden is 1e+300"),
    (_set("run/hparams/translator_hidden", "9"), "translator_hidden is '9'"),
    (_set("run/hparams/adapter", "evil"), "'evil' is not a adapter (bundle.json)"),
    (_set("run/hparams/fusion", "__class__"), "'__class__' is not a fusion (bundle.json)"),
    (_set("run/protocol", "loose"), "bundle.json.run.protocol is 'loose'; allowed: strict, paper"),
    (_set("run/steps", 0), "must be at least 1"),
    (_set("filler/name", "../../x"), "'../../x' is not a filler of this model"),
    (_set("filler/name", "finetuned"), "'finetuned' is not a filler of this model"),
    (_set("features/clip_seconds", "2"), "bundle.json.features.clip_seconds is '2'; it must be a number or null"),
    (_set("calibration/fused/video/value", 0.0), "temperature of fused video is 0.0; it must be from 0.05"),
    (_set("calibration/alone/video/value", 1e9), "temperature of alone video"),
    (_set("calibration/fused/video+x", {"value": 1.0, "clips": 3}), "calibration.fused has 8 temperatures"),
    (lambda plain: plain["calibration"]["alone"].pop("flow"), "calibration.alone has 2 temperatures"),
    (_set("files/..%2fx", {"sha256": "0", "bytes": 1}), "lists 3 files"),
    (lambda plain: plain["files"].pop("README.md"), "lists 1 files"),
    (_set("files", {"/etc/passwd": {"sha256": "0", "bytes": 1}, "README.md": {"sha256": "0", "bytes": 1}}), "lists 2"),
    (_set("files/head.safetensors/bytes", 10**15), "the model's tensors take"),
    (_set("classes", ["open"] * 3), "not those of its run"),
    (_set("run", []), "bundle.json.run is a list; it must be an object"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_spec_that_says_something_else_is_refused(folder: Path, change: Change, message: str) -> None:
    change_spec(folder, change)
    with pytest.raises(UsageError) as caught:
        load_bundle(folder)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_run_is_the_one_that_was_exported(folder: Path) -> None:
    change_spec(folder, _set("run/budget", "100%"), rehash=False)
    with pytest.raises(UsageError, match="the run's settings are not those of run"):
        load_bundle(folder)


def test_sizes_that_are_allowed_and_not_there_take_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2**24 x 65,536 values would take 4 TiB; the header of the tensors' file shows that they are not there."""

    def change(plain: dict[str, Any]) -> None:
        plain["modalities"][0] |= {"dim": 2**24, "width": 2**24}
        plain["run"]["hparams"] |= {"fused_hidden": 65_536, "translator_hidden": 65_536}
        plain["files"]["head.safetensors"]["bytes"] = 4 * 2**42

    change_spec(folder, change)
    with pytest.raises(UsageError, match=r"is F32 \[.*\]; the model that bundle.json tells of has F32"):
        load_bundle(folder)


TEXTS: list[tuple[bytes, str]] = [
    (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply"),
    (b"", "is not JSON as pipe writes it"),
    (b"\xff\xfe{}", "is not JSON as pipe writes it"),
    (b"[1]", "is a list; it must be an object"),
    (b'{"schema": NaN}', "NaN is no number"),
    (b'{"schema": 1e999}', "1e999 is no number"),
    (b'{"schema": 1, "schema": 1}', "a key stands twice"),
    (b'{"schema": ' + b"1" * 5000 + b"}", "is not JSON as pipe writes it"),
    (b" " * (4 * 2**20 + 1), "has 4194305 bytes; a bundle's has at most 4194304"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=[message[:30] for _, message in TEXTS])
def test_a_file_that_is_no_plain_json_is_refused(folder: Path, text: bytes, message: str) -> None:
    (folder / "bundle.json").write_bytes(text)
    with pytest.raises(UsageError) as caught:
        load_bundle(folder)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700


def header(length: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text


def entry(dtype: str, shape: list[int], size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


HEADERS: list[tuple[bytes, str]] = [
    (header(2**62, b"{}"), "its header has 4611686018427387904 bytes; 2 to 16777216 are read"),
    (header(16 * 2**20 + 1, b"{}"), "its header has 16777217 bytes"),
    (header(100, b"{}"), "tensor 'filler_length_audio' is missing"),
    (b"abc", "its header cannot be read"),
    (b"", "its header has 0 bytes"),
    (header(6, b"[" * 6), "its header cannot be read"),
    (header(200_000, b"[" * 100_000 + b"]" * 100_000), "its header cannot be read"),
    (header(4, b"1234"), "its header is no object"),
    (header(12, b'{"\xff": "abcd'), "its header cannot be read"),
]


@pytest.mark.parametrize(("content", "message"), HEADERS, ids=[message[:30] for _, message in HEADERS])
def test_a_header_that_is_no_model_is_refused(folder: Path, content: bytes, message: str) -> None:
    change_head(folder, content)
    with pytest.raises(UsageError) as caught:
        load_bundle(folder)
    assert message in str(caught.value)


def test_tensors_are_exactly_the_models(folder: Path) -> None:
    head = a_head()
    tensors = head.tensors()
    others: list[tuple[dict[str, torch.Tensor], str]] = [
        ({**tensors, "extra": torch.zeros(1)}, "tensor 'extra' is unknown"),
        ({k: v for k, v in tensors.items() if k != "mean_flow"}, "tensor 'mean_flow' is missing"),
        ({**tensors, "mean_flow": torch.zeros(11)}, r"tensor mean_flow is F32 [11]; the model that bundle.json tells"),
        ({**tensors, "mean_flow": torch.zeros(10).double()}, "tensor mean_flow is F64 [10]"),
    ]
    for content, message in others:
        change_head(folder, save(content))
        with pytest.raises(UsageError) as caught:
            load_bundle(folder)
        assert message in str(caught.value)
    change_head(folder, save(tensors))
    load_bundle(folder)
    # A header that promises the right shapes, and no values behind it; and values that overlap.
    shapes = {name: entry("F32", list(shape), 4) for name, shape in head.shapes().items()}
    text = json.dumps(shapes).encode()
    change_head(folder, header(len(text), text))
    with pytest.raises(UsageError, match="the model's tensors take"):
        load_bundle(folder)
    size = 4 * sum(torch.Size(shape).numel() for shape in head.shapes().values())
    change_head(folder, header(len(text), text) + bytes(size))
    with pytest.raises(UsageError, match="cannot be read"):
        load_bundle(folder)


def test_a_spec_says_everything_once() -> None:
    spec = a_spec(a_head())
    assert read_spec(write_spec(spec).encode()) == spec
    assert sorted(json.loads(write_spec(spec))) == sorted(field.name for field in fields(BundleSpec))


def test_a_bundle_that_knows_no_translators_has_no_filler_of_theirs(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "model", a_head(a_plan(("video", "audio"), translators=False, filler="mean")))
    assert bundle.head.fillers == ("zero", "mean", "prototype", "renormalise")
    assert not any(name.startswith("translators") for name in bundle.head.tensors())


def test_features_are_made_as_the_model_wants_them(folder: Path, tmp_path: Path) -> None:
    settings = load_bundle(folder, weights_folder=tmp_path).feature_settings("cpu")
    assert settings.modalities == ("video", "flow", "audio")
    assert settings.backbones == {"video": "tiny-rgb", "flow": "tiny-flow", "audio": "tiny-audio"}
    assert (settings.flow_method, settings.resampler, settings.tap, settings.dtype) == (
        "dis-medium",
        "swresample",
        "pool",
        "float16",
    )
    for facts in load_bundle(folder).spec.modalities:
        assert settings.identity("made-up", facts.modality).weights == facts.weights
        # Built-in weights are called random:0 and are not what drawing from seed 0 gives.
        assert settings.weights[facts.modality] == ExtractSettings().weights_of(facts.modality)


def with_video(folder: Path, **changes: Any) -> Bundle:
    """A bundle whose video features are others."""
    head = a_head()
    spec = a_spec(head)
    video = replace(spec.modalities[0], **changes)
    write_bundle(folder, replace(spec, modalities=(video, *spec.modalities[1:])), head, "card")
    return load_bundle(folder, weights_folder=folder.parent / "weights")


def test_weights_that_are_not_here_are_named(tmp_path: Path) -> None:
    bundle = with_video(tmp_path / "m", backbone="slowfast-r101", weights=f"sha256:{'ab' * 32}", weights_note="of K400")
    with pytest.raises(UsageError) as caught:
        bundle.feature_settings()
    for part in ("slowfast-r101", f"sha256:{'ab' * 32} (of K400)", "pipe weights fetch", "pipe weights add"):
        assert part in str(caught.value)
    bundle = with_video(tmp_path / "n", weights="tiny-v0")
    with pytest.raises(UsageError, match=r"backbone tiny-rgb with the weights tiny-v0"):
        bundle.feature_settings()
    bundle = with_video(tmp_path / "o", weights="random:1")  # it has built-in ones and no others
    with pytest.raises(UsageError, match=r"backbone tiny-rgb with the weights random:1"):
        bundle.feature_settings()
    bundle = with_video(tmp_path / "p", weights="random:x")
    with pytest.raises(UsageError, match=r"after 'random:' comes a whole number"):
        bundle.feature_settings()


def test_weights_are_found_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        return nn.Linear(2, 3)

    def own(content: Any) -> dict[str, torch.Tensor]:
        return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}

    form = Published("own", "published.pth", "", "", "nothing", "Apache-2.0", "here", own)
    net = replace(BACKBONES["tiny-rgb"], name="own-net", builtin="", build=build, published=(form,))
    monkeypatch.setitem(BACKBONES, "own-net", net)
    (tmp_path / "weights").mkdir()
    for name in ("first.pth", "second.pth"):
        torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "weights" / name)
    wanted = hashlib.sha256((tmp_path / "weights" / "second.pth").read_bytes()).hexdigest()
    bundle = with_video(tmp_path / "m", backbone="own-net", weights=f"sha256:{wanted}")
    assert bundle.feature_settings().weights["video"].path == tmp_path / "weights" / "second.pth"
    (tmp_path / "weights" / "second.pth").unlink()
    with pytest.raises(UsageError, match="own-net with the weights sha256:"):
        bundle.feature_settings()
    WeightsFolder(tmp_path / "weights").add(tmp_path / "weights" / "first.pth", form)
    with pytest.raises(UsageError, match=r"published\.pth has sha256:"):
        bundle.feature_settings()
    first = hashlib.sha256((tmp_path / "weights" / "first.pth").read_bytes()).hexdigest()
    (tmp_path / "weights" / "first.pth").unlink()
    found = with_video(tmp_path / "f", backbone="own-net", weights=f"sha256:{first}").feature_settings()
    assert found.weights["video"].path == tmp_path / "weights" / "published.pth"
    random = with_video(tmp_path / "r", backbone="own-net", weights="random:7").feature_settings()
    assert random.weights["video"].seed == 7


def test_features_that_this_version_makes_otherwise_are_refused(tmp_path: Path) -> None:
    settings = dict(a_modality(a_plan().inputs[0]).settings)
    other = with_video(tmp_path / "m", settings={**settings, "revisions": {"backbone": 9, "views": 1}})
    with pytest.raises(UsageError, match=r"makes other video features .*revisions is .* here and was .*'backbone': 9"):
        other.feature_settings()
    imported = with_video(tmp_path / "n", settings={"import": {"source": "x.npy"}}, backbone="theirs")
    with pytest.raises(UsageError, match="video features of theirs that were imported"):
        imported.feature_settings()
