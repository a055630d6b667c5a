"""Proof files: what they show, and that no byte of them can be changed."""

import json
from collections.abc import Iterator
from itertools import islice

import pytest

from protocol.engine.decided import take_over
from protocol.ledger.blocks import execute_block
from protocol.ledger.checkpoints import CHECKPOINT_INTERVAL
from protocol.ledger.light_chain import ProofInvalid, TrustedHeader, trusted_checkpoint, trusted_genesis
from protocol.ledger.proof_file import (
    ProofFileInvalid,
    Subject,
    make_checkpoint_file,
    make_proof_file,
    read_checkpoint_file,
    read_proof_file,
    row_keys,
    verify_account,
    verify_proof,
)
from protocol.ledger.registry import REGISTER_FEES
from protocol.ledger.rows import NO_ACCOUNT, NO_BOND, Registration
from protocol.ledger.track_rows import NO_TRACK, Role, track_id
from protocol.messages.blocks import DecidedHeader, Header, Succession
from protocol.messages.consensus import Certificate
from protocol.messages.transactions import ChannelOpen, ChannelRedeem, ModelRegister
from protocol.primitives.codec import decode
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import AccountId, Amount, ChannelId, Height, ModelId, TimestampMs
from protocol.settlement.vouchers import channel_id
from tests.ledger.assembly import Assembly, change
from tests.ledger.dynasty import Dynasty
from tests.ledger.world import FEE, account_of, make_genesis

MANIFEST = b"{}"


