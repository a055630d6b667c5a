"""The market as people see it: models, offers, jobs, channels, the provider's own state turned into views."""

from typing import TYPE_CHECKING

from node.clock import read_clock
from node.config.settings import Role
from node.runtime import control
from node.runtime.control import ControlError
from node.runtime.ledger_views import account_text
from protocol.ledger.state import LedgerState
from protocol.market.order_book import OrderBook
from protocol.market.records import BuyerLane, JobRecord, SellerLane, Side, attempt_key
from protocol.messages.effects import Now, Table
from protocol.messages.market import ModelOffer
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.codec import decode
from protocol.primitives.units import ChannelId, Hash, ModelId

if TYPE_CHECKING:
    from node.runtime.node import Node
    from node.runtime.receipt_files import ReceiptDesk

JOBS_KEPT = 100_000
"""Rows of ended jobs that a node keeps, 2 KB each as a rule; receipts are kept apart, and for good."""

_FOUND_MAX = 8
"""More jobs than this under one prefix are too many to tell apart."""


def peers(node: "Node") -> tuple[control.PeerView, ...]:
    """Linked peers."""
    authorities = {record.node for record in node.engine.replica.authorities.records}
    return tuple(
        control.PeerView(
            node=format_address(AddressKind.NODE, link.node),
            address=link.endpoint,
            direction="out" if link.outbound else "in",
            incarnation=link.incarnation,
            authority=link.node in authorities,
        )
        for link in node.transport.links()
    )


def models(book: OrderBook, now: Now) -> tuple[control.ModelView, ...]:
    """Models on offer, by name."""
    served: dict[ModelId, list[tuple[ModelOffer, int]]] = {}
    for live in book.offers():
        if live.offer.expires_at > now.wall_ms:
            for offered in live.offer.models:
                served.setdefault(ModelId(offered.model), []).append((offered, live.offer.slots_free))
    views = [
        control.ModelView(
            name=offers[0][0].name,
            model=format_address(AddressKind.MODEL, model),
            runtime=offers[0][0].runtime,
            providers=len(offers),
            slots_free=sum(slots for _, slots in offers),
            input_per_thousand_min=min(offered.prices.input_per_thousand for offered, _ in offers),
            output_per_thousand_min=min(offered.prices.output_per_thousand for offered, _ in offers),
            request_min=min(offered.prices.request for offered, _ in offers),
            input_units_max=max(offered.input_units_max for offered, _ in offers),
            output_units_max=max(offered.output_units_max for offered, _ in offers),
        )
        for model, offers in served.items()
    ]
    return tuple(sorted(views, key=lambda view: (view.name, view.model)))


def offers(book: OrderBook, state: LedgerState, now: Now) -> tuple[control.OfferView, ...]:
    """Every model of every live offer."""
    return tuple(
        control.OfferView(
            provider=account_text(live.account),
            node=format_address(AddressKind.NODE, live.offer.node),
            name=offered.name,
            model=format_address(AddressKind.MODEL, offered.model),
            runtime=offered.runtime,
            runtime_build=offered.runtime_build,
            settings=offered.settings,
            region=live.offer.region,
            isolation=live.offer.isolation_of(offered),
            slots_total=live.offer.slots_total,
            slots_free=live.offer.slots_free,
            request=offered.prices.request,
            input_per_thousand=offered.prices.input_per_thousand,
            output_per_thousand=offered.prices.output_per_thousand,
            input_units_max=offered.input_units_max,
            output_units_max=offered.output_units_max,
            expires_at=live.offer.expires_at,
            bond=state.bond(live.account).amount,
        )
        for live in book.offers()
        if live.offer.expires_at > now.wall_ms
        for offered in live.offer.models
    )


def bids(node: "Node") -> tuple[control.BidView, ...]:
    """Requests of other nodes' buyers that wait for an offer."""
    return tuple(
        control.BidView(
            buyer=account_text(buyer),
            model=offered_name(node, bid.model),
            input_units_max=bid.input_units_max,
            output_units_max=bid.output_units_max,
            price_ceiling=bid.price_ceiling,
            expires_at=bid.expires_at,
        )
        for buyer, bid in node.engine.bids(read_clock())
    )


