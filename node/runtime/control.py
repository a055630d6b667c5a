"""What a running node offers to the programs of its own user: the contract between runtime and control API.

Law: everything here is for people and their programs: addresses are bech32m text, hashes are hex, amounts are integers
in base units, times are wall-clock milliseconds. Errors are ``ControlError`` with an exit code that the command line
passes on.
"""

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

from node.runtime import ledger_bodies
from node.runtime.model_views import PullEvent, PullRequest
from node.runtime.motion_bodies import SubjectBody
from node.runtime.record_bodies import RecordView
from node.runtime.timeline_views import WhyView
from node.runtime.view import View as View

JOBS_LISTED = 1_000
"""The latest jobs, unless more are asked for: each costs a look at the disk."""

AuthoritiesView = ledger_bodies.AuthoritiesView
AuthorityView = ledger_bodies.AuthorityView
BlockTransactionView = ledger_bodies.BlockTransactionView
BlockView = ledger_bodies.BlockView
LedgerView = ledger_bodies.LedgerView
MotionView = ledger_bodies.MotionView
ParametersView = ledger_bodies.ParametersView
ParameterView = ledger_bodies.ParameterView
RegistrationView = ledger_bodies.RegistrationView
SupplyView = ledger_bodies.SupplyView
TransactionView = ledger_bodies.TransactionView
VoteView = ledger_bodies.VoteView


