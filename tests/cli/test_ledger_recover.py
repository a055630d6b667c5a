"""Operators make, sign and configure a recovery document; a node that can't follow it does not start."""

import json
from pathlib import Path

import msgspec
import pytest

from node.config.genesis_file import genesis_to_json
from node.config.recovery_file import load_recovery
from node.keystore.files import FAST, create_key
from node.keystore.keys import KeyPurpose
from node.keystore.records import public_record
from node.runtime.recoveries import follow_recoveries
from node.store.database import Store
from protocol.ledger.recovery import RecoveryRefused
from tests.cli.conftest import Mercat
from tests.ledger.world import key_of, make_genesis
from tests.store.chain import Chain

PASSPHRASE = "correct horse"


class Office:
    """Two operators that are left of four, and the ledger as one of them holds it."""

    def __init__(self, directory: Path, mercat: Mercat) -> None:
        self.directory, self._mercat = directory, mercat
        self.chain = Chain(make_genesis())
        self.genesis = directory / "genesis.json"
        self.genesis.write_bytes(genesis_to_json(self.chain.ledger.genesis))
        self.passphrase = directory / "passphrase"
        self.passphrase.write_text(PASSPHRASE)
        self.passphrase.chmod(0o600)
        for name in ("auth0", "auth1", "auth9"):
            keys = directory / name
            for purpose, key in (
                (KeyPurpose.NODE, f"{name}-node"),
                (KeyPurpose.ACCOUNT, f"{name}-account"),
                (KeyPurpose.AUTHORITY, name),
            ):
                create_key(keys, purpose, PASSPHRASE.encode(), FAST, key_of(key))
            (directory / f"{name}.json").write_bytes(msgspec.json.encode(public_record(keys, name)))
        self.store = Store.open(directory / "ledger.sqlite", self.chain.ledger.genesis)
        for _ in range(3):
            self.store.commit([self.chain.next()])

    def recover(self, signer: str, out: str, *arguments: str) -> tuple[int, str]:
        common = ("--genesis", str(self.genesis), "--dir", str(self.directory / signer), "--json", "-y")
        ended = self._mercat(
            "ledger", "recover", *common, "--passphrase-file", str(self.passphrase), "--out", self.path(out), *arguments
        )
        return ended.code, ended.out + ended.err

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def made(self, height: int, out: str, signer: str = "auth0", block: str = "") -> tuple[int, str]:
        decided = self.store.decided_block(type(self.chain.ledger.state.height)(height))
        assert decided is not None
        assert decided.certificate.block_hash is not None
        members = [part for name in ("auth0", "auth1") for part in ("--authority", self.path(f"{name}.json"))]
        block = block or decided.certificate.block_hash.hex()
        return self.recover(signer, out, "--height", str(height), "--block", block, *members)


@pytest.fixture
def office(tmp_path: Path, mercat: Mercat) -> Office:
    return Office(tmp_path, mercat)


def test_two_operators_sign_one_document_and_the_node_follows_it(office: Office) -> None:
    assert office.made(3, "one.json")[0] == 0
    code, text = office.recover("auth1", "both.json", "--sign", office.path("one.json"))
    assert code == 0, text
    assert json.loads(text)["signers"] == 2
    state = office.store.load_state()
    recovery, signers = load_recovery(Path(office.path("both.json")), state.genesis_hash)
    assert (recovery.height, recovery.block_hash, len(signers)) == (3, state.tip_hash, 2)
    follow_recoveries([Path(office.path("both.json"))], state, office.store)
    assert [record.name for record in state.authorities.records] == [
        record.name for record in recovery.membership.records
    ]
    assert state.authorities.n == 2


@pytest.mark.parametrize(
    ("height", "signer", "block", "reason"),
    [
        (2, "auth0", "", "without the recovery"),
        (3, "auth9", "", "nobody who decides"),
        (3, "auth0", "77" * 32, "another block"),
    ],
)
def test_a_node_does_not_start_with_a_document_that_it_cannot_follow(
    office: Office, height: int, signer: str, block: str, reason: str
) -> None:
    assert office.made(height, "made.json", signer, block)[0] == 0
    with pytest.raises(RecoveryRefused, match=f"made.json: .*{reason}"):
        follow_recoveries([Path(office.path("made.json"))], office.store.load_state(), office.store)


@pytest.mark.parametrize("field", ["height", "block", "genesis", "authorities", "signatures"])
def test_a_document_that_shows_something_else_than_was_signed_is_refused(office: Office, field: str) -> None:
    assert office.made(3, "made.json")[0] == 0
    path = Path(office.path("made.json"))
    document = json.loads(path.read_text())
    other = {"height": 4, "block": "00" * 32, "genesis": "00" * 32, "authorities": [], "signatures": ["c0"]}
    path.write_text(json.dumps({**document, field: other[field]}))
    with pytest.raises(RecoveryRefused):
        load_recovery(path, office.chain.ledger.hash)
    assert office.recover("auth1", "both.json", "--sign", str(path))[0] != 0


def test_without_the_last_block_nothing_is_made(office: Office) -> None:
    code, text = office.recover("auth0", "made.json")
    assert code == 2
    assert "--height, --block, --authority" in text
