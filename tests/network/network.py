"""Authorities as real processes, each in a network namespace of its own, made as a user makes them.

Law: a network between machines, not a development one: keys are generated, the genesis comes from ``mercat genesis
new``, each node's configuration from ``mercat join``. Only the keys' passphrase is cheap to guess, so that a start
does not take seconds.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from node.cli.client import NodeClient
from node.cli.failures import CommandFailed
from node.cli.main import run_command
from node.keystore.files import FAST, create_key
from node.keystore.keys import KeyPurpose
from node.keystore.records import PublicRecord, public_record
from tests.network.audit import Chain, check_supply, wait_level
from tests.network.namespaces import ROOT, Namespace, open_namespace
from tests.network.payments import Answer, Book, Payer, at_once
from tests.network.switch import Switch
from tests.network.waiting import seconds_until

PASSPHRASE = b"a network of tests"
PORT = 7400
START_SECONDS = 30.0
STOP_SECONDS = 15.0
BALANCE_CREDITS = 1_000
STILL_SECONDS = 1.0


def _mercat(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = run_command(arguments)
    assert code == 0, out.getvalue()


@dataclass(slots=True)
class Member:
    """One authority's directory, namespace and process."""

    place: int
    folder: Path
    record: PublicRecord
    namespace: Namespace
    clock_offset_ms: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    lifeline: int = -1
    starts: int = 0

    @property
    def account(self) -> str:
        """Address of its money."""
        return self.record.account

    @property
    def client(self) -> NodeClient:
        """Of its control socket, which is a file and passes through namespaces."""
        return NodeClient(self.folder / "state" / "control.sock")

    @property
    def log(self) -> Path:
        """What the process writes, over all its lives."""
        return self.folder / "log"

    def start(self) -> None:
        """Start the process; it ends when we do."""
        reading, self.lifeline = os.pipe()
        inside = [sys.executable, "-m", "tests.network.member", str(self.namespace.pid), str(self.clock_offset_ms)]
        command = ["node", "run", "--config", str(self.folder / "config.toml"), "--lifeline", str(reading)]
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [*inside, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(reading,),
                    start_new_session=True,
                    cwd=ROOT,
                )
        finally:
            os.close(reading)
        self.starts += 1

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the process and wait until it is gone."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.folder.name} ended by itself, read {self.log}"
        self.process.send_signal(number)
        self.process.wait(STOP_SECONDS)
        os.close(self.lifeline)
        self.process = None

    def answers(self) -> bool:
        """Whether it serves. Raises if it has ended by itself."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.folder.name} ended by itself, read {self.log}"
        try:
            self.client.status(5)
        except CommandFailed:
            return False
        return True

    def height(self) -> int:
        """Its tip; −1 while it does not answer."""
        try:
            return self.client.ledger().height
        except CommandFailed:
            return -1


@dataclass(slots=True)
class Network:
    """The members, the switch between them, and the book of their payments."""

    members: list[Member]
    switch: Switch
    book: Book = field(default_factory=Book)
    _chain: Chain | None = None

    @property
    def payers(self) -> list[Payer]:
        """All members."""
        return [*self.members]

    def heights(self) -> list[int]:
        """Each member's tip."""
        return [member.height() for member in self.members]

    def start(self) -> None:
        """Start those that don't run, and wait until all serve."""
        for member in self.members:
            if member.process is None:
                member.start()
        seconds_until(lambda: all(member.answers() for member in self.members), START_SECONDS, "every node serves")

    def wait_linked(self) -> None:
        """Until each is linked to each."""
        wanted = len(self.members) - 1

        def linked() -> bool:
            return all(len(member.client.status().peers) == wanted for member in self.members)

        seconds_until(linked, START_SECONDS, "every node linked to every other")

    def probe(self, within: float, places: Sequence[int] | None = None) -> float:
        """A new payment through each member (or those named) is decided in time; the longest took so many seconds."""
        chosen = self.members if places is None else [self.members[place] for place in places]
        took: list[float] = []
        lock = threading.Lock()

        def pay(member: Member) -> None:
            recipient = self.members[(member.place + 1) % len(self.members)].account
            payment = self.book.pay(member, recipient, int(within * 1000))
            assert payment.answer is Answer.DECIDED, f"{member.folder.name}: {payment}"
            with lock:
                took.append(payment.seconds)

        at_once([lambda member=member: pay(member) for member in chosen])  # type: ignore[misc]
        return max(took)

    def wait_still(self) -> None:
        """Until what was under way when the network was parted has arrived: no height moves for a second."""
        last: list[int] = []
        since = time.monotonic()

        def still() -> bool:
            nonlocal last, since
            heights = self.heights()
            if heights != last:
                last, since = heights, time.monotonic()
            return time.monotonic() - since > STILL_SECONDS

        seconds_until(still, START_SECONDS, "a parted network comes to rest")

    def audit(self) -> Chain:
        """All nodes at one tip, and everything in ``audit.py`` holds."""
        clients = [member.client for member in self.members]
        wait_level(clients)
        if self._chain is None:
            self._chain = Chain(clients[0].ledger().quorum)
        self._chain.extend(clients)
        self._chain.check_payments(self.book.payments)
        check_supply(clients)
        return self._chain

    def close(self) -> None:
        """End every process."""
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.send_signal(signal.SIGTERM)
        for member in self.members:
            if member.process is not None:
                try:
                    member.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    member.process.kill()
                    member.process.wait(STOP_SECONDS)
                os.close(member.lifeline)


