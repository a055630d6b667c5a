"""The sample configurations are what a node takes, settings that a comment only shows included."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from node.cli.genesis import PRODUCTION_PARAMETERS
from node.config.genesis_file import genesis_to_json, make_genesis
from node.config.loading import check_exposure, load_config
from node.config.settings import Role
from node.keystore.files import FAST, create_key
from node.keystore.keys import KeyPurpose, NodeKeys
from protocol.messages.genesis import AuthorityRecord, Genesis
from protocol.primitives.units import TimestampMs
from tests.repository.readme import ROOT

SAMPLES = sorted((ROOT / "configs").glob("*.toml"))
SHOWN_ONLY = re.compile(r"^# (?=[a-z_]+ = )", re.MULTILINE)
"""A setting that is commented out."""

each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)


def keystore(directory: Path) -> NodeKeys:
    """All keys a node can need, under the passphrase ``sample``."""
    made = [create_key(directory, purpose, b"sample", FAST) for purpose in KeyPurpose]
    keys = dict(zip(KeyPurpose, made, strict=True))
    return NodeKeys(keys[KeyPurpose.NODE], keys[KeyPurpose.ACCOUNT], keys[KeyPurpose.AUTHORITY])


def genesis_of(keys: NodeKeys) -> Genesis:
    """A network between machines with one authority."""
    assert keys.authority_id is not None
    return make_genesis(
        network="sample",
        development=False,
        created_at=TimestampMs(0),
        parameters=PRODUCTION_PARAMETERS,
        authorities=(AuthorityRecord(keys.authority_id, keys.account_id, keys.node_id, "sample"),),
        allocations=(),
    )


def place(sample: Path, folder: Path) -> Genesis:
    """A directory as the sample wants it around it."""
    genesis = genesis_of(keystore(folder / "keys"))
    (folder / "genesis.json").write_bytes(genesis_to_json(genesis))
    passphrase = folder / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("sample\n")
    shutil.copy(sample, folder / "config.toml")
    return genesis


def test_there_is_a_sample_for_each_role_and_for_none() -> None:
    assert {path.stem for path in SAMPLES} == {role.value for role in Role} | {"follower"}


@each_sample
def test_sample_is_for_the_role_that_it_is_named_after(sample: Path) -> None:
    roles = load_config(sample).config.roles
    assert [role.value for role in roles] == [name for name in [sample.stem] if name != "follower"]


@each_sample
def test_settings_that_are_commented_out_are_settings(sample: Path, tmp_path: Path) -> None:
    text, shown = SHOWN_ONLY.subn("", sample.read_text())
    assert shown
    path = tmp_path / "config.toml"
    path.write_text(text)
    sources = load_config(path).sources
    assert sum(source == str(path) for source in sources.values()) > sum(
        source == str(sample) for source in load_config(sample).sources.values()
    )


@each_sample
def test_sample_may_serve_a_network_between_machines(sample: Path, tmp_path: Path) -> None:
    genesis = place(sample, tmp_path)
    check_exposure(load_config(tmp_path / "config.toml").config, genesis)


@each_sample
def test_node_runs_with_the_sample(sample: Path, tmp_path: Path) -> None:
    place(sample, tmp_path)
    command = [
        sys.executable, "-m", "node.cli.main", "node", "run", "--config", str(tmp_path / "config.toml"),
        "--passphrase-file", str(tmp_path / "passphrase"), "--listen", "127.0.0.1:0", "--set", "log.json=true",
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as node:
        give_up = threading.Timer(60, node.kill)
        give_up.start()
        assert node.stderr is not None
        seen = []
        for line in node.stderr:
            seen.append(line)
            event = json.loads(line)
            if (event["room"], event["event"]) == ("node", "started"):
                node.send_signal(signal.SIGTERM)
        status = node.wait()
        give_up.cancel()
    assert (status, any('"started"' in line for line in seen)) == (0, True), "".join(seen)
