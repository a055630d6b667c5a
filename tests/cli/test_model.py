"""``mercat model``: from a file to an id, and what is said when something is wrong with either."""

import json
from pathlib import Path

import pytest

from node.cli.failures import CommandFailed
from node.cli.provider import as_provider
from node.config.loading import load_config
from node.config.settings import KeystoreConfig, NodeConfig, ProviderConfig
from node.worker.models import ModelStore, parse_manifest
from node.worker.quota import held
from tests.api.fake_node import OTHER, FakeNode
from tests.cli.conftest import Mercat

PARENT = "ab" * 32


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny Model.onnx"
    path = path.with_name("Tiny_Model.onnx")
    path.write_bytes(b"weights")
    return path


def add(mercat: Mercat, store: Path, path: Path, *flags: str) -> str:
    ended = mercat("model", "add", str(path), "--license", "MIT", "--model-store", str(store), "-q", *flags)
    assert ended.code == 0, ended.err
    return ended.out.strip()


def test_a_file_becomes_a_model_that_is_listed_shown_verified_and_removed(
    mercat: Mercat, tmp_path: Path, weights: Path
) -> None:
    store = tmp_path / "store"
    model = add(mercat, store, weights, "--parent", PARENT, "--training-data", "cd" * 32, "--setting", "n=-3")
    manifest = ModelStore(store).manifest(model)
    assert parse_manifest(manifest.encode()) == manifest
    assert (manifest.name, manifest.runtime, manifest.source) == ("tiny_model", "onnx", "local")
    assert manifest.settings == {"model_file": "Tiny_Model.onnx", "pipeline": "tensors", "n": -3}
    assert (manifest.parents, manifest.training_data) == ((PARENT,), ("cd" * 32,))
    there = ("--model-store", str(store))
    assert model[:8] in mercat("model", "list", *there).out
    shown = mercat("model", "show", model[:8], *there, "--json")
    assert json.loads(shown.out)["manifest"]["parents"] == [PARENT]
    assert json.loads(shown.out)["registration"] is None  # no node runs
    assert PARENT in mercat("model", "show", "tiny_model", *there).out
    assert mercat("model", "verify", *there).out == "tiny_model  OK\n"
    assert mercat("model", "rm", "tiny_model", *there, "-q").out == f"{model}\n"
    assert mercat("model", "list", *there, "-q").out == ""


def test_a_file_that_changed_is_named_and_the_others_are_ok(mercat: Mercat, tmp_path: Path, weights: Path) -> None:
    store = tmp_path / "store"
    model = add(mercat, store, weights)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"other")
    add(mercat, store, other)
    (file,) = ModelStore(store).manifest(model).files
    stored = ModelStore(store).file_path(file)
    stored.chmod(0o644)
    stored.write_bytes(b"weightS")
    ended = mercat("model", "verify", "--model-store", str(store))
    assert ended.code == 1
    assert "other  OK" in ended.out
    assert "Tiny_Model.onnx" in ended.out


