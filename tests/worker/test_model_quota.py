"""Room in the model store: what is held stays, what was used longest ago goes, shared files stay with the last user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.worker.errors import BadDescription, ModelInUse, StoreFull, UnknownModel
from node.worker.importing import add_local_files, listed
from node.worker.models import FILES_MAX, ModelDescription, ModelId, ModelStore
from node.worker.quota import held, make_room, remove


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def added(store: ModelStore, folder: Path, name: str, content: bytes, used_s: int = 0) -> ModelId:
    """A model of one file that was last used `used_s` seconds after 1970."""
    path = folder / f"{name}.onnx"
    path.write_bytes(content)
    described = ModelDescription(name, "1", "onnx", "MIT", {"model_file": path.name})
    model_id = add_local_files(store, described, listed(path), "local", silent)
    os.utime(store.directory / "manifests" / f"{model_id}.json", (used_s, used_s))
    return model_id


def files(store: ModelStore) -> int:
    return len(list((store.directory / "files").iterdir()))


def test_removing_a_model_keeps_the_files_that_another_has(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    first = added(store, tmp_path, "a", b"same")
    second = added(store, tmp_path, "b", b"same")
    assert remove(store, first) == 0
    assert store.verify(second).name == "b"
    assert remove(store, second) == 4
    assert files(store) == 0
    with pytest.raises(UnknownModel):
        remove(store, second)


def test_what_an_interrupted_addition_left_goes_with_the_next_removal(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    model = added(store, tmp_path, "a", b"abc")
    (store.directory / "files" / ".adding-x").write_bytes(b"half")
    assert remove(store, model) == 7
    assert files(store) == 0


def test_the_model_used_longest_ago_makes_room_and_one_in_use_never_does(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", bytes_max=250)
    oldest, older, newer = (added(store, tmp_path, name, name.encode() * 80, used) for used, name in enumerate("abc"))
    with held(store, oldest):
        os.utime(store.directory / "manifests" / f"{oldest}.json", (0, 0))
        added(store, tmp_path, "d", b"d" * 80, 9)
        assert oldest in store.model_ids()
        assert older not in store.model_ids()
        assert newer in store.model_ids()
        with pytest.raises(StoreFull, match="models in use"):
            added(store, tmp_path, "e", b"e" * 200)
        assert len(store.model_ids()) == 3  # nothing went in vain
        store.verify(oldest)
    added(store, tmp_path, "e", b"e" * 200)
    assert [manifest.name for _, manifest in store.models()] == ["e"]


def test_using_a_model_makes_it_the_last_to_go(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", bytes_max=170)
    first, second = (added(store, tmp_path, name, name.encode() * 80, used) for used, name in enumerate("ab"))
    with held(store, first):
        pass
    added(store, tmp_path, "c", b"c" * 80)
    assert first in store.model_ids()
    assert second not in store.model_ids()


def test_downloaded_packages_go_before_models_and_only_the_stores_own(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    for wheels, kept in ((None, False), (shared, True)):
        store = ModelStore(tmp_path / f"store-{kept}", wheels, bytes_max=200)
        model = added(store, tmp_path, "a", b"a" * 80)
        wheel = store.wheels / f"{'0' * 64}.whl"
        wheel.write_bytes(bytes(100))
        with store.changing():
            make_room(store, 100)
        assert wheel.exists() == kept
        assert model in store.model_ids()


HOLDER = """
import sys
from pathlib import Path
from node.worker.models import ModelStore
from node.worker.quota import held
store = ModelStore(Path(sys.argv[1]))
with held(store, store.named("a")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_model_held_by_another_process_stays_until_that_is_killed(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    model = added(store, tmp_path, "a", b"abc")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ModelInUse):
            remove(store, model)
        assert added(store, tmp_path, "a", b"abc") == model  # adding it again does not slip it from the hold
        with pytest.raises(ModelInUse):
            remove(store, model)
        holder.kill()
        holder.wait()
    assert remove(store, model) == 3


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("link", r"weights\.onnx is a link"),
        ("link to a folder", r"weights\.onnx is a link"),
        ("pipe", r"weights\.onnx is not a regular file"),
        ("name", r"a b\.onnx"),
        ("nothing", "model holds no files"),
        ("too many", "more than the 64 files"),
        ("missing", "nowhere: No such file"),
    ],
)
def test_what_is_no_plain_file_with_a_plain_name_is_refused_and_named(tmp_path: Path, kind: str, said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / ".git").mkdir()
    path = folder / "weights.onnx"
    match kind:
        case "link":
            path.symlink_to("/etc/hostname")
        case "link to a folder":
            path.symlink_to("/etc")
            (folder / "plain").write_bytes(b"")
        case "pipe":
            os.mkfifo(path)
        case "name":
            (folder / "a b.onnx").write_bytes(b"")
        case "too many":
            for number in range(FILES_MAX + 1):
                (folder / str(number)).write_bytes(b"")
        case "missing":
            folder = tmp_path / "nowhere"
        case _:
            pass
    with pytest.raises(BadDescription, match=said):
        listed(folder)
    if path.is_symlink() or path.is_fifo():
        with pytest.raises(BadDescription, match=r"weights\.onnx"):
            listed(path)


def test_a_link_that_takes_a_files_place_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"abc")
    found = listed(path)
    path.unlink()
    path.symlink_to("/etc/hostname")
    store = ModelStore(tmp_path / "store")
    described = ModelDescription("a", "1", "onnx", "MIT", {"model_file": "a.onnx"})
    with pytest.raises(BadDescription, match=r"a\.onnx"):
        add_local_files(store, described, found, "local", silent)
    assert store.model_ids() == ()


def test_a_sparse_file_of_impossible_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with path.open("wb") as stream:
        stream.truncate(65 << 30)
    with pytest.raises(BadDescription, match="at most"):
        listed(path)