def job_records(node: "Node", count_max: int) -> list[JobRecord]:
    """Jobs under way and the latest jobs on disk, the newest first."""
    under_way = (*node.engine.buyer.jobs(), *node.engine.seller.jobs())
    records = {record.job + record.request: record for record in under_way}
    for value in node.store.newest(Table.JOB, count_max):
        record = decode(value, JobRecord)
        records.setdefault(record.job + record.request, record)
    newest = sorted(records.values(), key=lambda record: record.history[0].at if record.history else 0, reverse=True)
    return newest[:count_max]


def find_job(node: "Node", text: str) -> JobRecord:
    """A job by its id, its request's id, or the start of one of them. Of a request's jobs the last one is meant."""
    wanted = text.lower()
    if len(wanted) < 6 or not all(letter in "0123456789abcdef" for letter in wanted):
        raise ControlError("bad_job", f"not a job id: {text!r} (at least six hex digits)", 2)
    found = [
        record
        for record in (*node.engine.buyer.jobs(), *node.engine.seller.jobs())
        if record.job.hex().startswith(wanted) or record.request.hex().startswith(wanted)
    ]
    if not found:
        first, last = bytes.fromhex(wanted.ljust(64, "0")[:64]), bytes.fromhex(wanted.ljust(64, "f")[:64])
        rows = node.store.values_between(Table.JOB, first, last, _FOUND_MAX)
        of_requests = node.store.values_between(
            Table.JOB_OF_REQUEST, attempt_key(Hash(first), 0), attempt_key(Hash(last), 2**32 - 1), _FOUND_MAX
        )
        rows += [row for job in of_requests if (row := node.store.get(Table.JOB, job)) is not None]
        found = [decode(row, JobRecord) for row in rows]
    if not found:
        raise ControlError("job_not_found", f"this node knows no job {text!r}")
    if len({record.job for record in found}) > 1 and len({record.request for record in found}) > 1:
        raise ControlError("job_ambiguous", f"{len(found)} jobs start with {text!r}", 2)
    return max(found, key=lambda record: record.attempt)


def model_text(node: "Node", record: JobRecord) -> str:
    """What a job's model was called when it began; of an older job what it is called now, else its address."""
    return record.model_name or offered_name(node, record.model)


def offered_name(node: "Node", model: ModelId) -> str:
    """A model's name if somebody offers it now, else its address."""
    for live in node.engine.book.offers_for(model):
        served = live.model(model)
        if served is not None:
            return served.name
    return format_address(AddressKind.MODEL, model)


def job_view(node: "Node", record: JobRecord, desk: "ReceiptDesk") -> control.JobView:
    """One job for people."""
    other = record.provider if record.side is Side.BUYER else record.buyer
    return control.JobView(
        # A request that never came to an agreement has no job id; its own id names it.
        job=(record.job if any(record.job) else record.request).hex(),
        side=Side(record.side).name.lower(),
        state=record.state,
        model=model_text(node, record),
        counterparty=account_text(other),
        created_at=record.history[0].at if record.history else 0,
        input_units=record.input_units,
        output_units=record.output_units,
        amount=record.paid,
        reason=record.reason or None,
        settled_height=desk.settled_height(record.job),
        timeline=tuple((entry.at, entry.state, entry.cause) for entry in record.history),
        publisher=publisher_text(node, record.model),
    )


def publisher_text(node: "Node", model: ModelId) -> str | None:
    """The account that registered a model on the ledger, or ``None``."""
    found = node.engine.replica.state.registration(model)
    return None if found is None else account_text(found.publisher)


def jobs(node: "Node", desk: "ReceiptDesk", count_max: int) -> tuple[control.JobView, ...]:
    """The latest jobs for people, the newest first."""
    return tuple(job_view(node, record, desk) for record in job_records(node, count_max))


