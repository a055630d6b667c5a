"""Proof and checkpoint files: an account, its record, a channel or a model's publisher, as authorities vouch for it.

Law: what a proof file says is in the rows, which are kept as the state keeps them; nothing in the file only repeats
something else, so a changed byte breaks a named check. Unknown fields are refused. A row is as it was after the last
checkpoint block below the header's, at most ``CHECKPOINT_INTERVAL`` blocks earlier.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, assert_never

import msgspec
from msgspec import Meta

from protocol.ledger.checkpoints import ProvenRow, checkpoint_below
from protocol.ledger.light_chain import (
    ProofInvalid,
    TrustedHeader,
    deciding_set,
    trusted_below,
    trusted_checkpoint,
    trusted_genesis,
    trusted_text,
    verify_decided,
)
from protocol.ledger.light_client import Check
from protocol.ledger.rows import (
    ACCOUNT_PREFIX,
    BOND_PREFIX,
    CHANNEL_PREFIX,
    MODEL_PREFIX,
    NO_ACCOUNT,
    NO_BOND,
    Account,
    Bond,
    Channel,
    Registration,
)
from protocol.ledger.state_tree import DEPTH_MAX, RowProof, verify_row
from protocol.ledger.track_rows import NO_TRACK, TRACK_PREFIX, Role, Track
from protocol.messages.blocks import DecidedHeader, Header, Succession
from protocol.messages.consensus import Certificate
from protocol.messages.genesis import Genesis, Membership, genesis_hash
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import RemoteProtocolError, UserError
from protocol.primitives.limits import SUCCESSIONS_MAX
from protocol.primitives.units import AccountId, ChannelId, Hash, Height, ModelId, TimestampMs

PROOF_FILE_BYTES_MAX = 96 * 1024 * 1024
"""The most successions in hex, with room to spare; a larger file is refused unread."""

Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})*\\Z")]
Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
Subject = Literal["account", "channel", "model", "record"]

_PREFIXES: dict[Subject, tuple[bytes, ...]] = {
    "account": (ACCOUNT_PREFIX, BOND_PREFIX),
    "channel": (CHANNEL_PREFIX,),
    "model": (MODEL_PREFIX,),
    "record": (TRACK_PREFIX + bytes((Role.PROVIDER,)), TRACK_PREFIX + bytes((Role.BUYER,))),
}


class ProofFileInvalid(UserError):
    """A file that is no proof or checkpoint file."""


class RowPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row's value, ``None`` if there is no such row, and its proof."""

    value: Hex | None
    page: Hex
    siblings: Annotated[tuple[Hex32, ...], Meta(max_length=DEPTH_MAX)]


class ProofFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An account (balance and bond), its track record, a channel or a model's registration, with all that shows it."""

    format: Literal["mercat-proof-1"]
    genesis: Hex32
    subject: Subject
    id: Hex32
    rows: Annotated[tuple[RowPart, ...], Meta(min_length=1, max_length=2)]
    """For an account its row and its bond's, for a record those of both roles; for anything else its row."""
    header: Hex
    certificate: Hex
    successions: Annotated[tuple[Hex, ...], Meta(max_length=SUCCESSIONS_MAX)]
    """Every change of who decides between the genesis and the header, oldest first."""


class CheckpointFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header to trust from now on, instead of a genesis whose authorities may be long gone."""

    format: Literal["mercat-checkpoint-1"]
    genesis: Hex32
    header: Hex
    certificate: Hex
    authorities: Hex


class Proven(NamedTuple):
    """What a proof file shows, and what had to be believed for it."""

    checks: tuple[Check, ...]
    """Everything that was checked, in order, up to the first failure."""
    trusted: str
    trusted_at_ms: TimestampMs
    """When what had to be believed was made: how old the trust is."""
    header: Header | None
    checkpoint: Height | None
    """The subject is as it was after this block."""
    account: Account | None
    bond: Bond | None
    channel: Channel | None
    """``None`` in a proof for a channel: there was none with this id."""
    registration: Registration | None
    """``None`` in a proof for a model: nobody had registered it."""
    as_provider: Track | None
    as_buyer: Track | None
    """In a proof for a record ``NO_TRACK`` where nothing was settled; ``None`` in any other."""

    @property
    def failed(self) -> str | None:
        """Name of the first check that failed, or ``None``."""
        return next((check.name for check in self.checks if not check.ok), None)

    @property
    def timestamp_ms(self) -> TimestampMs | None:
        """When the header was made, by its authorities' clocks; the rows are from before."""
        return None if self.header is None else self.header.timestamp_ms


def row_keys(subject: Subject, identity: bytes) -> tuple[bytes, ...]:
    """The rows that a proof for a subject shows, in their order."""
    return tuple(prefix + identity for prefix in _PREFIXES[subject])