class ControlError(Exception):
    """A request that can't be carried out. ``code`` names it for programs, ``exit_code`` is the command line's."""

    def __init__(self, code: str, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code


class PeerView(View, frozen=True):
    node: str
    address: str
    direction: str
    incarnation: int
    authority: bool


class StatusView(View, frozen=True):
    """A node at a glance."""

    network: str
    genesis_hash: str
    development: bool
    version: str
    roles: tuple[str, ...]
    node: str
    account: str
    authority: str | None
    listen: str
    height: int
    block_hash: str
    block_timestamp_ms: int
    peers: tuple[PeerView, ...]
    live_offers: int
    isolation: str | None
    selling: bool
    not_selling_because: str | None
    uptime_ms: int


class ModelView(View, frozen=True):
    """A model that somebody offers now."""

    name: str
    model: str
    runtime: str
    providers: int
    slots_free: int
    input_per_thousand_min: int
    output_per_thousand_min: int
    request_min: int
    input_units_max: int
    output_units_max: int


class OfferView(View, frozen=True):
    """One model of one live offer."""

    provider: str
    node: str
    name: str
    model: str
    runtime: str
    runtime_build: str
    settings: str
    region: str
    isolation: str
    slots_total: int
    slots_free: int
    request: int
    input_per_thousand: int
    output_per_thousand: int
    input_units_max: int
    output_units_max: int
    expires_at: int
    bond: int


class BidView(View, frozen=True):
    """A request of some buyer that waits for an offer."""

    buyer: str
    model: str
    input_units_max: int
    output_units_max: int
    price_ceiling: int
    expires_at: int


QUOTE_ROWS = 256
"""Providers that a quote lists one by one unless more are asked for: all are counted."""


class QuoteRow(View, frozen=True):
    """One provider's answer: prices, or why not. A reason beside prices is why it ranks last.

    ``price_ceiling`` is the price at the limits of the request, ``price_expected`` for what the work will probably be.
    ``expected_ms`` is what this node has measured of the provider, ``None`` if nothing. ``scores`` are the factors of
    the ranking, 0 to 1000 each, and their weighted sum.
    """

    provider: str
    would_take: bool
    price_ceiling: int
    reason: str | None
    price_expected: int = 0
    expected_ms: int | None = None
    slots_free: int = 0
    region: str = ""
    isolation: str = ""
    scores: dict[str, int] = msgspec.field(default_factory=dict)


class QuoteView(View, frozen=True):
    """Who would take a job, best first, then who would not; everybody is counted in the totals and in ``reasons``."""

    model: str
    rows: tuple[QuoteRow, ...]
    input_units_max: int = 0
    output_units_max: int = 0
    price_max: int = 0
    would: int = 0
    would_not: int = 0
    reasons: tuple[tuple[str, int], ...] = ()


class RunRequest(View, frozen=True):
    """A job that this node's user wants done.

    ``format`` and ``body`` are the runtime's input (``chat``: MessagePack list of [role, content]; ``text``; ``bytes``;
    ``tensors``). ``price_max`` 0 means the node's default ceiling.
    """

    model: str
    format: str
    body: bytes
    output_units_max: int = 256
    price_max: int = 0
    seed: int = 0
    temperature_milli: int = 0
    stop: tuple[str, ...] = ()
    output: Literal["text", "tokens"] = "text"
    """``tokens``: JSON lines, one for each token, of models that write text."""
    schema: str = ""
    """A JSON schema that a complete answer must satisfy; empty: any text."""
    grammar: str = ""
    """A grammar in GBNF whose ``root`` a complete answer must be; empty: any text. Not beside a schema."""
    logprobs: int = 0
    """How many of the likeliest tokens are named beside each chosen one; for ``tokens``."""
    timeout_ms: int = 120_000
    provider: str = ""
    """Only this provider's account; empty: any."""
    region: str = ""
    isolation: str = ""
    """At least this level; empty: any."""
    wait_ms: int = 0
    """How long to wait for an offer when none would do now; the bid is gossiped meanwhile."""
    auction_ms: int | None = None
    """How long to collect sealed quotes first; 0: posted prices; ``None``: as the node's configuration says."""
    replicas: int = 1
    """Do the job at so many different providers and compare the outputs; ``price_max`` is for all together."""
    replicas_min: int = 1
    """With fewer the job is refused."""
    request: str = ""
    """The request's id, 64 hex digits, if its program wants to choose it; a name that is known is refused."""
    brief: bool = False
    """Tell of output, retries and the end alone: what a program with many jobs reads."""


class RequestView(View, frozen=True):
    """What became of a request that its program has named. ``paid`` is for all attempts, in base units."""

    request: str
    state: str
    """``unknown``, ``starting``, ``running``, ``done``, ``delivered`` (whole and paid, without a receipt),
    ``failed`` or ``cancelled``."""
    job: str = ""
    provider: str = ""
    paid: int = 0
    fault: str = ""
    reason: str = ""
    input_units: int = 0
    output_units: int = 0
    finish: str = ""
    output: bytes = b""
    """All of it, once the job is done or delivered."""


class RunEvent(View, frozen=True):
    """One line of a running job's stream.

    ``event`` is one of ``request`` (accepted by this node; ``facts.request`` is its id), ``progress`` (state, cause),
    ``agreed`` (provider, price),
    ``input`` (input units), ``output`` (``payload`` holds the next piece), ``retry`` (a provider fell out, why),
    ``quote`` and ``auction`` (what sealed quotes came), ``replica_agreed``, ``replica_output`` (of the first replica,
    not compared yet), ``replica_failed``, ``replica_finished``, ``replica_compared`` and ``compared``,
    ``finished`` (receipt id, units, amount, …), ``failed`` (fault, reason, paid) or ``cancelled`` (paid).
    """

    event: str
    facts: dict[str, str | int | bool | None]
    payload: bytes = b""


class JobView(View, frozen=True):
    """A job as this node knows it, from either side."""

    job: str
    side: str
    state: str
    model: str
    counterparty: str
    created_at: int
    input_units: int
    output_units: int
    amount: int
    reason: str | None
    settled_height: int | None
    timeline: tuple[tuple[int, str, str], ...] = ()
    publisher: str | None = None
    """Account that registered the model; ``None`` if nobody has."""


class ChannelView(View, frozen=True):
    channel: str
    payer: str
    payee: str
    side: str
    deposit: int
    redeemed: int
    promised: int
    lanes: int
    state: str
    closes_at_ledger_ms: int | None


class AccountView(View, frozen=True):
    account: str
    balance: int
    nonce: int
    bond: int
    bond_unlocking: int
    in_channels: int


class ProviderModelView(View, frozen=True):
    """One model that a provider sells, and its worker. Memory and processor time are what the kernel counted."""

    name: str
    model: str
    runtime: str
    state: str
    load_ms: int
    reason: str = ""
    """Why it is not served."""
    until_ms: int = 0
    """Wall time at which a quarantined or restarting model is tried again; 0: no such time."""
    waiting: int = 0
    jobs: int = 0
    units_out: int = 0
    units_per_second: float = 0.0
    memory_bytes: int = 0
    cpu_ms: int = 0
    crashes: int = 0


class ProviderView(View, frozen=True):
    """What a provider's operator wants to see."""

    selling: bool
    not_selling_because: str | None
    isolation: str
    checks: tuple[tuple[str, bool, str], ...]
    bond: int
    bond_min: int
    slots_total: int
    slots_free: int
    models: tuple[ProviderModelView, ...]
    jobs_done: int
    earned: int
    unredeemed: int


class FaultsView(View, frozen=True):
    """Faults that a development network's node has on command. ``misconduct`` is a provider's way to cheat."""

    isolated: bool = False
    delay_ms: int = 0
    misconduct: str = ""


class NodeControl(Protocol):
    """Implemented by the running node; called by the control API. Every method may raise ``ControlError``."""

    def status(self) -> StatusView: ...
    def models(self) -> tuple[ModelView, ...]: ...
    def offers(self) -> tuple[OfferView, ...]: ...
    def bids(self) -> tuple[BidView, ...]: ...
    def faults(self) -> FaultsView: ...
    def have_faults(self, faults: FaultsView) -> FaultsView: ...
    def quote(self, request: RunRequest, rows_max: int = QUOTE_ROWS) -> QuoteView: ...

    def run(self, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
        """Run a job; events that are ready together come together.

        Closing the iterator cancels the job and its further charges.
        """
        ...

    async def cancel(self, job: str) -> JobView: ...
    def jobs(self, count_max: int = JOBS_LISTED) -> tuple[JobView, ...]: ...
    def job(self, job: str) -> JobView: ...

    async def why(self, job: str) -> WhyView:
        """What this node, the other party (which is asked now) and the ledger have recorded of a job."""
        ...

    def request(self, request: str) -> RequestView:
        """What became of a request by the id that its program gave it."""
        ...

    async def receipt(self, job: str) -> bytes:
        """The receipt file (JSON), with its settlement proof once the ledger has it."""
        ...

    async def settle(self, job: str, timeout_ms: int) -> int:
        """Ask for redemption of a job's channel now and wait for it: the height of the block that anchored its receipt.

        Buyer and provider may both ask.
        """
        ...

    def account(self, account: str | None) -> AccountView: ...
    async def send(self, recipient: str, amount: int, timeout_ms: int) -> TransactionView: ...
    def channels(self) -> tuple[ChannelView, ...]: ...
    async def close_channel(self, channel: str, timeout_ms: int) -> TransactionView: ...
    async def bond(self, amount: int, timeout_ms: int) -> TransactionView: ...
    async def unbond(self, amount: int, timeout_ms: int) -> TransactionView: ...
    def provider(self) -> ProviderView: ...
    def record(self, who: str) -> RecordView: ...

    def registration(self, model: str) -> RegistrationView:
        """Who published a model, given by its id in hexadecimal or as ``mcmodel1…``."""
        ...

    async def publish(self, manifest: str, timeout_ms: int) -> TransactionView:
        """Register a manifest as published by this node's account."""
        ...

    def pull_model(self, request: PullRequest) -> AsyncIterator[tuple[PullEvent, ...]]:
        """Pull a model from peers; closing the iterator ends the pull, and what came stays for the next one."""
        ...

    def ledger(self) -> LedgerView: ...
    def block(self, height: int) -> BlockView: ...
    def supply(self) -> SupplyView: ...

    async def proof(self, subject: str, identity: str, timeout_ms: int) -> bytes:
        """The proof file (JSON) of an ``account`` or a ``channel``; waits for a block that it can be proven from."""
        ...

    async def checkpoint(self, timeout_ms: int) -> bytes:
        """A checkpoint file (JSON): the tip, for others to trust from."""
        ...

    async def decided(self, height: int) -> bytes:
        """Consecutive decided blocks from a height on (MessagePack), none if it lies above the tip."""
        ...

    def authorities(self) -> AuthoritiesView: ...
    def parameters(self) -> ParametersView: ...
    def motions(self) -> tuple[MotionView, ...]: ...
    def motion(self, number: int) -> MotionView: ...

    async def open_motion(self, subject: SubjectBody, timeout_ms: int) -> MotionView:
        """Put something to vote, on behalf of this node's authority if it has one."""
        ...

    async def vote(self, number: int, approve: bool, timeout_ms: int) -> MotionView:
        """This node's authority votes on a motion."""
        ...
