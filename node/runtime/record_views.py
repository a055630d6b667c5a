"""An account's record in the market turned into a view: ledger, live offer and this node's own memory side by side.

Law: nothing is asked of anybody. The score is reckoned from the ledger's rows alone; what this node remembers is shown
beside it and is no part of it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from node.clock import read_clock
from node.runtime.control import ControlError
from node.runtime.ledger_views import account_argument, account_text
from node.runtime.market_views import job_records
from node.runtime.record_bodies import FactView, RecordView, ScoreView
from protocol.engine.ledger_facts import LedgerFacts
from protocol.ledger.rows import BOND_PREFIX
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import DEALINGS_MAX, TRACK_PREFIX, Role, track_id
from protocol.market.order_book import LiveOffer
from protocol.market.reputation import (
    COUNTERPARTIES_FULL,
    COUNTERPARTY_VOLUME_FULL,
    FAILURE_WEIGHT,
    NEWCOMER_SCORE_MILLI,
    NOTHING_KNOWN,
    Side,
    TrackRecord,
    is_newcomer,
    score,
)
from protocol.messages.market import FaultKind
from protocol.primitives.addresses import AddressInvalid, AddressKind, begins_with, format_address, parse_address
from protocol.primitives.units import AccountId, LedgerTimeMs, ModelId, format_credits
from protocol.settlement.blame import PRIOR_VOLUME
from protocol.settlement.fading import faded

if TYPE_CHECKING:
    from node.runtime.node import Node

PREFIX_MIN = 4
WHOLE_LETTERS = 58
"""Letters of an address beyond ``mc1`` or ``mcnode1`` that a prefix needs, and that a whole address has."""
JOBS_LOOKED_AT = 500
"""This node's latest jobs among which those with the account are counted."""

_MEMORY = "this node's memory since its start"
_ROLES = ((Side.PROVIDER, Role.PROVIDER), (Side.BUYER, Role.BUYER))


def record_view(node: "Node", who: str) -> RecordView:
    """The record of an account, given by its address, its node's, or the beginning of one. Raises ``ControlError``."""
    state, book = node.engine.replica.state, node.engine.book
    account = _named(node, who)
    record = LedgerFacts(state).track_record(account)
    live = book.offer_of(account)
    if live is not None and live.offer.expires_at <= read_clock().wall_ms:
        live = None
    return RecordView(
        account=account_text(account),
        node=None if live is None else format_address(AddressKind.NODE, live.offer.node),
        height=state.height,
        ledger_time_ms=state.ledger_time_ms,
        scores=tuple(_score_view(record, side, state.ledger_time_ms) for side, _ in _ROLES),
        facts=(
            *(fact for side, role in _ROLES for fact in _dealing_facts(state, record, side, role)),
            *_stake_facts(state, account),
            *(() if live is None else _offer_facts(live)),
            *_own_facts(node, account, live),
        ),
    )


def _named(node: "Node", who: str) -> AccountId:
    """Whom the user means among everybody this node can name; a whole address need not be known."""
    kind, _, letters = who.partition("1")
    if kind == AddressKind.ACCOUNT.value and len(letters) >= WHOLE_LETTERS:
        return account_argument(who)
    if kind not in (AddressKind.ACCOUNT.value, AddressKind.NODE.value) or len(letters) < PREFIX_MIN:
        reason = f"not an account or a node: {who[:80]!r} (mc1… or mcnode1…, at least {PREFIX_MIN} letters of it)"
        raise ControlError("bad_address", reason, 2)
    try:
        if len(letters) >= WHOLE_LETTERS:
            parse_address(AddressKind.NODE, who)
        is_meant = begins_with(letters)
    except AddressInvalid as error:
        raise ControlError("bad_address", str(error), 2) from None
    known = _known_accounts(node) if kind == AddressKind.ACCOUNT.value else _known_nodes(node)
    named = dict.fromkeys(account for account, key in known if is_meant(key))
    if not named:
        raise ControlError("account_not_found", f"no live offer and no channel of this node's is of {who[:80]!r}")
    if len(named) > 1:
        raise ControlError("account_ambiguous", f"{len(named)} accounts start with {who[:80]!r}", 2)
    return next(iter(named))


def _known_accounts(node: "Node") -> Iterator[tuple[AccountId, bytes]]:
    """Accounts that this node has heard of, each with its own key."""
    own = node.keys.account_id
    yield own, own
    for live in node.engine.book.live():
        yield live.account, live.account
    for _, channel in node.engine.replica.state.channels_of(own):
        yield from ((party, party) for party in (channel.payer, channel.payee))


def _known_nodes(node: "Node") -> Iterator[tuple[AccountId, bytes]]:
    """Accounts that this node has heard of, with the keys of their nodes."""
    yield node.keys.account_id, node.keys.node_id
    for live in node.engine.book.live():
        yield live.account, live.offer.node


