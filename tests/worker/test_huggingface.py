"""Models of the Hugging Face hub, from a cache as the hub's own library lays it out; no network is asked."""

import hashlib
import sys
from pathlib import Path

import pytest

from node.worker.errors import BadDescription, DownloadFailed
from node.worker.huggingface import add_from_huggingface
from node.worker.models import (
    HuggingFaceSource,
    ModelDescription,
    ModelStore,
    PinnedFile,
    load_description,
)
from node.worker.sources import add_described, silent

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"weights"
DESCRIPTION = ModelDescription("tiny", "1", "onnx", "MIT", {"model_file": "model.onnx", "pipeline": "tensors"})


def cached(folder: Path, content: bytes = CONTENT) -> Path:
    """A cache with one file of one commit: a snapshot's entry is a link to a blob."""
    repository = folder / "models--maker--tiny"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "abc").write_bytes(content)
    entry = repository / "snapshots" / COMMIT / "onnx" / "model.onnx"
    entry.parent.mkdir(parents=True)
    entry.symlink_to("../../../blobs/abc")
    return folder


def source(content: bytes = CONTENT) -> HuggingFaceSource:
    pinned = PinnedFile("onnx/model.onnx", hashlib.sha256(content).hexdigest())
    return HuggingFaceSource("maker/tiny", COMMIT, {"model.onnx": pinned})


async def test_a_cached_file_is_added_with_its_origin_and_found_again(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="an optional extra")
    store = ModelStore(tmp_path / "store")
    cache = cached(tmp_path / "cache")
    model = await add_from_huggingface(store, DESCRIPTION, source(), silent, cache)
    manifest = store.verify(model)
    assert manifest.source == f"huggingface maker/tiny {COMMIT}"
    assert [(file.path, file.size) for file in manifest.files] == [("model.onnx", len(CONTENT))]
    assert await add_from_huggingface(store, DESCRIPTION, source(), silent, tmp_path / "empty") == model


async def test_a_file_with_another_hash_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="an optional extra")
    store = ModelStore(tmp_path / "store")
    cache = cached(tmp_path / "cache", b"other")
    with pytest.raises(DownloadFailed, match=r"maker/tiny: onnx/model\.onnx is not the file"):
        await add_from_huggingface(store, DESCRIPTION, source(), silent, cache)
    assert store.model_ids() == ()


async def test_what_is_not_cached_and_cannot_be_fetched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="an optional extra")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed, match=r"maker/tiny: onnx/model\.onnx could not be fetched"):
        await add_from_huggingface(ModelStore(tmp_path / "store"), DESCRIPTION, source(), silent, tmp_path / "none")


async def test_without_the_library_its_absence_and_the_remedy_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    with pytest.raises(DownloadFailed, match=r"pip install 'mercat\[huggingface\]'"):
        await add_described(ModelStore(tmp_path / "store"), load_description(path))


TOML = f"""
name = "tiny"
version = "1"
runtime = "onnx"
license = "MIT"
[huggingface]
repository = "maker/tiny"
commit = "{COMMIT}"
[huggingface.files."model.onnx"]
path = "onnx/model.onnx"
sha256 = "{hashlib.sha256(CONTENT).hexdigest()}"
"""


def test_a_described_repository_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    assert load_description(path).huggingface == source()


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (COMMIT, "main"),
        ("maker/tiny", "tiny"),
        ("maker/tiny", "https://example.invalid/maker/tiny"),
        ("maker/tiny", "../maker/tiny"),
        ("onnx/model.onnx", "../../etc/passwd"),
        ("onnx/model.onnx", "/etc/passwd"),
        ('"model.onnx"]', '"../model.onnx"]'),
        ('sha256 = "', 'sha256 = "x'),
        ("commit", "revision"),
        ("[huggingface]", '[package]\nname = "x"\n[huggingface]'),
    ],
)
def test_a_description_that_is_not_pinned_or_leads_elsewhere_is_refused(
    tmp_path: Path, written: str, instead: str
) -> None:
    path = tmp_path / "tiny.toml"
    assert written in TOML
    path.write_text(TOML.replace(written, instead))
    with pytest.raises(BadDescription, match=r"tiny\.toml"):
        load_description(path)