def _lay(folder: Path, places: int, parameters: Sequence[str]) -> list[tuple[Path, PublicRecord, str]]:
    """Keys, genesis and configurations of so many authorities."""
    passphrase = folder / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_bytes(PASSPHRASE + b"\n")
    laid, grants = [], []
    for place in range(places):
        home = folder / f"a{place + 1}"
        for purpose in KeyPurpose:
            create_key(home / "keys", purpose, PASSPHRASE, FAST)
        record = public_record(home / "keys", home.name)
        (folder / f"{home.name}.json").write_bytes(msgspec.json.encode(record))
        grants += ["--authority", str(folder / f"{home.name}.json")]
        grants += ["--allocate", f"{record.account}={BALANCE_CREDITS}"]
        laid.append((home, record, f"10.77.0.{place + 1}"))
    changes = [option for parameter in parameters for option in ("--parameter", parameter)]
    genesis = str(folder / "genesis.json")
    _mercat("genesis", "new", "--network", "namespaces", *grants, *changes, "--out", genesis)
    for home, _, address in laid:
        seeds = [f"{other}:{PORT}" for _, _, other in laid if other != address]
        _mercat(
            "join", genesis, *seeds, "--role", "authority", "--listen", f"{address}:{PORT}", "--dir", str(home),
            "--passphrase-file", str(passphrase),
        )  # fmt: skip
    return laid


@contextmanager
def real_network(
    folder: Path,
    authorities: int,
    *,
    seed: int,
    parameters: Sequence[str] = (),
    clock_offsets_ms: Sequence[int] = (),
) -> Iterator[Network]:
    """A running network; everything of it is gone at the end, whatever happens inside."""
    laid = _lay(folder, authorities, parameters)
    with contextlib.ExitStack() as stack:
        members = []
        for place, (home, record, address) in enumerate(laid):
            namespace = open_namespace(address)
            stack.callback(namespace.close)
            member = Member(place, home, record, namespace)
            member.clock_offset_ms = clock_offsets_ms[place] if place < len(clock_offsets_ms) else 0
            members.append(member)
        switch = stack.enter_context(Switch([member.namespace for member in members], seed))
        network = Network(members, switch)
        stack.callback(network.close)
        network.start()
        network.wait_linked()
        yield network