def test_a_folder_is_added_with_a_description_and_flags_go_over_it(mercat: Mercat, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.onnx").write_bytes(b"a")
    (folder / "sub" / "labels.txt").write_bytes(b"b")
    (folder / ".hidden").write_bytes(b"c")
    description = tmp_path / "net.toml"
    description.write_text('name = "net"\nversion = "2"\nruntime = "onnx"\nlicense = "GPL-3.0"\n')
    model = add(mercat, tmp_path / "store", folder, "--description", str(description), "--version", "3")
    manifest = ModelStore(tmp_path / "store").manifest(model)
    assert (manifest.name, manifest.version, manifest.license) == ("net", "3", "MIT")
    assert [file.path for file in manifest.files] == ["a.onnx", "sub/labels.txt"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--license"),
        (("--license", "MIT", "--runtime", "perl"), "unknown runtime 'perl'; known: echo, gguf"),
        (("--license", "MIT", "--name", "../up"), "model name"),
        (("--license", "MIT", "--parent", "feed"), "64 hexadecimal digits"),
        (("--license", "MIT", "--setting", "model_file=/etc/passwd"), "must name one of the files"),
        (("--license", "MIT", "--setting", "novalue"), "NAME=VALUE"),
        (("--license", "MIT", "--source", "\x1b]0;owned\x07"), "control characters"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_added(
    mercat: Mercat, tmp_path: Path, weights: Path, flags: tuple[str, ...], said: str
) -> None:
    ended = mercat("model", "add", str(weights), "--model-store", str(tmp_path / "store"), *flags)
    assert ended.code != 0
    assert said in ended.err
    assert ModelStore(tmp_path / "store").model_ids() == ()


def test_a_link_is_refused(mercat: Mercat, tmp_path: Path, weights: Path) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(weights)
    ended = mercat("model", "add", str(link), "--license", "MIT", "--model-store", str(tmp_path / "store"))
    assert ended.code == 1
    assert "is a link" in ended.err


def test_a_model_in_use_is_not_removed(mercat: Mercat, tmp_path: Path, weights: Path) -> None:
    store = ModelStore(tmp_path / "store")
    model = add(mercat, store.directory, weights)
    with held(store, store.named(model)):
        ended = mercat("model", "rm", model, "--model-store", str(store.directory))
    assert ended.code == 1
    assert "in use" in ended.err


def test_the_store_and_the_quota_are_those_of_the_users_node(
    mercat: Mercat, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'genesis = "g"\nstate = "state"\n[keystore]\ndirectory = "k"\n[provider]\nmodel_store_bytes = {5}\n'
    )
    monkeypatch.setenv("MERCAT_CONFIG", str(config))
    ended = mercat("model", "add", str(weights), "--license", "MIT")
    assert ended.code == 1
    assert "the model store may take" in ended.err
    config.write_text(config.read_text().replace("= 5", "= 5000"))
    assert mercat("model", "add", str(weights), "--license", "MIT").code == 0
    assert len(ModelStore(tmp_path / "state" / "models").model_ids()) == 1


def test_a_provider_sells_a_model_of_its_store_by_name_or_id(mercat: Mercat, tmp_path: Path, weights: Path) -> None:
    store = tmp_path / "store"
    model = add(mercat, store, weights)
    config = NodeConfig(
        genesis=Path("/g"), state=Path("/s"), keystore=KeystoreConfig(Path("/k")),
        provider=ProviderConfig(model_store=store),
    )  # fmt: skip
    for text in ("tiny_model", model):
        (sold,) = as_provider(config, (text,)).provider.models
        assert sold.description == model
    with pytest.raises(CommandFailed, match="unheard-of"):
        as_provider(config, ("unheard-of",))
    path = tmp_path / "config.toml"
    path.write_text(
        'genesis = "g"\nstate = "s"\nroles = ["provider"]\n[keystore]\ndirectory = "k"\n'
        f'[[provider.models]]\ndescription = "{model}"\n'
    )
    assert load_config(path, {}).config.provider.models[0].description == model


def test_publishing_hands_the_nodes_account_the_very_bytes_of_the_manifest(
    mercat: Mercat, tmp_path: Path, weights: Path, fake: FakeNode
) -> None:
    store = tmp_path / "store"
    model = add(mercat, store, weights)
    unasked = mercat("model", "publish", "tiny_model", "--model-store", str(store))
    assert "repeat with -y" in unasked.err
    assert fake.calls == []
    ended = mercat("model", "publish", "tiny_model", "--model-store", str(store), "-y")
    assert "is in block 13" in ended.out
    assert fake.calls == [("publish", ModelStore(store).manifest(model).encode().decode())]


def test_a_model_whose_files_changed_is_not_published(
    mercat: Mercat, tmp_path: Path, weights: Path, fake: FakeNode
) -> None:
    store = ModelStore(tmp_path / "store")
    (file,) = store.manifest(add(mercat, store.directory, weights)).files
    store.file_path(file).unlink()
    ended = mercat("model", "publish", "tiny_model", "--model-store", str(store.directory), "-y")
    assert ended.code == 1
    assert "Tiny_Model.onnx is missing" in ended.err
    assert fake.calls == []


def test_the_ledger_tells_who_published_a_model_whether_it_is_here_or_not(
    mercat: Mercat, tmp_path: Path, weights: Path, fake: FakeNode
) -> None:
    there = ("--model-store", str(tmp_path / "store"))
    model = add(mercat, tmp_path / "store", weights)
    assert f"by {OTHER} in block 12" in mercat("model", "show", "tiny_model", *there).out
    assert "by " in mercat("model", "show", "ab" * 32, *there).out
    assert "registered  no" in mercat("model", "show", "00" * 32, *there).out
    assert [call[1] for call in fake.calls] == [model, "ab" * 32, "00" * 32]
    assert mercat("model", "show", "unheard-of", *there).code == 1
