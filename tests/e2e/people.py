"""Nodes that people make by hand: keys, a joined or a hand-written configuration, and a process of their own."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.cli.client import NodeClient
from node.cli.failures import CommandFailed
from node.keystore.files import FAST, create_key
from node.keystore.keys import KeyPurpose
from node.runtime.control import StatusView
from tests.e2e.network import WAIT_SECONDS, Ended, command_line, environment, log_events, run_command, wait_until


@dataclass(slots=True)
class Person:
    """Somebody with a home, a node directory in it and a passphrase file."""

    home: Path
    state_seen_here: Path | None = None
    """Where this process sees the state directory, if the node sees it elsewhere."""

    @classmethod
    def settle(cls, home: Path, keys: bool = True) -> "Person":
        """A home with a passphrase and, unless ``join`` is to make them, keys."""
        home.mkdir(parents=True)
        person = cls(home)
        person.passphrase.write_text("correct horse\n")
        person.passphrase.chmod(0o600)
        if keys:
            person.make_keys()
        return person

    @property
    def passphrase(self) -> Path:
        """File with the passphrase."""
        return self.home / "passphrase"

    @property
    def folder(self) -> Path:
        """The node's directory."""
        return self.home / "n"

    @property
    def config(self) -> Path:
        """The node's configuration file."""
        return self.folder / "config.toml"

    @property
    def control(self) -> Path:
        """The node's control socket."""
        return (self.state_seen_here or self.folder / "state") / "control.sock"

    @property
    def log(self) -> Path:
        """What the node writes to standard error."""
        return self.home / "log"

    def mercat(self, *arguments: str, stdin: bytes = b"", expect: int | None = 0) -> Ended:
        """Run a command that talks to this person's node."""
        variables = {"MERCAT_CONTROL": str(self.control), "MERCAT_GENESIS": str(self.folder / "genesis.json")}
        return run_command(*arguments, home=self.home, variables=variables, stdin=stdin, expect=expect)

    def make_keys(self, *purposes: KeyPurpose) -> None:
        """Keys as ``join`` finds them, sealed by a setting that takes no time; the strong one is not what is tested."""
        passphrase = self.passphrase.read_bytes().rstrip(b"\n")
        for purpose in purposes or (KeyPurpose.NODE, KeyPurpose.ACCOUNT):
            create_key(self.folder / "keys", purpose, passphrase, FAST)

    def address(self) -> str:
        """The account's address."""
        return self.mercat("key", "show", "--dir", str(self.folder / "keys"), "-q").out.strip()

    def join(self, genesis: Path, seeds: Sequence[str], *options: str) -> dict[str, str]:
        """``mercat join``; what it printed."""
        joined: dict[str, str] = self.mercat(
            "join", str(genesis), *seeds, "--dir", str(self.folder), "--passphrase-file", str(self.passphrase),
            "--json", *options,
        ).json  # fmt: skip
        return joined

    @property
    def client(self) -> NodeClient:
        """The control API of this person's node."""
        return NodeClient(self.control)

    def status(self) -> StatusView | None:
        """What the node says, if it answers."""
        try:
            return self.client.status()
        except CommandFailed:
            return None

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events of one name."""
        return [event for event in log_events(self.log) if event["event"] == name]

    def start(self, *before: str) -> "subprocess.Popen[bytes]":
        """Start the node, ``before`` in front of its command line; wait until it serves."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*before, *command_line("node", "run", "--config", str(self.config))],
                env=environment(self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
            )
        try:
            wait_until(lambda: process.poll() is not None or self.status() is not None, "the node serves")
            assert process.poll() is None, self.log.read_text()
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    @contextmanager
    def running(self) -> "Iterator[subprocess.Popen[bytes]]":
        """The node runs for as long as the context lasts, and then stops in order within seconds."""
        process = self.start()
        try:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(WAIT_SECONDS) == 0, self.log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
