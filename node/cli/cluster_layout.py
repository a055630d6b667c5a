"""What a development cluster is on disk: its nodes, their keys, settings and logs, and the record of its processes.

Law: one directory holds all of it; ``cluster.json`` is replaced whole, never edited. Keys are publicly known, so the
genesis says ``development`` and the nodes stay on loopback.
"""

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from node.cli.failures import CommandFailed, ExitCode
from protocol.messages.genesis import Genesis, Parameters
from protocol.primitives.units import CREDIT, Amount, DurationMs

FORMAT = "mercat-cluster/1"
DEFAULT_MODELS = ("smollm2-135m", "magika", "echo")
DEVELOPMENT_PASSPHRASE = b"development"

BUYER_BALANCE = Amount(1_000 * CREDIT)
PROVIDER_BALANCE = Amount(100 * CREDIT)
PROVIDER_BOND = Amount(50 * CREDIT)
AUTHORITY_BALANCE = Amount(10 * CREDIT)

DEVELOPMENT_PARAMETERS = Parameters(
    heartbeat_ms=DurationMs(15_000),
    delta_ms=DurationMs(500),
    delta_cap_ms=DurationMs(10_000),
    clock_precision_ms=DurationMs(500),
    challenge_ms=DurationMs(5_000),
    unbonding_ms=DurationMs(10_000),
    provider_bond_min=Amount(10 * CREDIT),
    fee_min=Amount(100),
    redeem_fee_min=Amount(100),
    redeem_fee_share_ppm=1_000,
    epoch_blocks=50,
    evidence_blocks=1_000,
    evidence_ms=DurationMs(10_000),
    motion_ms=DurationMs(600_000),
    motion_timelock_ms=DurationMs(0),
    motion_fee_min=Amount(1_000),
    issuance_cap=Amount(1_000 * CREDIT),
    issuance_period_ms=DurationMs(60_000),
)


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process that we started. The kernel may give its number to another; the start time tells them apart."""

    pid: int
    start_ticks: int


class NodeRecord(msgspec.Struct, frozen=True):
    """One node of the cluster."""

    name: str
    role: str
    node: str
    account: str
    address: str
    directory: str
    control: str
    log: str
    process: ProcessRecord | None = None
    misconduct: str = ""
    """How this provider cheats from its start on; empty: not at all."""

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return Path(self.directory) / "config.toml"


class ClusterRecord(msgspec.Struct, frozen=True):
    """The whole cluster, as ``cluster.json`` has it."""

    format: str
    genesis: str
    models: tuple[str, ...]
    model_store: str
    nodes: tuple[NodeRecord, ...]

    def named(self, name: str) -> NodeRecord:
        """A node by its name. Raises ``CommandFailed``."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise CommandFailed(f"the cluster has no node {name!r}; it has {names}", ExitCode.USAGE, "usage")

    def with_node(self, changed: NodeRecord) -> "ClusterRecord":
        """The record with one node replaced."""
        nodes = tuple(changed if node.name == changed.name else node for node in self.nodes)
        return msgspec.structs.replace(self, nodes=nodes)

    @property
    def buyer(self) -> NodeRecord:
        """The prefunded buyer."""
        return next(node for node in self.nodes if node.role == "buyer")


def cluster_folder(flag: Path | None) -> Path:
    """The directory of the cluster that a command is about."""
    return (flag or default_cluster_directory()).absolute()


def default_cluster_directory() -> Path:
    """Where a cluster is unless ``--dir`` names another place."""
    from platformdirs import user_state_path

    return user_state_path("mercat") / "cluster"


def default_model_store() -> Path:
    """Model files are large and content-addressed: all clusters of a user share them."""
    from platformdirs import user_cache_path

    return user_cache_path("mercat") / "models"


def record_path(directory: Path) -> Path:
    """The cluster's record."""
    return directory / "cluster.json"