class Notary(Assembly):
    """A ledger with an open channel and a change of authorities behind it, one block above a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.successions: list[Succession] = []
        self.decided_headers: list[tuple[Header, Certificate]] = []
        nonce = self.state.account(account_of("alice")).nonce
        self.channel = channel_id(account_of("alice"), account_of("bob"), nonce)
        self.act("alice", ChannelOpen(account_of("bob"), Amount(5_000)))
        self.model = ModelId(content_hash(MANIFEST))
        self.act("bob", ModelRegister(self.model, len(MANIFEST), MANIFEST), FEE * REGISTER_FEES)
        self.act("bob", ChannelRedeem(self.channel, (self.voucher(self.channel, "alice", "bob", 1, 777),)))
        self.decide(change(remove=(3,), add=(8,)))
        while self.state.height % CHECKPOINT_INTERVAL != 1 or self.state.height < CHECKPOINT_INTERVAL:
            self.tick()

    def tick(self, blocks: int = 1) -> None:
        """Empty blocks, taken over as a node does."""
        for _ in range(blocks):
            built = self.build([], TimestampMs(self.state.tip.timestamp_ms + 15_000))
            certificate = self.certify(built.header)
            _, *others = take_over(self.state, execute_block(self.state, built.block), certificate)
            self.successions += [decode(put.value, Succession) for put in others]
            self.decided_headers.append((built.header, certificate))

    def proof(self, subject: Subject, identity: AccountId | ChannelId | ModelId) -> bytes:
        """The file as a node writes it."""
        rows = tuple(self.state.proven_row(key) for key in row_keys(subject, identity))
        present = tuple(row for row in rows if row is not None)
        successions = tuple(self.successions)
        return make_proof_file(self.hash, subject, identity, present, self.decided_headers[-1], successions)


@pytest.fixture(scope="module")
def notary() -> Notary:
    return Notary()


def test_an_account_is_proven_with_its_bond_after_a_change_of_authorities(notary: Notary) -> None:
    assert len(notary.successions) == 1
    content = notary.proof("account", account_of("alice"))
    state = notary.state
    expected = (state.account(account_of("alice")), state.bond(account_of("alice")))
    assert verify_account(content, notary.genesis) == expected
    proven = verify_proof(read_proof_file(content), notary.genesis)
    assert [check.name for check in proven.checks] == [
        "genesis_matches",
        "certificate_quorum",
        "account_row",
        "bond_row",
    ]
    assert proven.checkpoint == state.height - 1
    assert "3 of 4 authorities" in proven.trusted


def test_an_account_that_nobody_paid_is_proven_to_have_nothing(notary: Notary) -> None:
    content = notary.proof("account", AccountId(bytes(32)))
    assert verify_account(content, notary.genesis) == (NO_ACCOUNT, NO_BOND)


def test_a_channel_is_proven_and_so_is_its_absence(notary: Notary) -> None:
    proven = verify_proof(read_proof_file(notary.proof("channel", notary.channel)), notary.genesis)
    assert proven.failed is None
    assert proven.channel == notary.state.channel(notary.channel)
    absent = verify_proof(read_proof_file(notary.proof("channel", ChannelId(bytes(32)))), notary.genesis)
    assert (absent.failed, absent.channel) == (None, None)
    with pytest.raises(ProofFileInvalid, match="channel"):
        verify_account(notary.proof("channel", notary.channel), notary.genesis)


def test_a_track_record_is_proven_in_both_roles_and_so_is_that_there_is_none(notary: Notary) -> None:
    content = notary.proof("record", account_of("bob"))
    proven = verify_proof(read_proof_file(content), notary.genesis)
    assert proven.failed is None
    assert proven.as_provider == notary.state.track(track_id(Role.PROVIDER, account_of("bob")))
    assert proven.as_provider is not None
    assert (proven.as_provider.volume, proven.as_provider.failures) == (777, 0)
    assert proven.as_buyer == NO_TRACK
    absent = verify_proof(read_proof_file(notary.proof("record", AccountId(bytes(32)))), notary.genesis)
    assert (absent.failed, absent.as_provider, absent.as_buyer) == (None, NO_TRACK, NO_TRACK)
    hidden = json.loads(content)
    hidden["rows"][0]["value"] = None
    refused = verify_proof(read_proof_file(json.dumps(hidden).encode()), notary.genesis)
    assert (refused.failed, refused.as_provider) == ("provider_row", None)


def test_a_models_publisher_is_proven_and_so_is_that_there_is_none(notary: Notary) -> None:
    content = notary.proof("model", notary.model)
    proven = verify_proof(read_proof_file(content), notary.genesis)
    assert proven.failed is None
    assert proven.registration == Registration(account_of("bob"), Height(2), len(MANIFEST))
    absent = verify_proof(read_proof_file(notary.proof("model", ModelId(bytes(32)))), notary.genesis)
    assert (absent.failed, absent.registration) == (None, None)
    other = content.replace(notary.model.hex().encode(), bytes(32).hex().encode())
    assert verify_proof(read_proof_file(other), notary.genesis).failed == "model_row"
    forged = content.replace(account_of("bob").hex().encode(), account_of("alice").hex().encode())
    assert forged != content
    refused = verify_proof(read_proof_file(forged), notary.genesis)
    assert (refused.failed, refused.registration) == ("model_row", None)


def changed_files(content: bytes) -> Iterator[bytes]:
    """The file with each hexadecimal digit of each of its values changed in turn."""
    inside, text = False, content.decode()
    for place, character in enumerate(text):
        inside = inside ^ (character == '"')
        if inside and character in "0123456789abcdef" and text[place - 1] in '0123456789abcdef"':
            yield (text[:place] + ("1" if character == "0" else "0") + text[place + 1 :]).encode()


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.long)])
def test_a_changed_digit_anywhere_is_named(notary: Notary, step: int) -> None:
    content = notary.proof("account", account_of("alice"))
    counted = 0
    for forged in islice(changed_files(content), 0, None, step):
        try:
            file = read_proof_file(forged)
        except ProofFileInvalid:
            continue
        proven = verify_proof(file, notary.genesis)
        assert proven.failed is not None, forged
        assert (proven.account, proven.header) == (None, None)
        counted += 1
    assert counted > 5_000 // step
    with pytest.raises(ProofInvalid):
        verify_account(forged, notary.genesis)


def test_one_accounts_rows_do_not_prove_another(notary: Notary) -> None:
    alice = json.loads(notary.proof("account", account_of("alice")))
    bob = json.loads(notary.proof("account", account_of("bob")))
    for field in ("rows", "id"):
        proven = verify_proof(read_proof_file(json.dumps({**alice, field: bob[field]}).encode()), notary.genesis)
        assert proven.failed == "account_row"
    swapped = {**alice, "rows": alice["rows"][::-1]}
    assert verify_proof(read_proof_file(json.dumps(swapped).encode()), notary.genesis).failed == "account_row"


def test_missing_links_and_other_networks_are_named(notary: Notary) -> None:
    file = json.loads(notary.proof("account", account_of("alice")))
    without = read_proof_file(json.dumps({**file, "successions": []}).encode())
    assert verify_proof(without, notary.genesis).failed == "certificate_quorum"
    whole = read_proof_file(json.dumps(file).encode())
    assert verify_proof(whole, make_genesis(balance=7)).failed == "genesis_matches"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"format": "mercat-receipt-1"}', b"[" * 100_000], ids=range(6)
)
def test_other_files_are_no_proofs_and_no_checkpoints(content: bytes, notary: Notary) -> None:
    with pytest.raises(ProofFileInvalid):
        read_proof_file(content)
    with pytest.raises(ProofFileInvalid):
        read_checkpoint_file(content, notary.genesis)


def test_a_proof_with_a_row_too_few_or_a_field_too_many_is_none(notary: Notary) -> None:
    file = json.loads(notary.proof("account", account_of("alice")))
    for wrong in ({**file, "rows": file["rows"][:1]}, {**file, "note": "hello"}, {**file, "subject": "channel"}):
        with pytest.raises(ProofFileInvalid):
            read_proof_file(json.dumps(wrong).encode())


def test_a_checkpoint_file_is_believed_if_its_authorities_decided_it(notary: Notary) -> None:
    header, certificate = notary.decided_headers[-1]
    membership = notary.state.authorities.membership()
    content = make_checkpoint_file(notary.hash, DecidedHeader(header, certificate, membership))
    trusted = read_checkpoint_file(content, notary.genesis)
    assert (trusted.header, trusted.authorities.membership()) == (header, membership)
    for forged in islice(changed_files(content), 0, None, 3):
        with pytest.raises(ProofFileInvalid):
            read_checkpoint_file(forged, notary.genesis)


def test_a_proof_above_a_checkpoint_has_to_follow_from_it_too(notary: Notary) -> None:
    header, certificate = notary.decided_headers[-2]
    trusted = trusted_checkpoint(notary.hash, DecidedHeader(header, certificate, notary.state.authorities.membership()))
    content = notary.proof("account", account_of("alice"))
    proven = verify_proof(read_proof_file(content), notary.genesis, trusted)
    assert proven.failed is None
    assert f"block {header.height}" in proven.trusted
    stranger = Dynasty([], header.height).decided(header.height)
    elsewhere = TrustedHeader(notary.hash, stranger.header, trusted_genesis(notary.genesis).authorities, None)
    assert verify_proof(read_proof_file(content), notary.genesis, elsewhere).failed == "certificate_quorum"
