"""The genesis as a file that people read: JSON, bech32m addresses, amounts in base units, durations in ms.

Law: the file is a spelling of the ``Genesis`` struct, whose MessagePack bytes are what is hashed. Authorities and
allocations are sorted by key when a genesis is made, so who was named first changes nothing.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.messages.genesis import Allocation, AuthorityRecord, Genesis, Parameters
from protocol.messages.governance import ParametersInvalid, check_parameters
from protocol.primitives.addresses import AddressKind, format_address, parse_address
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import AmountOutOfRange, MalformedMessage, UserError
from protocol.primitives.limits import AUTHORITIES_MAX, TEXT_BYTES_MAX
from protocol.primitives.units import AccountId, AmountField, AuthorityId, NodeId, TimestampField, checked_sum

FORMAT = "mercat-genesis/1"
GENESIS_FILE_BYTES_MAX = 16 * 1024 * 1024
"""About 100,000 allocations."""


class GenesisInvalid(UserError):
    """A file that is no genesis, or one that contradicts itself."""


class AuthorityEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One authority."""

    name: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]
    authority: str
    account: str
    node: str


class AllocationEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Money from the start, in base units."""

    account: str
    balance: AmountField
    bond: AmountField


class ParametersEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``Parameters`` with names; see there for meanings."""

    heartbeat_ms: int
    delta_ms: int
    delta_cap_ms: int
    clock_precision_ms: int
    challenge_ms: int
    unbonding_ms: int
    provider_bond_min: int
    fee_min: int
    redeem_fee_min: int
    redeem_fee_share_ppm: int
    epoch_blocks: int
    evidence_blocks: int
    evidence_ms: int
    motion_ms: int
    motion_timelock_ms: int
    motion_fee_min: int
    issuance_cap: int
    issuance_period_ms: int


class GenesisFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    format: str
    network: Annotated[str, Meta(min_length=1, max_length=TEXT_BYTES_MAX)]
    development: bool
    created_at: TimestampField
    parameters: ParametersEntry
    authorities: Annotated[tuple[AuthorityEntry, ...], Meta(min_length=1, max_length=AUTHORITIES_MAX)]
    allocations: tuple[AllocationEntry, ...]


def _authority(entry: AuthorityEntry) -> AuthorityRecord:
    return AuthorityRecord(
        authority=AuthorityId(parse_address(AddressKind.AUTHORITY, entry.authority)),
        account=AccountId(parse_address(AddressKind.ACCOUNT, entry.account)),
        node=NodeId(parse_address(AddressKind.NODE, entry.node)),
        name=entry.name,
    )


def _allocation(entry: AllocationEntry) -> Allocation:
    return Allocation(AccountId(parse_address(AddressKind.ACCOUNT, entry.account)), entry.balance, entry.bond)


def check_genesis(genesis: Genesis) -> None:
    """Raise ``GenesisInvalid`` on keys named twice, on a supply out of range, or on parameters that can't work."""
    for what, keys in (
        ("authority", [record.authority for record in genesis.authorities]),
        ("node of an authority", [record.node for record in genesis.authorities]),
        ("account of an authority", [record.account for record in genesis.authorities]),
        ("allocation", [allocation.account for allocation in genesis.allocations]),
    ):
        if len(dict.fromkeys(keys)) != len(keys):
            raise GenesisInvalid(f"an {what} is named twice" if what[0] == "a" else f"a {what} is named twice")
    try:
        checked_sum(amount for entry in genesis.allocations for amount in (entry.balance, entry.bond))
    except AmountOutOfRange:
        raise GenesisInvalid("the allocations together exceed the largest amount") from None
    try:
        check_parameters(genesis.parameters, genesis.development)
    except ParametersInvalid as error:
        raise GenesisInvalid(str(error)) from None


def genesis_from_json(content: bytes, source: str) -> Genesis:
    """Parse a genesis file. Raises ``GenesisInvalid`` that names ``source``."""
    try:
        file = msgspec.json.decode(content, type=GenesisFile)
        if file.format != FORMAT:
            raise GenesisInvalid(f"format {file.format!r}, this version reads {FORMAT!r}")
        genesis = Genesis(
            network=file.network,
            development=file.development,
            created_at=file.created_at,
            parameters=Parameters(*msgspec.structs.astuple(file.parameters)),
            authorities=tuple(_authority(entry) for entry in file.authorities),
            allocations=tuple(_allocation(entry) for entry in file.allocations),
        )
        decode(encode(genesis), Genesis)  # every range that the struct declares
        check_genesis(genesis)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, MalformedMessage, UserError) as error:
        raise GenesisInvalid(f"{source} is not a usable genesis: {error}") from None
    return genesis


def genesis_to_json(genesis: Genesis) -> bytes:
    """The file of a genesis; ``genesis_from_json`` gives the same genesis back."""
    file = GenesisFile(
        format=FORMAT,
        network=genesis.network,
        development=genesis.development,
        created_at=genesis.created_at,
        parameters=ParametersEntry(*msgspec.structs.astuple(genesis.parameters)),
        authorities=tuple(
            AuthorityEntry(
                name=record.name,
                authority=format_address(AddressKind.AUTHORITY, record.authority),
                account=format_address(AddressKind.ACCOUNT, record.account),
                node=format_address(AddressKind.NODE, record.node),
            )
            for record in genesis.authorities
        ),
        allocations=tuple(
            AllocationEntry(format_address(AddressKind.ACCOUNT, entry.account), entry.balance, entry.bond)
            for entry in genesis.allocations
        ),
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def load_genesis(path: Path) -> Genesis:
    """Read a genesis file. Raises ``GenesisInvalid``."""
    try:
        with path.open("rb") as file:
            content = file.read(GENESIS_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise GenesisInvalid(f"genesis file {path} can't be read: {error.strerror}") from None
    if len(content) > GENESIS_FILE_BYTES_MAX:
        raise GenesisInvalid(f"genesis file {path} is larger than {GENESIS_FILE_BYTES_MAX} bytes")
    return genesis_from_json(content, str(path))


def make_genesis(
    network: str,
    development: bool,
    created_at: TimestampField,
    parameters: Parameters,
    authorities: tuple[AuthorityRecord, ...],
    allocations: tuple[Allocation, ...],
) -> Genesis:
    """A checked genesis in canonical order. Raises ``GenesisInvalid``."""
    genesis = Genesis(
        network=network,
        development=development,
        created_at=created_at,
        parameters=parameters,
        authorities=tuple(sorted(authorities, key=lambda record: record.authority)),
        allocations=tuple(sorted(allocations, key=lambda allocation: allocation.account)),
    )
    try:
        decode(encode(genesis), Genesis)
    except MalformedMessage as error:
        raise GenesisInvalid(str(error)) from None
    check_genesis(genesis)
    return genesis