def make_proof_file(
    genesis: Hash,
    subject: Subject,
    identity: AccountId | ChannelId | ModelId,
    rows: tuple[ProvenRow, ...],
    decided: tuple[Header, Certificate],
    successions: tuple[Succession, ...],
) -> bytes:
    """A proof file's JSON. ``rows`` are those of ``row_keys``; the header has to name the root of their checkpoint."""
    file = ProofFile(
        format="mercat-proof-1",
        genesis=genesis.hex(),
        subject=subject,
        id=identity.hex(),
        rows=tuple(
            RowPart(
                None if row.value is None else row.value.hex(),
                row.proof.page.hex(),
                tuple(sibling.hex() for sibling in row.proof.siblings),
            )
            for row in rows
        ),
        header=encode(decided[0]).hex(),
        certificate=encode(decided[1]).hex(),
        successions=tuple(encode(succession).hex() for succession in successions),
    )
    return _written(file)


def make_checkpoint_file(genesis: Hash, checkpoint: DecidedHeader) -> bytes:
    """A checkpoint file's JSON. The header must name its own set as the next one."""
    return _written(
        CheckpointFile(
            format="mercat-checkpoint-1",
            genesis=genesis.hex(),
            header=encode(checkpoint.header).hex(),
            certificate=encode(checkpoint.certificate).hex(),
            authorities=encode(checkpoint.authorities).hex(),
        )
    )


