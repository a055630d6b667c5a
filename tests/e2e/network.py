"""A cluster of real processes for tests: commands as a user types them, and ways to watch, kill and wait.

Everything runs as a subprocess of the installed command; nothing in here reaches into a node.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from node.cli.client import NodeClient
from node.cli.cluster_layout import NodeRecord, existing_record
from node.cli.cluster_processes import is_running, start_ticks
from node.runtime.control import AccountView, ChannelView, JobView
from protocol.primitives.addresses import AddressKind, format_address

T = TypeVar("T")

WAIT_SECONDS = 45.0
COMMAND_SECONDS = 60.0
POLL_SECONDS = 0.05

INPUT_UNIT, OUTPUT_UNIT, REQUEST = 10, 40, 1_000
"""Base units: the prices of a cluster's providers."""
CHUNK_UNITS = 32
"""A buyer's chunks in a language model's job."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


def command_line(*arguments: str) -> list[str]:
    """The installed command in this environment."""
    return [sys.executable, "-m", "node.cli.main", *arguments]


def environment(home: Path) -> dict[str, str]:
    """A user's environment who owns nothing but an empty home directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MERCAT_", "XDG_"))}
    places = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA", "STATE")}
    return {**kept, **places, "HOME": str(home), "NO_COLOR": "1"}


def run_command(
    *arguments: str,
    home: Path,
    variables: dict[str, str] | None = None,
    stdin: bytes = b"",
    expect: int | None = 0,
    seconds: float = COMMAND_SECONDS,
) -> Ended:
    """Run a command to its end and check its exit code."""
    ended = subprocess.run(
        command_line(*arguments),
        env={**environment(home), **(variables or {})},
        input=stdin,
        capture_output=True,
        timeout=seconds,
        cwd=home,
    )
    result = Ended(ended.returncode, ended.stdout.decode("utf-8", "replace"), ended.stderr.decode("utf-8", "replace"))
    assert expect is None or result.code == expect, f"{arguments} ended with {result.code}, not {expect}: {result.err}"
    return result


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Poll until a condition holds; an assertion that says what was waited for if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        select.select([], [], [], POLL_SECONDS)