def read_record(directory: Path) -> ClusterRecord | None:
    """The cluster in a directory, or None. Raises ``CommandFailed`` if the record is damaged."""
    path = record_path(directory)
    try:
        record = msgspec.json.decode(path.read_bytes(), type=ClusterRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise CommandFailed(f"{path} is damaged: {error}", ExitCode.FAILED, "damaged_record") from None
    if record.format != FORMAT:
        raise CommandFailed(f"{path} has format {record.format!r}, this version reads {FORMAT!r}")
    return record


def existing_record(directory: Path) -> ClusterRecord:
    """The cluster in a directory; ``CommandFailed`` if there is none."""
    record = read_record(directory)
    if record is None:
        raise CommandFailed(f"no cluster in {directory}; start one with: mercat cluster up", ExitCode.FAILED)
    return record


def write_record(directory: Path, record: ClusterRecord) -> None:
    """Replace the record."""
    draft = directory / ".cluster.json.draft"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    draft.replace(record_path(directory))


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on now, all different."""
    with contextlib.ExitStack() as sockets:
        addresses = []
        for _ in range(count):
            probe = sockets.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{probe.getsockname()[1]}")
    return addresses


def can_listen(address: str) -> bool:
    """Whether nobody listens on an address now."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


MISCONDUCTS = ("overcharge", "stop", "wrong-chunk", "miscount", "wrong-receipt")
"""How bad providers cheat, in the order in which they are made."""


class Shape(msgspec.Struct, frozen=True):
    """How many nodes of each kind a cluster has."""

    authorities: int
    providers: int
    bad_providers: int = 0

    def names(self) -> list[tuple[str, str]]:
        """(name, role) of every node."""
        return [
            *((f"authority-{number}", "authority") for number in range(1, self.authorities + 1)),
            *((f"provider-{number}", "provider") for number in range(1, self.providers + 1)),
            *((bad_name(number), "provider") for number in range(1, self.bad_providers + 1)),
            ("buyer-1", "buyer"),
        ]

    def misconduct(self, name: str) -> str:
        """How a node cheats; empty for an honest one."""
        numbers = (number for number in range(1, self.bad_providers + 1) if bad_name(number) == name)
        return next((MISCONDUCTS[(number - 1) % len(MISCONDUCTS)] for number in numbers), "")


def bad_name(number: int) -> str:
    """A bad provider's name."""
    return f"bad-{number}"


def development_genesis(names: Sequence[tuple[str, str]]) -> Genesis:
    """The genesis of a cluster, from its nodes' fixed keys."""
    from node.config.genesis_file import make_genesis
    from node.keystore.development import development_keys
    from protocol.messages.genesis import Allocation, AuthorityRecord
    from protocol.primitives.units import TimestampMs

    authorities, allocations = [], []
    for name, role in names:
        keys = development_keys(name, role == "authority")
        if keys.authority_id is not None:
            authorities.append(AuthorityRecord(keys.authority_id, keys.account_id, keys.node_id, name))
        balance = {"authority": AUTHORITY_BALANCE, "provider": PROVIDER_BALANCE, "buyer": BUYER_BALANCE}[role]
        bond = PROVIDER_BOND if role == "provider" else Amount(0)
        allocations.append(Allocation(keys.account_id, balance, bond))
    return make_genesis(
        network="development",
        development=True,
        created_at=TimestampMs(time.time_ns() // 1_000_000),
        parameters=DEVELOPMENT_PARAMETERS,
        authorities=tuple(authorities),
        allocations=tuple(allocations),
    )


def create_cluster(directory: Path, shape: Shape, models: tuple[str, ...], model_store: Path) -> ClusterRecord:
    """Lay a new cluster's files; nothing runs yet. ``models`` are absolute paths of descriptions."""
    from node.config.genesis_file import genesis_to_json
    from node.config.loading import UNIX_SOCKET_PATH_BYTES_MAX

    names = shape.names()
    longest = max(len(str(directory / "nodes" / name / "state" / "control.sock").encode()) for name, _ in names)
    if longest > UNIX_SOCKET_PATH_BYTES_MAX:
        raise CommandFailed(
            f"{directory} is too long a path: control sockets in it would have {longest} bytes and the kernel takes "
            f"{UNIX_SOCKET_PATH_BYTES_MAX}; choose a shorter --dir",
            ExitCode.USAGE,
        )
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / "logs").mkdir(exist_ok=True)
    (directory / "genesis.json").write_bytes(genesis_to_json(development_genesis(names)))
    passphrase_file = directory / "passphrase"
    passphrase_file.touch(mode=0o600)
    passphrase_file.write_bytes(DEVELOPMENT_PASSPHRASE + b"\n")
    nodes = [
        _create_node(directory, name, role, address, shape.misconduct(name))
        for (name, role), address in zip(names, free_addresses(len(names)), strict=True)
    ]
    record = ClusterRecord(FORMAT, str(directory / "genesis.json"), models, str(model_store), tuple(nodes))
    write_configs(directory, record)
    write_record(directory, record)
    return record


def _create_node(directory: Path, name: str, role: str, address: str, misconduct: str) -> NodeRecord:
    from node.keystore.development import development_keys
    from node.keystore.files import FAST, create_key, key_path
    from node.keystore.keys import KeyPurpose, address_of

    folder = directory / "nodes" / name
    folder.mkdir(parents=True, exist_ok=True)
    keys = development_keys(name, role == "authority")
    for purpose, key in ((KeyPurpose.NODE, keys.node), (KeyPurpose.ACCOUNT, keys.account)):
        if not key_path(folder / "keys", purpose).exists():
            create_key(folder / "keys", purpose, DEVELOPMENT_PASSPHRASE, FAST, key)
    if keys.authority is not None and not key_path(folder / "keys", KeyPurpose.AUTHORITY).exists():
        create_key(folder / "keys", KeyPurpose.AUTHORITY, DEVELOPMENT_PASSPHRASE, FAST, keys.authority)
    return NodeRecord(
        name=name,
        role=role,
        node=address_of(KeyPurpose.NODE, keys.node),
        account=address_of(KeyPurpose.ACCOUNT, keys.account),
        address=address,
        directory=str(folder),
        control=str(folder / "state" / "control.sock"),
        log=str(directory / "logs" / f"{name}.log"),
        misconduct=misconduct,
    )


def write_configs(directory: Path, record: ClusterRecord) -> None:
    """Every node's ``config.toml``, from the record."""
    from node.config.writing import Table, Value, toml_text

    authorities = [node.address for node in record.nodes if node.role == "authority"]
    for node in record.nodes:
        top: dict[str, Value] = {
            "genesis": record.genesis,
            "state": "state",
            "roles": [node.role],
            "listen": node.address,
            "seeds": [address for address in authorities if address != node.address],
        }
        sections: dict[str, Table] = {
            "keystore": {"directory": "keys", "passphrase_file": str(directory / "passphrase")},
            "log": {"level": "info", "json": True},
        }
        sold: list[Table] = []
        if node.role == "provider":
            sections["provider"] = {"model_store": record.model_store, "slots": 2, "region": "local"}
            # Small money soon on the ledger: a person who tries things out wants to see it arrive.
            sections["provider.redeem"] = {"amount": 10_000, "age_ms": 2_000}
            # Who cheats is a little cheaper: that is how it gets its jobs.
            prices: Table = {"request": 900, "input_per_thousand": 9_000, "output_per_thousand": 36_000}
            sold = [
                {"description": description, **(prices if node.misconduct else {})} for description in record.models
            ]
        comment = "A node of a development cluster, written by `mercat cluster up`."
        node.config.write_text(toml_text(top, sections, {"provider.models": sold}, comment))


def remove_files(directory: Path) -> None:
    """Delete a cluster's directory, all but model files elsewhere. Only what has a cluster's record is deleted."""
    import shutil

    existing_record(directory)
    shutil.rmtree(directory)


def log_tail(path: Path, lines: int, bytes_max: int = 1_000_000) -> list[str]:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bytes_max))
            content = file.read(bytes_max)
    except FileNotFoundError:
        return []
    return content.decode("utf-8", "replace").splitlines()[-lines:]
