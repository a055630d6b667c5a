"""Pieces: what the manifest's hash fixes, what is on disk of a pull, and what an interrupted one leaves behind."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from node.worker import partial
from node.worker.errors import BadDescription, CorruptModel, ModelInUse, StoreFull, UnknownModel
from node.worker.importing import add_local_files, listed
from node.worker.models import Manifest, ModelDescription, ModelFile, ModelId, ModelStore, parse_manifest
from node.worker.partial import PartialModel, opened_partial
from node.worker.pieces import PIECE_BYTES, PieceHasher, list_of, piece_root, piece_size, pieces_of
from node.worker.quota import make_room, pulls, remove

CONTENT = bytes(range(256)) * (PIECE_BYTES // 256) + b"\x07" * PIECE_BYTES + b"the rest"


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def made(folder: Path, name: str = "a", content: bytes = CONTENT) -> tuple[ModelStore, ModelId, Manifest]:
    """A store that has a model of a large, a small and an empty file."""
    source = folder / f"{name}-files"
    source.mkdir(parents=True)
    for file, body in (("large.onnx", content), ("small.txt", b"small"), ("empty", b"")):
        (source / file).write_bytes(body)
    store = ModelStore(folder / f"{name}-store")
    described = ModelDescription(name, "1", "onnx", "MIT", {"model_file": "large.onnx"})
    model = add_local_files(store, described, listed(source), "local", silent)
    return store, model, store.manifest(model)


def pull(store: ModelStore, manifest: Manifest, source: ModelStore, pieces_max: int = 1_000) -> int:
    """Pull what is missing from another store, at most so many pieces; returns how many were written."""
    written = 0
    with opened_partial(store, manifest) as pulled:
        missing = fill(pulled, manifest, source)
        for number, piece in missing[:pieces_max]:
            pulled.write(number, piece, content_of(source, manifest, number, piece))
            written += 1
        if len(missing) <= pieces_max:
            pulled.finish()
    return written


def fill(pulled: PartialModel, manifest: Manifest, source: ModelStore) -> list[tuple[int, int]]:
    """Give every file its list; the pieces that are missing."""
    return [
        (number, piece)
        for number, file in enumerate(manifest.files)
        for piece in pulled.open_file(number, pulled.kept_list(number) or source.piece_list(file))
    ]


def content_of(source: ModelStore, manifest: Manifest, number: int, piece: int) -> bytes:
    body = source.file_path(manifest.files[number]).read_bytes()
    return body[piece * PIECE_BYTES : (piece + 1) * PIECE_BYTES]


@pytest.mark.parametrize("block", [1, 7_919, PIECE_BYTES, 3 * PIECE_BYTES])
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 8])
def test_hashes_of_a_stream_do_not_depend_on_how_it_was_cut(size: int, block: int) -> None:
    content = CONTENT[:size]
    hasher = PieceHasher()
    for start in range(0, size if block > 1 else min(size, 3), block):
        hasher.update(content[start : start + block])
    hasher.update(content[3:] if block == 1 else b"")
    parts = [content[start : start + PIECE_BYTES] for start in range(0, size, PIECE_BYTES)]
    assert hasher.piece_list() == b"".join(blake3(part).digest() for part in parts) == list_of(io.BytesIO(content))
    assert (hasher.size, hasher.hexdigest()) == (size, blake3(content).hexdigest())
    assert pieces_of(size) == len(parts)
    assert [piece_size(size, piece) for piece in range(pieces_of(size))] == [len(part) for part in parts]


def test_a_list_of_pieces_is_never_taken_for_a_file_with_the_same_bytes() -> None:
    assert piece_root(b"same") != blake3(b"same").hexdigest()


def test_a_manifest_names_the_root_of_each_file_that_has_more_than_one_piece(tmp_path: Path) -> None:
    store, model, manifest = made(tmp_path)
    empty, large, small = manifest.files
    assert large.pieces == piece_root(list_of(io.BytesIO(CONTENT)))
    assert (empty.pieces, small.pieces) == ("", "")
    assert store.piece_list(large) == list_of(io.BytesIO(CONTENT))
    assert store.piece_list(small) == bytes.fromhex(small.blake3)
    assert store.piece_list(empty) == b""
    assert parse_manifest(manifest.encode()).model_id() == model


@pytest.mark.parametrize(
    "file",
    [
        ModelFile("a.onnx", PIECE_BYTES + 1, "0" * 64),
        ModelFile("a.onnx", PIECE_BYTES, "0" * 64, "0" * 64),
        ModelFile("a.onnx", PIECE_BYTES + 1, "0" * 64, "x" * 64),
        ModelFile("a.onnx", PIECE_BYTES + 1, "0" * 64, "0" * 63),
    ],
)
def test_a_manifest_with_a_root_too_many_too_few_or_malformed_is_refused(file: ModelFile) -> None:
    manifest = Manifest("m", "1", "onnx", "MIT", "local", (file,), {})
    with pytest.raises(BadDescription, match="piece root"):
        parse_manifest(manifest.encode())


def test_a_lost_or_wrong_list_is_made_anew_from_the_file_and_a_wrong_file_gives_none(tmp_path: Path) -> None:
    store, _, manifest = made(tmp_path)
    large = manifest.files[1]
    kept = store.directory / "pieces" / large.pieces
    right = kept.read_bytes()
    for spoil in (lambda: None, lambda: kept.write_bytes(b"wrong")):
        kept.unlink()
        spoil()
        assert store.piece_list(large) == right
        assert kept.read_bytes() == right
    kept.unlink()
    stored = store.file_path(large)
    stored.chmod(0o644)
    stored.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(CorruptModel, match=r"large\.onnx"):
        store.piece_list(large)


def test_a_pull_shows_the_model_only_once_it_is_whole_and_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    source, model, manifest = made(tmp_path)
    store = ModelStore(tmp_path / "store")
    assert pull(store, manifest, source, pieces_max=2) == 2
    assert store.model_ids() == ()
    assert list((store.directory / "files").iterdir()) == []
    assert pull(store, manifest, source) == 2  # four pieces in all
    assert store.verify(model) == manifest
    assert list(pulls(store).iterdir()) == []
    assert {path.stat().st_mode & 0o777 for path in (store.directory / "files").iterdir()} == {0o444}


def test_a_piece_that_the_journal_claims_and_the_disk_lost_is_pulled_again(tmp_path: Path) -> None:
    source, model, manifest = made(tmp_path)
    store = ModelStore(tmp_path / "store")
    pull(store, manifest, source, pieces_max=3)
    part = pulls(store) / model / "1.part"
    with part.open("r+b") as file:
        file.seek(PIECE_BYTES + 5)
        file.write(b"X")
    with opened_partial(store, manifest) as pulled:
        assert fill(pulled, manifest, source) == [(1, 1), (2, 0)]
    assert pull(store, manifest, source) == 2
    store.verify(model)


@pytest.mark.parametrize("damage", ["truncated part", "torn journal", "wrong list", "longer part"])
def test_damage_to_what_an_interrupted_pull_left_is_healed(tmp_path: Path, damage: str) -> None:
    source, model, manifest = made(tmp_path)
    store = ModelStore(tmp_path / "store")
    pull(store, manifest, source, pieces_max=3)
    folder = pulls(store) / model
    match damage:
        case "truncated part":
            os.truncate(folder / "1.part", 10)
        case "longer part":
            os.truncate(folder / "1.part", 9 * PIECE_BYTES)
        case "torn journal":
            (folder / "1.journal").write_bytes(b"\xff\x01")
        case _:
            (folder / "1.list").write_bytes(b"wrong")
    pull(store, manifest, source)
    store.verify(model)


def test_an_end_between_putting_files_in_place_and_the_manifest_costs_nothing(tmp_path: Path) -> None:
    source, model, manifest = made(tmp_path)
    store = ModelStore(tmp_path / "store")
    pull(store, manifest, source, pieces_max=3)
    folder = pulls(store) / model
    (folder / "1.part").chmod(0o444)
    (folder / "1.part").replace(store.file_path(manifest.files[1]))
    assert pull(store, manifest, source) == 1
    store.verify(model)


def test_a_manifest_that_contradicts_itself_is_its_makers_fault_and_leaves_nothing(tmp_path: Path) -> None:
    source, _, manifest = made(tmp_path)
    liar = replace(manifest.files[1], blake3="ab" * 32)
    lying = replace(manifest, files=(manifest.files[0], liar, manifest.files[2]))
    store = ModelStore(tmp_path / "store")
    with opened_partial(store, lying) as pulled:
        for number, piece in fill(pulled, lying, source):
            pulled.write(number, piece, content_of(source, manifest, number, piece))
        with pytest.raises(CorruptModel, match="whoever made this manifest is at fault"):
            pulled.finish()
    assert store.model_ids() == ()
    assert list(pulls(store).iterdir()) == []


def test_wrong_pieces_of_every_kind_are_known(tmp_path: Path) -> None:
    source, _, manifest = made(tmp_path)
    with opened_partial(ModelStore(tmp_path / "store"), manifest) as pulled:
        fill(pulled, manifest, source)
        right = content_of(source, manifest, 1, 0)
        assert pulled.is_right(1, 0, right)
        for wrong in (right[:-1], right + b"x", right[:-1] + b"x", b"", content_of(source, manifest, 1, 1)):
            assert not pulled.is_right(1, 0, wrong)


def test_one_pull_of_a_model_at_a_time_and_no_removal_takes_it_away(tmp_path: Path) -> None:
    _, model, manifest = made(tmp_path)
    store = ModelStore(tmp_path / "store", bytes_max=len(CONTENT) + 100)
    with opened_partial(store, manifest):
        with pytest.raises(ModelInUse, match="being pulled already"), opened_partial(store, manifest):
            pass
        with pytest.raises(ModelInUse):
            remove(store, model)
        with store.changing(), pytest.raises(StoreFull):
            make_room(store, 1_000)
    assert remove(store, model) == len(CONTENT) + len(b"small")
    with pytest.raises(UnknownModel):
        remove(store, model)


def test_what_an_interrupted_pull_left_makes_room_before_a_model_goes(tmp_path: Path) -> None:
    source, model, manifest = made(tmp_path)
    other, kept, kept_manifest = made(tmp_path, "b", b"b" * PIECE_BYTES)
    store = ModelStore(tmp_path / "store", bytes_max=len(CONTENT) + 2 * PIECE_BYTES)
    pull(store, kept_manifest, other)
    pull(store, manifest, source, pieces_max=1)
    with store.changing():
        gone = make_room(store, PIECE_BYTES)
    assert gone == (f"what a pull of {model} left",)
    assert store.model_ids() == (kept,)


def test_a_pull_that_does_not_fit_says_so_before_the_first_byte_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, manifest = made(tmp_path)
    store = ModelStore(tmp_path / "store", bytes_max=PIECE_BYTES)
    with pytest.raises(StoreFull, match="the model store may take"), opened_partial(store, manifest):
        pass
    huge = replace(manifest, files=(ModelFile("large.onnx", 64 << 30, "0" * 64, "0" * 64),))
    monkeypatch.setattr(partial, "SPARE_BYTES", 1 << 60)
    with pytest.raises(StoreFull, match="the disk has"), opened_partial(ModelStore(tmp_path / "store"), huge):
        pass
    assert list(pulls(store).iterdir()) == []


def test_files_that_another_model_has_are_not_pulled_and_survive_its_removal(tmp_path: Path) -> None:
    source, first, manifest = made(tmp_path)
    renamed = replace(manifest, name="b")
    store = ModelStore(tmp_path / "store")
    pull(store, manifest, source)
    with opened_partial(store, renamed) as pulled:
        remove(store, first)
        assert fill(pulled, renamed, source) == []
        model = pulled.finish()
    assert store.verify(model).name == "b"
    assert remove(store, model) > len(CONTENT)
    assert list((store.directory / "files").iterdir()) == list((store.directory / "pieces").iterdir()) == []


def test_a_manifest_with_a_foreign_piece_list_of_a_file_that_is_there_is_its_makers_fault(tmp_path: Path) -> None:
    """Whoever had stored it would give others that list and pieces that are not of it, and be called a liar."""
    source, _, manifest = made(tmp_path)
    store = ModelStore(tmp_path / "store")
    pull(store, manifest, source)
    foreign = list_of(io.BytesIO(b"x" * len(CONTENT)))
    large = next(file for file in manifest.files if file.pieces)
    lying = tuple(replace(file, pieces=piece_root(foreign)) if file is large else file for file in manifest.files)
    framing = replace(manifest, files=lying)
    with opened_partial(store, framing) as pulled:
        for number, file in enumerate(framing.files):
            pulled.open_file(number, foreign if file.pieces else pulled.kept_list(number) or b"")
        with pytest.raises(CorruptModel, match="whoever made this manifest is at fault"):
            pulled.finish()
    assert store.model_ids() == (manifest.model_id(),)


def test_a_pulled_model_is_never_taken_for_what_a_description_pins(tmp_path: Path) -> None:
    """Its maker wrote whatever it liked of where it came from: only what came from there counts."""
    source, _, manifest = made(tmp_path)
    claiming = replace(manifest, source="model-package 1.0")
    store = ModelStore(tmp_path / "store")
    pull(store, claiming, source)
    described = ModelDescription(claiming.name, claiming.version, claiming.runtime, claiming.license, claiming.settings)
    assert store.find(described, "model-package 1.0") is None
    mine = source.add_manifest(claiming)
    assert source.find(described, "model-package 1.0") == mine