def log_events(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """The structured events in a log file from a byte position on; a line that is still being written is left out."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def ended_within(process: "subprocess.Popen[bytes]", seconds: float = WAIT_SECONDS) -> int:
    """Exit code of a process that is about to end."""
    return process.wait(seconds)


@dataclass(slots=True)
class Network:
    """One cluster: its directory, the models it sells, and the home of the user who types the commands."""

    folder: Path
    home: Path
    store: Path
    shape: tuple[str, ...] = ()
    _positions: dict[str, int] = field(default_factory=dict)

    def mercat(
        self,
        *arguments: str,
        node: str = "buyer-1",
        stdin: bytes = b"",
        expect: int | None = 0,
        seconds: float = COMMAND_SECONDS,
    ) -> Ended:
        """Run a command as the user of one node."""
        return run_command(
            *arguments, home=self.home, variables=self.variables(node), stdin=stdin, expect=expect, seconds=seconds
        )

    def variables(self, node: str) -> dict[str, str]:
        """What ``mercat cluster env`` would set."""
        return {"MERCAT_CONTROL": str(self.control(node)), "MERCAT_GENESIS": str(self.genesis)}

    def json(self, *arguments: str, node: str = "buyer-1") -> Any:
        """What a command prints with ``--json``."""
        return self.mercat(*arguments, "--json", node=node).json

    @property
    def genesis(self) -> Path:
        """The network's genesis file."""
        return self.folder / "genesis.json"

    def control(self, node: str) -> Path:
        """A node's control socket."""
        return self.folder / "nodes" / node / "state" / "control.sock"

    def record(self, node: str) -> NodeRecord:
        """What the cluster notes about a node."""
        return existing_record(self.folder).named(node)

    # Processes

    def up(self) -> None:
        """Start what does not run, and wait until all of it serves."""
        self.mercat("cluster", "up", "--dir", str(self.folder), *self.shape, "--model-store", str(self.store))

    def stop(self) -> None:
        """Stop every node in order."""
        self.mercat("cluster", "stop", "--dir", str(self.folder))

    def is_whole(self) -> bool:
        """Whether every node runs."""
        return all(is_running(node.process) for node in existing_record(self.folder).nodes)

    def names(self) -> list[str]:
        """All nodes."""
        return [node.name for node in existing_record(self.folder).nodes]

    def running(self) -> list[str]:
        """Nodes whose process runs."""
        return [node.name for node in existing_record(self.folder).nodes if is_running(node.process)]

    def pid(self, name: str) -> int:
        """Process number of a node that runs."""
        process = self.record(name).process
        assert process is not None
        assert is_running(process)
        return process.pid

    def kill(self, *names: str) -> None:
        """SIGKILL nodes at once and wait until their processes are gone."""
        handles = [os.pidfd_open(self.pid(name)) for name in names]
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], WAIT_SECONDS)[0], "SIGKILL did not end a node"
            os.close(handle)

    # Logs

    def mark(self) -> None:
        """From now on ``events`` tells only what is new."""
        self._positions = {name: Path(self.record(name).log).stat().st_size for name in self.names()}

    def events(self, node: str, name: str) -> list[dict[str, Any]]:
        """A node's log events of one name since the last ``mark``."""
        found = log_events(Path(self.record(node).log), self._positions.get(node, 0))
        return [event for event in found if event["event"] == name]

    def assert_no_error_was_logged(self) -> None:
        """No node has written an error or a traceback since its first start; kills are not the node's own error."""
        for name in self.names():
            path = Path(self.record(name).log)
            errors = [event for event in log_events(path) if event["level"] in ("error", "critical")]
            assert not errors, f"{name}: {errors}"
            assert "Traceback" not in path.read_text("utf-8", "replace"), name

    # Facts, asked over the control socket: the same answers as the command line's, without its start

    def client(self, node: str) -> NodeClient:
        """The control API of one node."""
        return NodeClient(self.control(node))

    def account(self, node: str, seen_by: str = "buyer-1") -> AccountView:
        """What the ledger says of a node's account."""
        return self.client(seen_by).account(self.record(node).account)

    def balance(self, account: str, seen_by: str = "buyer-1") -> int:
        """What the ledger says that any account has free."""
        return self.client(seen_by).account(account).balance

    def at_one_height(self, read: Callable[[], T], node: str = "buyer-1") -> T:
        """Several answers of one node from one state of its ledger."""
        while True:
            height = self.height(node)
            answer = read()
            if self.height(node) == height:
                return answer

    def accounts(self, seen_by: str = "buyer-1") -> dict[str, AccountView]:
        """All nodes' accounts."""
        return {name: self.account(name, seen_by) for name in self.names()}

    def height(self, node: str) -> int:
        """A node's tip."""
        return self.client(node).ledger().height

    def is_conserved(self, node: str = "buyer-1") -> bool:
        """Whether all credits are still there, counted by one node."""
        supply = self.client(node).supply()
        parts = supply.balances + supply.deposits + supply.bonds + supply.fee_pool
        return parts == supply.total == supply.genesis_total + supply.issued_by_vote - supply.redeemed_by_vote

    def slots_free(self, provider: str) -> tuple[int, int]:
        """Free slots of a provider, and all of them."""
        view = self.client(provider).provider()
        return view.slots_free, view.slots_total

    def channels(self, node: str = "buyer-1") -> tuple[ChannelView, ...]:
        """A node's channels."""
        return self.client(node).channels()

    def name_of(self, account: str) -> str:
        """The node that has an account."""
        return next(node.name for node in existing_record(self.folder).nodes if node.account == account)

    def jobs(self, node: str) -> dict[str, JobView]:
        """A node's jobs by id."""
        return {view.job: view for view in self.client(node).jobs()}


@contextmanager
def streaming(network: Network, *arguments: str, node: str = "buyer-1") -> "Iterator[subprocess.Popen[bytes]]":
    """``mercat run`` of a long job, caught after the first piece of its output."""
    with subprocess.Popen(
        command_line("run", *arguments),
        env={**environment(network.home), **network.variables(node)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=network.home,
    ) as process:
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], WAIT_SECONDS)[0], "no output came"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


LONG_JOB = ("smollm2-135m", "Tell a very long story about the sea.", "--max-tokens", "1000")
"""Ten seconds or so of work."""


def unused_account(number: int) -> str:
    """An account that nobody has the key of: only the test sends anything there."""
    return format_address(AddressKind.ACCOUNT, bytes([number]) * 32)


def price_of(input_units: int, output_units: int) -> int:
    """What the delivered chunks of a language model's job cost, by the providers' prices."""
    return REQUEST + INPUT_UNIT * input_units + OUTPUT_UNIT * output_units


def processes_in(folder: Path) -> list[str]:
    """Command lines of all processes that have a directory in their arguments or as their working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            working = os.readlink(entry / "cwd")
        except OSError:  # it ended meanwhile, or is a zombie or the kernel's own
            continue
        if str(folder) in arguments or working.startswith(str(folder)):
            found.append(f"{entry.name} {arguments}")
    return found


def descendants(pid: int) -> list[tuple[int, int]]:
    """All processes below one, each as its number and when it started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [(child, start_ticks(child) or 0), *descendants(child)]
    return found


def is_alive(process: tuple[int, int]) -> bool:
    """Whether one of the processes that ``descendants`` found still runs."""
    return start_ticks(process[0]) == process[1]
