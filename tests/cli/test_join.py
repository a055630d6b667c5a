"""Several people make a network: keys, records, genesis, join; and what refuses to start."""

import json
from pathlib import Path

import pytest

from node.keystore import files
from node.keystore.files import FAST
from tests.cli.conftest import Mercat


@pytest.fixture(autouse=True)
def fast_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strong setting takes most of a second for each key; what is tested here is not the setting."""
    assert files.create_key.__defaults__ is not None
    monkeypatch.setattr(files.create_key, "__defaults__", (FAST, None))


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text("pass\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def genesis(mercat: Mercat, tmp_path: Path, passphrase: str) -> Path:
    records = []
    for number in range(4):
        made = mercat(
            "key", "new", "--role", "authority", "--name", f"a{number}", "--dir", str(tmp_path / f"a{number}" / "keys"),
            "--passphrase-file", passphrase,
        )  # fmt: skip
        assert made.code == 0, made.err
        (tmp_path / f"a{number}.json").write_text(made.out)
        records += ["--authority", str(tmp_path / f"a{number}.json")]
    account = json.loads((tmp_path / "a0.json").read_text())["account"]
    out = tmp_path / "genesis.json"
    made = mercat(
        "genesis", "new", "--network", "test", *records, "--allocate", f"{account}=12.5", "--bond", f"{account}=20",
        "--parameter", "delta_ms=700", "--out", str(out),
    )  # fmt: skip
    assert made.code == 0, made.err
    return out


def test_genesis_holds_what_each_contributed(mercat: Mercat, genesis: Path) -> None:
    content = json.loads(genesis.read_text())
    assert sorted(entry["name"] for entry in content["authorities"]) == ["a0", "a1", "a2", "a3"]
    assert (content["allocations"][0]["balance"], content["allocations"][0]["bond"]) == (12_500_000, 20_000_000)
    assert content["parameters"]["delta_ms"] == 700
    assert content["development"] is False
    shown = mercat("genesis", "show", str(genesis), "--json")
    assert json.loads(shown.out)["hash"] == mercat("genesis", "show", str(genesis), "-q").out.strip()


def test_genesis_is_never_overwritten(mercat: Mercat, genesis: Path) -> None:
    before = genesis.read_bytes()
    again = mercat(
        "genesis", "new", "--network", "x", "--authority", str(genesis.parent / "a0.json"), "--out", str(genesis)
    )
    assert again.code == 2
    assert genesis.read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ("--allocate", "mc1nonsense=1"),
        ("--allocate", "nothing"),
        ("--parameter", "unheard_of=1"),
        ("--parameter", "delta_ms=-1"),
        ("--parameter", "redeem_fee_share_ppm=1000001"),
    ],
    ids=" ".join,
)
def test_genesis_from_nonsense_is_wrong_usage(mercat: Mercat, genesis: Path, options: tuple[str, ...]) -> None:
    out = genesis.parent / "other.json"
    record = str(genesis.parent / "a0.json")
    assert mercat("genesis", "new", "--network", "x", "--authority", record, "--out", str(out), *options).code == 2
    assert not out.exists()


def test_buyers_record_is_no_authority(mercat: Mercat, tmp_path: Path, passphrase: str) -> None:
    made = mercat("key", "new", "--dir", str(tmp_path / "k"), "--passphrase-file", passphrase)
    (tmp_path / "buyer.json").write_text(made.out)
    refused = mercat(
        "genesis", "new", "--network", "x", "--authority", str(tmp_path / "buyer.json"), "--out", str(tmp_path / "g")
    )
    assert refused.code == 2
    assert "--role authority" in refused.err


def test_join_makes_a_node_that_config_show_can_read(
    mercat: Mercat, genesis: Path, tmp_path: Path, passphrase: str
) -> None:
    folder = tmp_path / "mine"
    joined = mercat(
        "join", str(genesis), "127.0.0.1:7400", "--dir", str(folder), "--role", "provider", "--model", "echo",
        "--passphrase-file", passphrase, "--json",
    )  # fmt: skip
    result = json.loads(joined.out)
    assert result["next"] == f"mercat node run --config {folder}/config.toml"
    settings = json.loads(mercat("config", "show", "--config", result["config"], "--json").out)
    assert settings["seeds"] == {"value": ["127.0.0.1:7400"], "source": result["config"]}
    assert settings["listen"]["value"] == "127.0.0.1:0"
    assert settings["provider.slots"]["source"] == "default"
    assert (
        json.loads(mercat("key", "show", "--dir", str(folder / "keys"), "--json").out)["account"] == result["account"]
    )
    again = mercat("join", str(genesis), "127.0.0.1:7400", "--dir", str(folder), "--passphrase-file", passphrase)
    assert again.code == 2


def test_join_keeps_the_keys_that_are_there(mercat: Mercat, genesis: Path, tmp_path: Path, passphrase: str) -> None:
    before = mercat("key", "list", "--dir", str(tmp_path / "a0" / "keys"), "-q").out
    joined = mercat(
        "join", str(genesis), "127.0.0.1:1", "--dir", str(tmp_path / "a0"), "--role", "authority",
        "--passphrase-file", passphrase,
    )  # fmt: skip
    assert joined.code == 0, joined.err
    assert mercat("key", "list", "--dir", str(tmp_path / "a0" / "keys"), "-q").out == before


def test_join_with_a_wrong_setting_leaves_no_configuration(
    mercat: Mercat, genesis: Path, tmp_path: Path, passphrase: str
) -> None:
    for options in (("--listen", "nowhere"), ("--role", "provider"), ("--role", "provider", "--model", "unheard-of")):
        folder = tmp_path / "mine"
        assert mercat(
            "join", str(genesis), "127.0.0.1:1", "--dir", str(folder), "--passphrase-file", passphrase, *options
        ).code == 2  # fmt: skip
        assert not (folder / "config.toml").exists()


def test_development_network_can_not_be_joined_off_loopback(
    mercat: Mercat, genesis: Path, tmp_path: Path, passphrase: str
) -> None:
    content = json.loads(genesis.read_text())
    content["development"] = True
    genesis.write_text(json.dumps(content))
    arguments = ("join", str(genesis), "127.0.0.1:1", "--dir", str(tmp_path / "mine"), "--passphrase-file", passphrase)
    refused = mercat(*arguments, "--listen", "0.0.0.0:0")
    assert refused.code == 2
    assert "development network" in refused.err
    assert mercat(*arguments).code == 0
    started = mercat("node", "run", "--config", str(tmp_path / "mine" / "config.toml"), "--listen", "0.0.0.0:0")
    assert started.code == 2
    assert "development network" in started.err


def test_existing_keys_are_kept_and_wrong_passphrases_are_four(
    mercat: Mercat, genesis: Path, tmp_path: Path, passphrase: str
) -> None:
    keys = str(tmp_path / "a0" / "keys")
    assert mercat("key", "new", "--role", "authority", "--dir", keys, "--passphrase-file", passphrase).code == 4
    joined = mercat("join", str(genesis), "127.0.0.1:1", "--dir", str(tmp_path / "a0"), "--passphrase-file", passphrase)
    assert joined.code == 0
    wrong = tmp_path / "wrong"
    wrong.write_text("other\n")
    wrong.chmod(0o600)
    config = str(tmp_path / "a0" / "config.toml")
    refused = mercat("node", "run", "--config", config, "--passphrase-file", str(wrong))
    assert refused.code == 4
    assert "does not open" in refused.err
    wrong.chmod(0o644)
    exposed = mercat("node", "run", "--config", config, "--passphrase-file", str(wrong))
    assert exposed.code == 4
    assert "chmod 600" in exposed.err


def test_no_terminal_and_no_passphrase_is_four(mercat: Mercat, tmp_path: Path) -> None:
    ended = mercat("key", "new", "--dir", str(tmp_path / "k"))
    assert ended.code == 4
    assert "--passphrase-file" in ended.err


def test_unknown_key_in_the_file_refuses_to_start(
    mercat: Mercat, genesis: Path, tmp_path: Path, passphrase: str
) -> None:
    folder = tmp_path / "mine"
    mercat("join", str(genesis), "127.0.0.1:1", "--dir", str(folder), "--passphrase-file", passphrase)
    config = folder / "config.toml"
    config.write_text("sedes = []\n" + config.read_text())
    refused = mercat("node", "run", "--config", str(config))
    assert refused.code == 2
    assert f"{config}: unknown key 'sedes'" in refused.err


def test_doctor_names_an_exposed_keystore(mercat: Mercat, genesis: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a0"
    (folder / "keys" / "node.json").chmod(0o644)
    ended = mercat("doctor", "--dir", str(folder), "-q")
    assert "keystore" in ended.out.splitlines()
    assert ended.code == 1