def _written(file: ProofFile | CheckpointFile) -> bytes:
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def read_proof_file(content: bytes) -> ProofFile:
    """Inverse of ``make_proof_file``; raises ``ProofFileInvalid`` on anything else. Checks no claim."""
    if len(content) > PROOF_FILE_BYTES_MAX:
        raise ProofFileInvalid(f"a proof file has at most {PROOF_FILE_BYTES_MAX} bytes, not {len(content)}")
    try:
        file = msgspec.json.decode(content, type=ProofFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProofFileInvalid(f"not a proof file: {error}") from None
    if len(file.rows) != len(_PREFIXES[file.subject]):
        raise ProofFileInvalid(f"a proof for a {file.subject} has {len(_PREFIXES[file.subject])} rows")
    return file


def read_checkpoint_file(content: bytes, genesis: Genesis) -> TrustedHeader:
    """What somebody believes who believes a checkpoint file; its signatures are checked.

    Raises ``ProofFileInvalid`` for a file that is none, or one of another network or that nobody decided.
    """
    try:
        file = msgspec.json.decode(content, type=CheckpointFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProofFileInvalid(f"not a checkpoint file: {error}") from None
    if file.genesis != genesis_hash(genesis).hex():
        raise ProofFileInvalid(f"the checkpoint is of network {file.genesis}")
    try:
        checkpoint = DecidedHeader(
            decode(bytes.fromhex(file.header), Header),
            decode(bytes.fromhex(file.certificate), Certificate),
            decode(bytes.fromhex(file.authorities), Membership),
        )
        return trusted_checkpoint(genesis_hash(genesis), checkpoint)
    except RemoteProtocolError as error:
        raise ProofFileInvalid(f"the checkpoint does not hold: {error}") from None


def verify_account(content: bytes, genesis: Genesis, checkpoint: TrustedHeader | None = None) -> tuple[Account, Bond]:
    """What an account had, by the bytes of a proof file: all that a program needs.

    Raises ``ProofFileInvalid`` for a file that is no proof for an account, ``ProofInvalid`` for one that does not hold.
    """
    file = read_proof_file(content)
    if file.subject != "account":
        raise ProofFileInvalid(f"a proof for a {file.subject}")
    proven = verify_proof(file, genesis, checkpoint)
    failed = next((check for check in proven.checks if not check.ok), None)
    if failed is not None:
        raise ProofInvalid(f"{failed.name}: {failed.detail}")
    assert proven.account is not None
    assert proven.bond is not None
    return proven.account, proven.bond


def verify_proof(file: ProofFile, genesis: Genesis, checkpoint: TrustedHeader | None = None) -> Proven:
    """Check everything that a proof file claims, offline; stops at the first check that fails. Never raises.

    A header above the checkpoint has to be decided by authorities that follow from it, any other by those that follow
    from the genesis.
    """
    case = _Case(file, genesis, checkpoint)
    checks: list[Check] = []
    for check in (case.genesis_matches, case.certificate_quorum, *case.row_checks()):
        try:
            checks.append(Check(check.__name__, True, check()))
        except RemoteProtocolError as error:
            checks.append(Check(check.__name__, False, str(error)))
            break
    holds = all(check.ok for check in checks)
    header = case.header if holds else None
    return Proven(
        checks=tuple(checks),
        trusted=trusted_text(case.believed),
        trusted_at_ms=case.believed.header.timestamp_ms,
        header=header,
        checkpoint=None if header is None else case.checkpoint_height,
        account=case.account if holds else None,
        bond=case.bond if holds else None,
        channel=case.channel if holds else None,
        registration=case.registration if holds else None,
        as_provider=case.as_provider if holds else None,
        as_buyer=case.as_buyer if holds else None,
    )


class _Case:
    """A proof file under examination. Each check returns what it found, and later ones use what earlier ones opened."""

    header: Header

    def __init__(self, file: ProofFile, genesis: Genesis, checkpoint: TrustedHeader | None) -> None:
        self.file = file
        self.trusted = trusted_genesis(genesis)
        self.checkpoint = checkpoint
        self.believed = self.trusted
        self.account: Account | None = None
        self.bond: Bond | None = None
        self.channel: Channel | None = None
        self.registration: Registration | None = None
        self.as_provider: Track | None = None
        self.as_buyer: Track | None = None

    @property
    def checkpoint_height(self) -> Height:
        return checkpoint_below(self.header.height - 1)

    def row_checks(self) -> tuple[Callable[[], str], ...]:
        match self.file.subject:
            case "account":
                return self.account_row, self.bond_row
            case "channel":
                return (self.channel_row,)
            case "model":
                return (self.model_row,)
            case "record":
                return self.provider_row, self.buyer_row
            case _:
                assert_never(self.file.subject)

    def genesis_matches(self) -> str:
        if self.file.genesis != self.trusted.genesis.hex():
            raise ProofInvalid(f"the file is of network {self.file.genesis}, not {self.trusted.genesis.hex()}")
        return f"network {self.file.genesis}"

    def certificate_quorum(self) -> str:
        header = decode(bytes.fromhex(self.file.header), Header)
        certificate = decode(bytes.fromhex(self.file.certificate), Certificate)
        successions = tuple(decode(bytes.fromhex(each), Succession) for each in self.file.successions)
        if header.height == 0:
            raise ProofInvalid("nobody signed the genesis")
        self.believed = trusted_below(self.trusted, self.checkpoint, header)
        authorities = deciding_set(self.trusted, self.checkpoint, successions, header)
        verify_decided(self.trusted.genesis, authorities, header, certificate)
        self.header = header
        return f"block {header.height} by {len(certificate.signers)} of {authorities.n} authorities"

    def _row(self, position: int) -> bytes | None:
        part = self.file.rows[position]
        value = None if part.value is None else bytes.fromhex(part.value)
        siblings = tuple(Hash(bytes.fromhex(sibling)) for sibling in part.siblings)
        key = row_keys(self.file.subject, bytes.fromhex(self.file.id))[position]
        verify_row(self.header.checkpoint_root, key, value, RowProof(bytes.fromhex(part.page), siblings))
        return value

    def account_row(self) -> str:
        value = self._row(0)
        self.account = NO_ACCOUNT if value is None else decode(value, Account)
        shown = "no such row" if value is None else f"{self.account.balance} base units, nonce {self.account.nonce}"
        return f"{shown} after block {self.checkpoint_height}"

    def bond_row(self) -> str:
        value = self._row(1)
        self.bond = NO_BOND if value is None else decode(value, Bond)
        shown = "no such row" if value is None else f"{self.bond.amount} base units, {self.bond.unlocking} unlocking"
        return f"{shown} after block {self.checkpoint_height}"

    def channel_row(self) -> str:
        value = self._row(0)
        if value is None:
            return f"no such channel after block {self.checkpoint_height}"
        self.channel = decode(value, Channel)
        shown = f"{self.channel.redeemed} of {self.channel.deposit} base units redeemed"
        return f"{shown} after block {self.checkpoint_height}"

    def model_row(self) -> str:
        value = self._row(0)
        if value is None:
            return f"nobody had registered this model after block {self.checkpoint_height}"
        self.registration = decode(value, Registration)
        return f"registered in block {self.registration.height}"

    def provider_row(self) -> str:
        self.as_provider, shown = self._track(0)
        return shown

    def buyer_row(self) -> str:
        self.as_buyer, shown = self._track(1)
        return shown

    def _track(self, position: int) -> tuple[Track, str]:
        value = self._row(position)
        track = NO_TRACK if value is None else decode(value, Track)
        shown = f"{track.jobs} jobs for {track.volume} base units, {track.failures} failures"
        return track, f"{'nothing settled' if value is None else shown} after block {self.checkpoint_height}"


__all__ = [
    "CheckpointFile",
    "ProofFile",
    "ProofFileInvalid",
    "Proven",
    "make_checkpoint_file",
    "make_proof_file",
    "read_checkpoint_file",
    "read_proof_file",
    "row_keys",
    "verify_account",
    "verify_proof",
]