def _score_view(record: TrackRecord, side: Side, now: LedgerTimeMs) -> ScoreView:
    facts = record.on(side)
    parts = score(facts, now)
    settled = PRIOR_VOLUME + faded(facts.recent_volume, now - facts.last_at)
    failed = FAILURE_WEIGHT * faded(facts.failed_volume, now - facts.failed_at)
    explained = (
        f"({NEWCOMER_SCORE_MILLI} of everybody + {parts.earned} earned) × {parts.reliability} ‰ = {parts.total}; "
        f"earned: experience {parts.experience} ‰ × maturity {parts.maturity} ‰ × {1000 - NEWCOMER_SCORE_MILLI} "
        f"({COUNTERPARTIES_FULL} counterparties of {format_credits(COUNTERPARTY_VOLUME_FULL)} credits each are 1000 ‰, "
        f"thirty days of ledger time full maturity); reliability: {format_credits(settled)} credits settled against "
        f"{format_credits(failed)} for failures, each weighed {FAILURE_WEIGHT} times what counts of it"
    )
    return ScoreView(
        role=side.name.lower(),
        total=parts.total,
        neutral=NEWCOMER_SCORE_MILLI,
        earned=parts.earned,
        experience=parts.experience,
        maturity=parts.maturity,
        reliability=parts.reliability,
        newcomer=is_newcomer(record, now, side),
        explained=explained,
    )


def _dealing_facts(state: LedgerState, record: TrackRecord, side: Side, role: Role) -> Iterator[FactView]:
    facts, about, now = record.on(side), side.name.lower(), state.ledger_time_ms
    key = TRACK_PREFIX + track_id(role, record.account)
    if facts == NOTHING_KNOWN:
        yield FactView(about, "jobs settled", 0, "jobs", f"ledger after block {state.height}, no row {key.hex()}")
        return
    origin = f"ledger after block {state.height}, row {key.hex()}"
    among = f"{origin}; it keeps the {DEALINGS_MAX} of most recent volume"
    yield FactView(about, "jobs settled", facts.jobs, "jobs", f"{origin}: receipts anchored by redeemed vouchers")
    yield FactView(about, "volume", facts.volume, "base units", f"{origin}: amounts redeemed")
    recent = faded(facts.recent_volume, now - facts.last_at)
    yield FactView(about, "recent volume", recent, "base units", f"{origin}, halved for every 30 days since")
    yield FactView(about, "counterparties", len(facts.dealings), "accounts", among)
    for dealing in sorted(facts.dealings, key=lambda dealing: -faded(dealing.volume, now - dealing.settled_at))[:3]:
        left = format_credits(faded(dealing.volume, now - dealing.settled_at))
        yield FactView(about, "counterparty", f"{account_text(dealing.counterparty)} ({left} credits)", "text", among)
    name = "failures" if side is Side.PROVIDER else "failures suffered"
    signed = f"{origin}: reported with agreement, acceptance and the provider's own failure"
    yield FactView(about, name, facts.failures, "jobs", signed)
    failed = faded(facts.failed_volume, now - facts.failed_at)
    yield FactView(about, "recent failed volume", failed, "base units", f"{origin}: what counts of those jobs' worth")
    yield FactView(about, "age", now - facts.first_at, "ledger ms", f"{origin}: since the first settlement or report")
    yield FactView(about, "last active", now - facts.last_at, "ledger ms ago", origin)


def _stake_facts(state: LedgerState, account: AccountId) -> Iterator[FactView]:
    bond = state.bond(account)
    origin = f"ledger after block {state.height}, row {(BOND_PREFIX + account).hex()}"
    yield FactView("stake", "bond", bond.amount, "base units", origin)
    if bond.unlocking:
        yield FactView("stake", "unlocking", bond.unlocking, "base units", origin)


def _offer_facts(live: LiveOffer) -> Iterator[FactView]:
    offer = live.offer
    origin = f"its signed offer {live.id.hex()}, number {offer.sequence}, by gossip: its own claims"
    yield FactView("offer", "models", ", ".join(served.name for served in offer.models), "text", origin)
    yield FactView("offer", "slots free", offer.slots_free, "slots", origin)
    yield FactView("offer", "slots", offer.slots_total, "slots", origin)
    yield FactView("offer", "region", offer.region, "text", origin)
    yield FactView("offer", "isolation", offer.isolation, "text", origin)
    yield FactView("offer", "expires in", offer.expires_at - read_clock().wall_ms, "ms", origin)


def _own_facts(node: "Node", account: AccountId, live: LiveOffer | None) -> Iterator[FactView]:
    books, now = node.engine.buyer.books, read_clock()
    yield FactView("here", "owes this node", books.debt(account), "base units", "this node's lanes, on its disk")
    demoted = account in node.engine.buyer.demoted(now)
    yield FactView("here", "held back", "yes, it failed this node lately" if demoted else "no", "text", _MEMORY)
    records = job_records(node, JOBS_LOOKED_AT)
    mine = [record for record in records if account in (record.buyer, record.provider)]
    origin = f"this node's latest {len(records)} jobs, on its disk"
    yield FactView("here", "jobs with this node", len(mine), "jobs", origin)
    failed = sum(record.provider == account and record.fault is FaultKind.PROVIDER for record in mine)
    yield FactView("here", "of these it failed", failed, "jobs", origin)
    for served in live.offer.models if live is not None else ():
        pace = node.engine.book.paces.of(ModelId(served.model)).get(account)
        if pace is not None:
            said = f"{pace.first_ms} ms to the processed input, then {pace.unit_us} µs a unit"
            yield FactView("here", f"pace with {served.name}", said, "text", f"{_MEMORY}, {pace.jobs} jobs")
