"""Snapshots from peers, honest and lying: only what holds becomes the state, and who gave what doesn't is named."""

from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace
from nacl.signing import SigningKey

from protocol.engine.events import PeerMisbehaved
from protocol.engine.snapshots import CHUNK_MS, OFFERS_MS, Fetched, SnapshotSync, offer_checks
from protocol.ledger.errors import StateInvalid
from protocol.ledger.lattice import EMPTY_LATTICE, lattice_root, updated
from protocol.ledger.rows import ACCOUNT_PREFIX, AUTHORITIES_KEY, Account
from protocol.ledger.snapshots import cut_rows, joined_rows, judge_rows
from protocol.messages import wire
from protocol.messages.blocks import header_hash
from protocol.messages.consensus import CertificateKind
from protocol.messages.effects import (
    Disconnect,
    Effect,
    InstallSnapshot,
    KeepSnapshot,
    KeepSnapshotChunk,
    Notify,
    Now,
    Send,
)
from protocol.messages.genesis import Membership
from protocol.messages.snapshots import SnapshotManifest
from protocol.primitives.codec import encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.hashing import content_hash
from protocol.primitives.limits import SNAPSHOT_CHUNK_BYTES_MAX
from protocol.primitives.units import Amount, AuthorityId, Height, MonotonicMs, NodeId, Nonce, TimestampMs
from tests.ledger.world import Ledger, account_of
from tests.store.chain import transfer

TIP = Height(0)


def node(name: str) -> NodeId:
    return NodeId(bytes(SigningKey(name.encode().ljust(32, b"!")).verify_key))


def at(milliseconds: int) -> Now:
    return Now(MonotonicMs(milliseconds), TimestampMs(milliseconds))


@dataclass
class Snapshot:
    """A state at some height, cut."""

    ledger: Ledger
    manifest: SnapshotManifest
    chunks: list[bytes]

    def altered(self, index: int, chunk: bytes) -> "Snapshot":
        """The same with one chunk replaced, and the manifest to go with it."""
        chunks = [*self.chunks[:index], chunk, *self.chunks[index + 1 :]]
        hashes = tuple(content_hash(each) for each in chunks)
        return Snapshot(self.ledger, replace(self.manifest, chunks=hashes), chunks)


def make_snapshot() -> Snapshot:
    ledger = Ledger()
    for number in range(3):
        execution = ledger.include(ledger.transaction("alice", transfer(f"stranger {number}", 3)))
    certificate = ledger.decided(execution)
    chunks = [execution.block_bytes, *cut_rows(ledger.state.rows())]
    manifest = SnapshotManifest(execution.header, certificate, (), tuple(content_hash(chunk) for chunk in chunks))
    return Snapshot(ledger, manifest, chunks)


SNAPSHOT = make_snapshot()
EVE = (ACCOUNT_PREFIX + account_of("eve"), encode(Account(Amount(9), Nonce(0))))
LIE = SNAPSHOT.altered(1, next(cut_rows([EVE])))


@dataclass
class Seeker:
    """A node that needs a snapshot, and peers that answer at once unless they are told not to."""

    serving: dict[NodeId, Snapshot | None]
    authorities: tuple[NodeId, ...] = ()
    silent: dict[NodeId, None] = field(default_factory=dict)
    garbling: dict[NodeId, None] = field(default_factory=dict)
    sync: SnapshotSync = field(default_factory=SnapshotSync)
    kept: dict[int, bytes] = field(default_factory=dict)
    installed: SnapshotManifest | None = None
    named: list[NodeId] = field(default_factory=list)
    requests: list[tuple[NodeId, wire.WireMessage]] = field(default_factory=list)
    now: int = 0

    def go_on(self, rounds: int = 1) -> None:
        """Look after it so many times, a long while apart."""
        for _ in range(rounds):
            self.carry_out(self.sync.drive(tuple(self.serving), self.authorities, TIP, at(self.now)))
            self.now += CHUNK_MS

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self.requests.append((to, message))
                    self.answer(to, message)
                case KeepSnapshot():
                    self.kept.clear()
                case KeepSnapshotChunk(index, payload):
                    self.kept[index] = payload
                case InstallSnapshot(manifest):
                    self.judge(manifest)
                case Notify(event=PeerMisbehaved() as misbehaved):
                    self.named.append(NodeId(misbehaved.peer))
                case Disconnect(peer):
                    self.serving.pop(peer, None)
                case _:
                    pass

    def answer(self, peer: NodeId, message: wire.WireMessage) -> None:
        snapshot = self.serving.get(peer)
        if peer in self.silent:
            return
        match message:
            case wire.SnapshotRequest():
                offer = wire.SnapshotOffer(snapshot.manifest if snapshot is not None else None)
                self.carry_out(self.sync.offered(peer, offer, TIP, at(self.now)))
            case wire.SnapshotChunkRequest(height, index):
                payload = snapshot.chunks[index] if snapshot is not None else b""
                chunk = wire.SnapshotChunk(height, index, b"garbled" if peer in self.garbling else payload)
                self.carry_out(self.sync.received(peer, chunk, TIP, at(self.now)))
            case _:
                raise AssertionError(message)

    def judge(self, manifest: SnapshotManifest) -> None:
        try:
            rows = joined_rows(self.kept[index] for index in range(1, len(manifest.chunks)))
            judge_rows(SNAPSHOT.ledger.genesis, manifest.header, rows)
        except StateInvalid as error:
            self.carry_out(self.sync.refused(str(error), TIP, at(self.now)))
            return
        self.installed = manifest
        self.sync.installed()