def channels(node: "Node") -> tuple[control.ChannelView, ...]:
    """Open channels of this account, with what our own books say was promised on them."""
    state, own = node.engine.replica.state, node.keys.account_id
    promised: dict[bytes, int] = {}
    for _, value in node.store.load_table(Table.BUYER_LANE):
        lane = decode(value, BuyerLane)
        promised[lane.channel] = promised.get(lane.channel, 0) + lane.position.cumulative
    for _, value in node.store.load_table(Table.SELLER_LANE):
        sold = decode(value, SellerLane)
        promised[sold.channel] = promised.get(sold.channel, 0) + sold.position.cumulative
    return tuple(
        control.ChannelView(
            channel=channel_id.hex(),
            payer=account_text(channel.payer),
            payee=account_text(channel.payee),
            side="payer" if channel.payer == own else "payee",
            deposit=channel.deposit,
            redeemed=channel.redeemed,
            promised=promised.get(channel_id, 0),
            lanes=len(channel.lanes),
            state="open" if channel.closing_at is None else "closing",
            closes_at_ledger_ms=channel.closing_at,
        )
        for channel_id, channel in state.channels_of(own)
    )


def unredeemed(node: "Node", channel_id: ChannelId) -> tuple[bytes, ...]:
    """Vouchers that this node holds as a payee and the ledger would still pay: the best one of each lane."""
    channel = node.engine.replica.state.channel(channel_id)
    if channel is None or channel.payee != node.keys.account_id:
        return ()
    redeemed = {position.lane: position.sequence for position in channel.lanes}
    lanes = [decode(value, SellerLane) for _, value in node.store.load_table(Table.SELLER_LANE)]
    return tuple(
        lane.voucher
        for lane in lanes
        if lane.channel == channel_id and lane.voucher and lane.position.sequence > redeemed.get(lane.lane, 0)
    )


def selling(node: "Node") -> tuple[bool, str | None]:
    """Whether this provider's offer stands, and if not, why."""
    if Role.PROVIDER not in node.config.roles or node.shelf is None:
        return False, "this node is no provider"
    if node.shelf.report is None:
        return False, "the sandbox is being proved"
    if obstacle := node.shelf.obstacle():
        return False, obstacle
    if not any(view.state == "ready" for view in node.shelf.models.values()):
        return False, "no model is ready: " + ", ".join(
            f"{view.name} {view.state}{view.reason and ': ' + view.reason}" for view in node.shelf.models.values()
        )
    because = node.engine.shop.silent_because
    return not because, because or None


def provider(node: "Node") -> control.ProviderView:
    """What a provider's operator wants to see."""
    state, own = node.engine.replica.state, node.keys.account_id
    on_offer, because = selling(node)
    report = node.shelf.report if node.shelf is not None else None
    sold = [record for record in job_records(node, JOBS_KEPT) if record.side is Side.SELLER]
    redeemed = {channel_id: channel.redeemed for channel_id, channel in state.channels_of(own)}
    held: dict[ChannelId, int] = {}
    for _, value in node.store.load_table(Table.SELLER_LANE):
        lane = decode(value, SellerLane)
        if lane.channel in redeemed:
            held[lane.channel] = held.get(lane.channel, 0) + lane.position.cumulative
    return control.ProviderView(
        selling=on_offer,
        not_selling_because=because,
        isolation=report.level if report is not None else "unknown",
        checks=tuple((check.name, check.passed, check.detail) for check in report.checks) if report is not None else (),
        bond=state.bond(own).amount,
        bond_min=state.parameters.provider_bond_min,
        slots_total=node.config.provider.slots,
        slots_free=node.engine.seller.slots_free(),
        models=tuple(node.shelf.models.values()) if node.shelf is not None else (),
        jobs_done=sum(1 for record in sold if record.state == "done"),
        earned=sum(record.paid for record in sold),
        unredeemed=sum(amount - redeemed[channel_id] for channel_id, amount in held.items()),
    )
