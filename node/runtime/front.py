"""The node's front desk: implements ``NodeControl`` over the running engine.

Law: reads answer from the state after the last decided block and from the store; writes become inputs of the engine
and wait for its events. Nothing here decides about money.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from node.clock import read_clock
from node.config.settings import Role
from node.runtime import control, governance_desk, ledger_views, market_views
from node.runtime.control import ControlError
from node.runtime.job_stream import JobStream
from node.runtime.model_views import PullEvent, PullRequest
from node.runtime.motion_bodies import SubjectBody
from node.runtime.proof_files import ProofDesk
from node.runtime.receipt_files import ReceiptDesk
from node.runtime.record_bodies import RecordView
from node.runtime.record_views import record_view
from node.runtime.requests import RequestDesk
from node.runtime.timeline_views import WhyView
from node.runtime.timelines import TimelineDesk
from protocol.engine.events import TransactionDecided, TransactionFailed
from protocol.engine.inputs import CancelJob, WantAction
from protocol.messages.transactions import (
    Action,
    BondDeposit,
    BondUnlock,
    ChannelClose,
    ChannelRedeem,
    Output,
    Transfer,
)
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import AMOUNT_MAX, Amount, ChannelId, Hash, Height

if TYPE_CHECKING:
    from node.runtime.node import Node

VERSION = "0.1.0"

_REDEMPTION_WAIT_MS_MAX = 10_000
"""A provider may redeem once an hour; whoever asks to settle wants it now, and the fee is small."""


class Front:
    """One node's answers and actions for its own user."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._engine = node.engine
        self._state = node.engine.replica.state
        self._proofs = ProofDesk(node)
        self._receipts = ReceiptDesk(node.store, node.engine.replica.state.genesis)
        self._timelines = TimelineDesk(node)
        self._requests = RequestDesk(node, self._timelines)

    # Looking

    def status(self) -> control.StatusView:
        """A node at a glance."""
        node, state = self._node, self._state
        authority = node.keys.authority_id if Role.AUTHORITY in node.config.roles else None
        selling, because = market_views.selling(node)
        report = node.shelf.report if node.shelf is not None else None
        return control.StatusView(
            network=state.genesis.network,
            genesis_hash=state.genesis_hash.hex(),
            development=state.genesis.development,
            version=VERSION,
            roles=tuple(role.value for role in node.config.roles),
            node=format_address(AddressKind.NODE, node.keys.node_id),
            account=ledger_views.account_text(node.keys.account_id),
            authority=format_address(AddressKind.AUTHORITY, authority) if authority is not None else None,
            listen=node.listen_text,
            height=state.tip.height,
            block_hash=state.tip_hash.hex(),
            block_timestamp_ms=state.tip.timestamp_ms,
            peers=market_views.peers(node),
            live_offers=len(self._engine.book),
            isolation=report.level if report is not None else None,
            selling=selling,
            not_selling_because=because,
            uptime_ms=read_clock().monotonic_ms - node.started_at.monotonic_ms,
        )

    def models(self) -> tuple[control.ModelView, ...]:
        """Every model that somebody offers now, by name."""
        return market_views.models(self._engine.book, read_clock())

    def offers(self) -> tuple[control.OfferView, ...]:
        """Every model of every live offer."""
        return market_views.offers(self._engine.book, self._state, read_clock())

    def bids(self) -> tuple[control.BidView, ...]:
        """What buyers of other nodes wait for."""
        return market_views.bids(self._node)

    def quote(self, request: control.RunRequest, rows_max: int = control.QUOTE_ROWS) -> control.QuoteView:
        """Who would take this job, at what price and in what time, and why others would not."""
        return JobStream(self._node, request).quote(rows_max)

    def jobs(self, count_max: int = control.JOBS_LISTED) -> tuple[control.JobView, ...]:
        """The latest jobs that this node knows, newest first."""
        return market_views.jobs(self._node, self._receipts, count_max)

    def job(self, job: str) -> control.JobView:
        """One job by its id, its request's id or a prefix of either."""
        return market_views.job_view(self._node, market_views.find_job(self._node, job), self._receipts)

    async def why(self, job: str) -> WhyView:
        """A job as this node, the other party and the ledger tell it."""
        return await self._timelines.why(job)

    def request(self, request: str) -> control.RequestView:
        """What became of a named request."""
        return self._requests.view(request)

    async def receipt(self, job: str) -> bytes:
        """The receipt file of a job, with its settlement once the ledger has it."""
        # Whoever is told of a job's end asks at once, when its last voucher may still be on the way to the disk.
        await self._node.executor.drain()
        return self._receipts.file(market_views.find_job(self._node, job).job)

    def account(self, account: str | None) -> control.AccountView:
        """An account on the ledger; ``None`` means this node's."""
        wanted = self._node.keys.account_id if account is None else ledger_views.account_argument(account)
        return ledger_views.account_view(self._state, wanted)

    def channels(self) -> tuple[control.ChannelView, ...]:
        """Open channels of this node's account, either side."""
        return market_views.channels(self._node)

    def provider(self) -> control.ProviderView:
        """What a provider's operator wants to see."""
        return market_views.provider(self._node)

    def record(self, who: str) -> RecordView:
        """What is known of an account that deals in the market, every figure with its origin."""
        return record_view(self._node, who)

    def ledger(self) -> control.LedgerView:
        """The tip and who decides."""
        view = ledger_views.ledger_view(self._state, self._state.authorities, len(self._engine.replica.mempool))
        return msgspec.structs.replace(
            view,
            blocks_from=self._node.store.blocks_from(),
            blocks_kept=self._node.config.ledger.keep_blocks,
            snapshots=self._node.snapshots.files.heights,
        )

    def block(self, height: int) -> control.BlockView:
        """A decided block."""
        decided = self._node.executor.waiting_block(Height(height)) or self._node.store.decided_block(Height(height))
        if decided is None:
            raise ControlError(
                "block_not_found", f"block {height} is not decided here; the tip is {self._state.height}"
            )
        return ledger_views.block_view(decided, self._engine.replica.seats.of_hash)

    def supply(self) -> control.SupplyView:
        """Where all credits are."""
        return ledger_views.supply_view(self._state, self._state.genesis)

    async def proof(self, subject: str, identity: str, timeout_ms: int) -> bytes:
        """The proof file of an account or a channel."""
        return await self._proofs.proof(subject, identity, timeout_ms)

    async def checkpoint(self, timeout_ms: int) -> bytes:
        """A checkpoint file of the tip."""
        return await self._proofs.checkpoint(timeout_ms)

    async def decided(self, height: int) -> bytes:
        """Decided blocks from a height on."""
        return await self._proofs.decided(height)

    def authorities(self) -> control.AuthoritiesView:
        """Who decides."""
        return governance_desk.authorities_view(self._state)

    def parameters(self) -> control.ParametersView:
        """What the network has agreed on."""
        return governance_desk.parameters_view(self._state)

    def motions(self) -> tuple[control.MotionView, ...]:
        """Motions on the agenda and the last outcomes, oldest first."""
        return tuple(governance_desk.motion_view(self._state, motion) for motion in self._state.motions())

    def motion(self, number: int) -> control.MotionView:
        """One motion."""
        return governance_desk.find_motion(self._state, number)

    # Acting

    def run(self, request: control.RunRequest) -> AsyncIterator[tuple[control.RunEvent, ...]]:
        """Run a job; closing the iterator cancels it."""
        stream = JobStream(self._node, request)
        return self._named(stream) if request.request else stream.events()

    async def _named(self, stream: JobStream) -> AsyncIterator[tuple[control.RunEvent, ...]]:
        """A request under a name of its program's: it starts once."""
        self._requests.claim(stream.request)
        started, events = False, stream.events()
        try:
            async for ready in events:
                started = True
                yield ready
        except ControlError:
            if not started:
                self._requests.release(stream.request)
            raise
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    async def cancel(self, job: str) -> control.JobView:
        """Cancel a running job of this node's user."""
        record = market_views.find_job(self._node, job)
        self._node.loop.feed(CancelJob(record.request, "cancelled by the user"))
        await self._node.executor.drain()
        return self.job(job)

    def faults(self) -> control.FaultsView:
        """What this node does wrong on command."""
        return self._node.faulty().faults

    def have_faults(self, faults: control.FaultsView) -> control.FaultsView:
        """Do exactly these things wrong from now on; a development network's nodes alone can."""
        self._node.faulty().have(faults)
        return self.faults()

    async def settle(self, job: str, timeout_ms: int) -> int:
        """See to it that the ledger holds a job's receipt; the height of its block.

        The provider's redemption is waited for, half of the time but not long: it pays the provider. Then the receipt
        is anchored by a transaction of our own, which costs a fee and pays nobody.
        """
        record = self._receipts.record(market_views.find_job(self._node, job).job)
        until = read_clock().monotonic_ms + min(timeout_ms // 2, _REDEMPTION_WAIT_MS_MAX)
        anchored = self._receipts.anchor(record)
        while anchored is None and read_clock().monotonic_ms < until:
            await self._node.next_block(max(0, until - read_clock().monotonic_ms))
            anchored = self._receipts.anchor(record)
        if anchored is None:
            record = self._receipts.record(record.job)
            if not record.final_voucher:
                raise ControlError("not_receipted", "the buyer's last voucher has not come: nothing to settle yet")
            action = ChannelRedeem(record.channel, (self._receipts.best_voucher(record),))
            try:
                await self._want(action, timeout_ms // 2)
            except ControlError:
                # The provider's redemption may have come first: the ledger takes no voucher twice.
                if self._receipts.anchor(record) is None:
                    raise
            anchored = self._receipts.anchor(record)
        assert anchored is not None, "a decided redeem is an anchor"
        return anchored.height

    async def send(self, recipient: str, amount: int, timeout_ms: int) -> control.TransactionView:
        """Pay another account; returns once a block holds it."""
        return await self._want(
            Transfer((Output(ledger_views.account_argument(recipient), _amount(amount)),)), timeout_ms
        )

    async def close_channel(self, channel: str, timeout_ms: int) -> control.TransactionView:
        """Close a channel of this node's account. As its payee redeem first: the close pays all that is left back."""
        identity = self._channel(channel)
        vouchers = market_views.unredeemed(self._node, identity)
        if vouchers:
            try:
                await self._want(ChannelRedeem(identity, vouchers), timeout_ms)
            except ControlError:
                # The engine may be redeeming them by itself: the ledger takes no voucher twice.
                if not await self._is_redeemed(identity, timeout_ms // 2):
                    raise
        return await self._want(ChannelClose(identity), timeout_ms)

    async def _is_redeemed(self, channel: ChannelId, timeout_ms: int) -> bool:
        """Whether the ledger has every voucher of a channel soon: a redemption may be on its way into a block."""
        until = read_clock().monotonic_ms + min(timeout_ms, _REDEMPTION_WAIT_MS_MAX)
        while market_views.unredeemed(self._node, channel):
            remaining_ms = until - read_clock().monotonic_ms
            if remaining_ms <= 0:
                return False
            await self._node.next_block(remaining_ms)
        return True

    async def bond(self, amount: int, timeout_ms: int) -> control.TransactionView:
        """Move credits into this account's bond."""
        return await self._want(BondDeposit(_amount(amount)), timeout_ms)

    async def unbond(self, amount: int, timeout_ms: int) -> control.TransactionView:
        """Start to withdraw credits from this account's bond."""
        return await self._want(BondUnlock(_amount(amount)), timeout_ms)

    def registration(self, model: str) -> control.RegistrationView:
        """Who published a model."""
        return ledger_views.registration_view(self._state, ledger_views.model_argument(model))

    async def publish(self, manifest: str, timeout_ms: int) -> control.TransactionView:
        """Register a manifest as published by this node's account; returns once a block holds it."""
        return await self._want(ledger_views.register_action(self._state, manifest.encode()), timeout_ms)

    def pull_model(self, request: PullRequest) -> AsyncIterator[tuple[PullEvent, ...]]:
        """Pull a model from peers into this node's store; the pull ends when nobody listens any more."""
        return self._node.models.pull(request)

    async def open_motion(self, subject: SubjectBody, timeout_ms: int) -> control.MotionView:
        """Put something to vote; returns once a block holds it."""
        account = self._node.keys.account_id
        action = governance_desk.motion_action(self._state, account, subject)
        decided = await self._want(action, timeout_ms)
        opened = [motion for motion in self._state.motions() if motion.opener == account]
        return governance_desk.motion_view(
            self._state, next(motion for motion in reversed(opened) if motion.opened_height == decided.height)
        )

    async def vote(self, number: int, approve: bool, timeout_ms: int) -> control.MotionView:
        """Vote on a motion; returns once a block holds the vote."""
        action = governance_desk.vote_action(self._state, self._node.keys.account_id, number, approve)
        await self._want(action, timeout_ms)
        return self.motion(number)

    def _channel(self, text: str) -> ChannelId:
        found = [view for view in self.channels() if view.channel.startswith(text.lower())]
        if len(found) != 1:
            raise ControlError("channel_not_found", f"{len(found)} channels of this account start with {text!r}")
        return ChannelId(bytes.fromhex(found[0].channel))

    async def _want(self, action: Action, timeout_ms: int) -> control.TransactionView:
        request = Hash(os.urandom(32))
        events = self._node.announcements.open(request)
        try:
            self._node.loop.feed(WantAction(request, action))
            async with asyncio.timeout(timeout_ms / 1000):
                event = (await events.take())[-1]
        except TimeoutError:
            raise ControlError(
                "timeout", f"no block held it within {timeout_ms} ms; it stays pending and may still happen", 124
            ) from None
        finally:
            self._node.announcements.close(request)
        match event:
            case TransactionDecided():
                return control.TransactionView(event.transaction.hex(), event.height, event.block_hash.hex())
            case TransactionFailed():
                raise ControlError("transaction_refused", event.reason, 4)
            case _:
                raise AssertionError(event)


def _amount(amount: int) -> Amount:
    if not 0 < amount <= AMOUNT_MAX:
        raise ControlError("bad_amount", f"not an amount: {amount} base units", 2)
    return Amount(amount)