def test_a_snapshot_is_fetched_from_all_who_offer_it_and_taken() -> None:
    seeker = Seeker({node("a"): SNAPSHOT, node("b"): SNAPSHOT, node("c"): None})
    seeker.go_on()
    assert seeker.installed == SNAPSHOT.manifest
    assert [seeker.kept[index] for index in range(len(SNAPSHOT.chunks))] == SNAPSHOT.chunks
    assert seeker.named == []


def test_what_most_authorities_offer_is_tried_first_whatever_strangers_offer() -> None:
    strangers = {node(f"stranger {number}"): LIE for number in range(5)}
    honest = node("authority")
    seeker = Seeker({**strangers, honest: SNAPSHOT}, authorities=(honest,))
    seeker.go_on()
    assert seeker.installed == SNAPSHOT.manifest
    assert {peer for peer, message in seeker.requests if isinstance(message, wire.SnapshotChunkRequest)} == {honest}


def test_rows_that_do_not_give_the_root_cost_everybody_who_offered_them_the_link_and_others_are_asked() -> None:
    liars = [node("liar 1"), node("liar 2")]
    seeker = Seeker({liars[0]: LIE, liars[1]: LIE, node("honest"): SNAPSHOT})
    seeker.go_on(3)
    assert seeker.installed == SNAPSHOT.manifest
    assert sorted(seeker.named) == sorted(liars)


def test_a_content_that_was_refused_is_not_fetched_again_from_somebody_else() -> None:
    seeker = Seeker({node("liar"): LIE})
    seeker.go_on(2)
    assert seeker.named == [node("liar")]
    seeker.serving[node("second liar")] = LIE
    seeker.requests.clear()
    seeker.go_on(3)
    assert not any(isinstance(message, wire.SnapshotChunkRequest) for _, message in seeker.requests)
    assert seeker.installed is None


def test_a_chunk_with_another_hash_names_its_giver_and_comes_from_another() -> None:
    seeker = Seeker({node("a"): SNAPSHOT, node("b"): SNAPSHOT}, garbling={node("a"): None})
    seeker.go_on(2)
    assert seeker.installed == SNAPSHOT.manifest
    assert seeker.named == [node("a")]


@pytest.mark.parametrize("also", [True, False])
def test_silent_peers_are_passed_over(also: bool) -> None:
    """Some never say what they have, others offer and then send nothing."""
    seeker = Seeker({node("mute"): SNAPSHOT, node("a"): SNAPSHOT}, silent={node("mute"): None})
    seeker.go_on()
    if also:
        seeker.silent[node("a")] = None
        seeker.serving[node("late")] = SNAPSHOT
    seeker.now += OFFERS_MS
    seeker.go_on(3)
    assert seeker.installed == SNAPSHOT.manifest
    assert seeker.named == []


def test_a_peer_that_has_dropped_its_snapshot_meanwhile_is_not_blamed() -> None:
    gone = node("gone")
    seeker = Seeker({gone: SNAPSHOT}, silent={gone: None})
    seeker.go_on()
    offer = wire.SnapshotOffer(SNAPSHOT.manifest)
    seeker.carry_out(seeker.sync.offered(gone, offer, TIP, at(0)))
    seeker.carry_out(seeker.sync.received(gone, wire.SnapshotChunk(Height(3), 0, b""), TIP, at(0)))
    seeker.serving = {node("other"): SNAPSHOT}
    seeker.go_on()
    assert seeker.installed == SNAPSHOT.manifest
    assert seeker.named == []


def test_what_an_earlier_life_has_fetched_is_not_asked_for_again() -> None:
    seeker = Seeker({node("a"): SNAPSHOT})
    seeker.sync.resume(Fetched(SNAPSHOT.manifest, (1,)))
    seeker.kept[1] = SNAPSHOT.chunks[1]
    seeker.go_on()
    asked = [message.index for _, message in seeker.requests if isinstance(message, wire.SnapshotChunkRequest)]
    assert asked == [0]
    assert seeker.installed == SNAPSHOT.manifest


def test_nobody_is_believed_what_was_not_asked() -> None:
    sync = SnapshotSync()
    assert sync.offered(node("a"), wire.SnapshotOffer(SNAPSHOT.manifest), TIP, at(0)) == []
    assert sync.received(node("a"), wire.SnapshotChunk(Height(3), 0, b"x"), TIP, at(0)) == []
    assert sync.manifest is None
    assert not sync.has_asked(node("a"))


