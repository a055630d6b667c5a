"""A node whose disk is full stops, says so, and goes on from where it was once there is room.

The disk is a tiny file system in a mount namespace of its own, so the test needs to be allowed to make one.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.cli.cluster_layout import DEVELOPMENT_PARAMETERS
from node.config.genesis_file import genesis_to_json, make_genesis
from node.keystore.files import open_key
from node.keystore.keys import KeyPurpose
from protocol.messages.genesis import Allocation, AuthorityRecord, Genesis
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import CREDIT, AccountId, Amount, AuthorityId, NodeId, TimestampMs
from tests.e2e.network import WAIT_SECONDS
from tests.e2e.people import Person

DISK_BYTES = 4 * 1024 * 1024


@contextmanager
def _small_disk(folder: Path) -> Iterator[int]:
    """A process in whose mount namespace ``folder`` is a file system of ``DISK_BYTES``; skips where that can't be."""
    script = f'mount -t tmpfs -o size={DISK_BYTES},mode=700 tmpfs "$1" && echo mounted && exec sleep infinity'
    holder = subprocess.Popen(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        if holder.stdout.readline() != "mounted\n":
            assert holder.stderr is not None
            pytest.skip(f"no file system can be mounted here: {holder.stderr.read()}")
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()


def _inside(holder: int) -> tuple[str, ...]:
    """Puts a command into the namespaces of the disk's holder."""
    return ("nsenter", "--target", str(holder), "--mount", "--user", "--preserve-credentials", "--")


def _alone(person: Person) -> Genesis:
    """A network of one authority, which has money to send."""
    passphrase = person.passphrase.read_bytes().rstrip(b"\n")
    public = {
        purpose: bytes(open_key(person.folder / "keys", purpose, passphrase).verify_key) for purpose in KeyPurpose
    }
    account = AccountId(public[KeyPurpose.ACCOUNT])
    return make_genesis(
        network="alone",
        development=True,
        created_at=TimestampMs(1_700_000_000_000),
        parameters=DEVELOPMENT_PARAMETERS,
        authorities=(
            AuthorityRecord(AuthorityId(public[KeyPurpose.AUTHORITY]), account, NodeId(public[KeyPurpose.NODE]), "a"),
        ),
        allocations=(Allocation(account, Amount(100 * CREDIT), Amount(0)),),
    )


def test_full_disk_stops_the_node_and_loses_nothing(place: Path) -> None:
    person = Person.settle(place / "packrat")
    person.make_keys(KeyPurpose.AUTHORITY)
    (person.folder / "genesis.json").write_bytes(genesis_to_json(_alone(person)))
    person.config.write_text(
        'genesis = "genesis.json"\nstate = "state"\nroles = ["authority"]\n'
        f'[keystore]\ndirectory = "keys"\npassphrase_file = {json.dumps(str(person.passphrase))}\n'
    )
    state = person.folder / "state"
    state.mkdir()
    recipient = format_address(AddressKind.ACCOUNT, b"r" * 32)
    with _small_disk(state) as holder:
        disk = person.state_seen_here = Path(f"/proc/{holder}/root{state}")
        process = person.start(*_inside(holder))
        try:
            person.mercat("wallet", "send", recipient, "1", "-y")
            _fill(disk / "filler")
            sent = 0
            while process.poll() is None:
                ended = person.mercat("wallet", "send", recipient, "1", "-y", "--timeout", "10", expect=None)
                sent += ended.code == 0
                assert sent < 1_000, "the disk never became full"
            assert process.wait(WAIT_SECONDS) == 1
        finally:
            process.kill()
            process.wait()
        log = person.log.read_text()
        assert "the disk is full" in log
        assert "nothing was lost" in log
        (disk / "filler").unlink()
        process = person.start(*_inside(holder))
        try:
            assert person.client.account(recipient).balance >= (1 + sent) * CREDIT
            before = person.client.ledger().height
            assert before >= 1 + sent
            person.mercat("wallet", "send", recipient, "1", "-y")
            supply = person.client.supply()
            assert supply.total == supply.genesis_total
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0
        finally:
            process.kill()
            process.wait()


def _fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(path).f_bavail == 0