def test_a_snapshot_that_blocks_have_overtaken_is_not_installed_and_offering_it_is_no_offence() -> None:
    giver, height = node("a"), SNAPSHOT.manifest.header.height
    sync, offer = SnapshotSync(), wire.SnapshotOffer(SNAPSHOT.manifest)
    assert offer_checks(SNAPSHOT.ledger.genesis, height, offer) == []
    sync.drive((giver,), (), TIP, at(0))
    assert sync.offered(giver, offer, height, at(1)) == []
    sync.drive((giver,), (), TIP, at(OFFERS_MS))
    effects = sync.offered(giver, offer, TIP, at(OFFERS_MS + 1))
    for index, chunk in enumerate(SNAPSHOT.chunks):
        effects += sync.received(giver, wire.SnapshotChunk(height, index, chunk), height, at(OFFERS_MS + 2))
    assert not any(isinstance(effect, InstallSnapshot | Disconnect) for effect in effects)
    assert sync.manifest is None
    assert not sync.installing


# Offers


def checked(manifest: SnapshotManifest, tip: Height = TIP) -> bool:
    checks = offer_checks(SNAPSHOT.ledger.genesis, tip, wire.SnapshotOffer(manifest))
    return bool(checks) and all(check.holds() for check in checks)


def test_an_offer_of_a_decided_block_passes_the_door() -> None:
    assert checked(SNAPSHOT.manifest)


def test_a_header_that_nobody_decided_does_not_pass() -> None:
    manifest = SNAPSHOT.manifest
    forged = replace(manifest.header, state_root=content_hash(b"mine"))
    with pytest.raises(RemoteProtocolError, match="another block"):
        checked(replace(manifest, header=forged))
    certificate = replace(manifest.certificate, block_hash=header_hash(forged))
    assert not checked(replace(manifest, header=forged, certificate=certificate))


def test_an_offer_of_an_undecided_block_or_of_other_authorities_does_not_pass() -> None:
    manifest = SNAPSHOT.manifest
    skipped = replace(manifest, certificate=replace(manifest.certificate, kind=CertificateKind.VOTED))
    with pytest.raises(RemoteProtocolError, match="no decided block"):
        checked(skipped)
    other = replace(manifest.header, authorities_hash=content_hash(b"friends of mine"))
    certificate = replace(manifest.certificate, block_hash=header_hash(other))
    with pytest.raises(RemoteProtocolError, match="other authorities"):
        checked(replace(manifest, header=other, certificate=certificate))


# Rows


def test_rows_are_cut_into_chunks_below_the_cap_and_joined_again() -> None:
    rows = [(number.to_bytes(32, "big"), b"v" * 100_000) for number in range(1, 40)]
    chunks = list(cut_rows(rows))
    assert len(chunks) > 3
    assert max(map(len, chunks)) <= SNAPSHOT_CHUNK_BYTES_MAX
    assert list(joined_rows(chunks)) == rows


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([b"\xc0"], "a chunk of a snapshot"),
        ([encode((((b"b", b"1"), (b"a", b"2")),))], "do not rise"),
        ([next(cut_rows([(b"b", b"1")])), next(cut_rows([(b"a", b"2")]))], "do not rise"),
        ([next(cut_rows([(b"b", b"1")])), next(cut_rows([(b"b", b"2")]))], "do not rise"),
    ],
)
def test_chunks_that_are_none_or_out_of_order_are_refused(chunks: list[bytes], reason: str) -> None:
    with pytest.raises(StateInvalid, match=reason):
        list(joined_rows(chunks))


def test_rows_are_judged_by_root_and_money() -> None:
    ledger, header = SNAPSHOT.ledger, SNAPSHOT.manifest.header
    rows = dict(ledger.state.rows())
    judge_rows(ledger.genesis, header, rows.items())
    missing = dict(list(rows.items())[1:])
    with pytest.raises(StateInvalid, match="state root"):
        judge_rows(ledger.genesis, header, missing.items())
    with pytest.raises(StateInvalid, match="does not decode"):
        judge_rows(ledger.genesis, header, {ACCOUNT_PREFIX + account_of("eve"): b"\xc0"}.items())
    richer = {**rows, ACCOUNT_PREFIX + account_of("eve"): encode(Account(Amount(5), Nonce(0)))}
    forged = replace(header, state_root=lattice_root(updated(EMPTY_LATTICE, (), richer.items())))
    with pytest.raises(StateInvalid, match="supply"):
        judge_rows(ledger.genesis, forged, richer.items())


def test_rows_that_name_authorities_that_are_no_set_are_refused_and_break_nothing() -> None:
    ledger, header = SNAPSHOT.ledger, SNAPSHOT.manifest.header
    rows, schedule = dict(ledger.state.rows()), ledger.state.schedule
    records = schedule.current.records
    for impossible in (Membership(records * 2), Membership(records, (AuthorityId(bytes(32)),))):
        lie = {**rows, AUTHORITIES_KEY: encode(replace(schedule, following=impossible))}
        with pytest.raises(StateInvalid, match="no set"):
            judge_rows(ledger.genesis, header, lie.items())
