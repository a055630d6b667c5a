"""A node that has no network: it answers as ``NodeControl`` promises, so that API and command line can be tested alone.

The model that a job names decides how the job goes.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from node.api.server import serve_control
from node.keystore.development import development_keys
from node.keystore.keys import KeyPurpose, address_of
from node.runtime.control import (
    AccountView,
    AuthoritiesView,
    AuthorityView,
    BidView,
    BlockTransactionView,
    BlockView,
    ChannelView,
    ControlError,
    FaultsView,
    JobView,
    LedgerView,
    ModelView,
    MotionView,
    NodeControl,
    OfferView,
    ParametersView,
    ParameterView,
    PeerView,
    ProviderModelView,
    ProviderView,
    QuoteRow,
    QuoteView,
    RegistrationView,
    RequestView,
    RunEvent,
    RunRequest,
    StatusView,
    SupplyView,
    TransactionView,
    VoteView,
)
from node.runtime.model_views import PullEvent, PullRequest, PullSourceView
from node.runtime.motion_bodies import SubjectBody
from node.runtime.record_bodies import FactView, RecordView, ScoreView
from node.runtime.timeline_views import AttemptView, LineView, WhyView

JOB = "ab" * 32
OWN = address_of(KeyPurpose.ACCOUNT, development_keys("buyer-1", False).account)
OTHER = address_of(KeyPurpose.ACCOUNT, development_keys("provider-1", False).account)
AUTHORITY = "mcauth1a"
MODELS = {
    "talker": "gguf",
    "bytes": "onnx",
    "endless": "gguf",
    "broken": "gguf",
    "poor": "gguf",
    "late": "gguf",
    "slow": "gguf",
    "escape": "echo",
    "hangup": "echo",
    "flood": "echo",
}


def why_example(job: str) -> WhyView:
    """A job that one provider dropped and another one did."""
    at = 1_700_000_000_000
    first = AttemptView(
        1, "11" * 32, OTHER, "failed", "provider", "provider stopped delivering\x1b[31m", 2, 3, 1, 500, 250_000,
        "missing", "its node could not be reached within 3 s", None, ("acceptance", "chunk 1 (0.0005 credits due)"),
        (), (), (), ("aa",),
    )  # fmt: skip
    second = AttemptView(
        2, job, OTHER, "done", None, "", 3, 3, 2, 1_500, 250_000, "told", "", 12, ("acceptance",),
        ("the provider says it delivered 5 chunks, this node has 3",), (), ("bb", "cc"), (),
    )  # fmt: skip
    lines = (
        LineView(at, at, ("buyer",), 0, "asked for the job", "", 0, 0, None),
        LineView(at + 5, at + 5, ("ledger",), 1, "channel opened 10.00 credits", "deposit of the buyer", 0, 0, 7),
        LineView(at + 9, at + 9, ("buyer",), 1, "gave up the attempt", "provider stopped delivering", 2, 500, None),
        LineView(at + 20, at + 920, ("buyer", "provider"), 2, "chunks 1–2 delivered and paid", "", 3, 2_000, None),
    )
    return WhyView("cd" * 32, "buyer", "talker", "done", "", OTHER, 2_000, (first, second), lines)


class FakeNode:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[RunRequest] = []
        self.held_faults = FaultsView()
        self.calls: list[tuple[object, ...]] = []
        self.cancelled = threading.Event()
        self.closed = threading.Event()
        self.streams: list[AsyncIterator[tuple[RunEvent, ...]]] = []
        self.known: dict[str, RequestView] = {}
        """Requests that were made before."""

    def status(self) -> StatusView:
        return StatusView(
            network="test",
            genesis_hash="00" * 32,
            development=True,
            version="0",
            roles=("buyer",),
            node="mcnode1x",
            account=OWN,
            authority=None,
            listen="127.0.0.1:1",
            height=7,
            block_hash="11" * 32,
            block_timestamp_ms=1_700_000_000_000,
            peers=(PeerView("mcnode1y", "127.0.0.1:2", "out", 7, True),),
            live_offers=2,
            isolation=None,
            selling=False,
            not_selling_because=None,
            uptime_ms=5_000,
        )

    def models(self) -> tuple[ModelView, ...]:
        return tuple(
            ModelView(name, f"mcmodel1{name}", runtime, 1, 2, 10_000, 40_000, 1_000, 4096, 1024)
            for name, runtime in MODELS.items()
        )

    def faults(self) -> FaultsView:
        return self.held_faults

    def have_faults(self, faults: FaultsView) -> FaultsView:
        self.held_faults = faults
        return faults

    def bids(self) -> tuple[BidView, ...]:
        return (BidView(OTHER, "talker", 10, 20, 30_000, 1_800_000_000_000),)

    def offers(self) -> tuple[OfferView, ...]:
        return (
            OfferView(
                OTHER, "mcnode1z", "talker\x1b[31m", "mcmodel1talker", "gguf", "b", "s", "north", "strong",
                2, 1, 1_000, 10_000, 40_000, 4096, 1024, 0, 50_000_000,
            ),
        )  # fmt: skip

    def quote(self, request: RunRequest, rows_max: int = 256) -> QuoteView:
        self.requests.append(request)
        rows = (QuoteRow(OTHER, True, 250_000, None), QuoteRow("mc1other", False, 0, "no slot free"))
        return QuoteView(request.model, rows)

    def run(self, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
        """The stream is kept here too, so only closing it ends it, not its last reference."""
        self.streams.append(self._run(request))
        return self.streams[-1]

    async def pull_model(self, request: PullRequest) -> AsyncIterator[tuple[PullEvent, ...]]:
        self.calls.append(("pull", request))
        if request.model == "nobody":
            raise ControlError("no_source", "nobody on offer has it", 5)
        liar = PullSourceView("mcnode1liar", "sent a corrupt piece: piece 3 of a.onnx", True, True, 5, 0)
        giver = PullSourceView("mcnode1giver", "asked", False, False, 60, 2)
        begun = PullEvent(
            "progress", "ab" * 32, "pulling", "tiny", "1", "onnx", "MIT", OTHER, 100, 40, 10, (liar, giver)
        )
        yield (begun,)
        if request.model == "endless":
            try:
                await asyncio.Event().wait()
            finally:
                self.closed.set()
        if request.model == "broken":
            raise ControlError("store_full", "a.onnx can't be stored: No space left on device")
        yield (msgspec.structs.replace(begun, event="finished", stage="in the store", bytes_done=100),)

    async def _run(self, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
        self.requests.append(request)
        name = request.model.removeprefix("mcmodel1")
        if name == "poor":
            raise ControlError("funds", "the account holds 0.10 credits, 1.00 are needed", 4)
        try:
            yield (RunEvent("request", {"request": "cd" * 32}),)
            if name == "late":
                raise ControlError("no_provider", "every provider refused", 5)
            yield (RunEvent("agreed", {"job": JOB, "provider": OTHER, "price_ceiling": 250_000}),)
            yield (RunEvent("input", {"input_units": 3}),)
            async for event in self._output(name, request):
                yield event
        finally:
            self.closed.set()

    async def _output(self, name: str, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
        if name == "broken":
            yield (RunEvent("output", {}, b"half"),)
            yield (RunEvent("failed", {"job": JOB, "fault": "PROVIDER", "reason": "the worker died", "paid": 1_500}),)
            return
        if name == "slow":
            yield (RunEvent("failed", {"reason": "first output took too long", "code": "timeout", "exit_code": 124}),)
            return
        if name == "hangup":
            return
        while name == "flood":
            yield (RunEvent("output", {}, bytes(100_000)),)
        if name == "endless":
            yield (RunEvent("output", {}, b"tick"),)
            await asyncio.Event().wait()
        payload = (
            b"\x1b[31mred\x1b[0m\n" if name == "escape" else request.body if name == "bytes" else b"Hello \xc3\xa9"
        )
        yield (RunEvent("output", {}, payload[:7]),)
        yield (RunEvent("output", {}, payload[7:]),)
        facts: dict[str, str | int | bool | None] = {
            "job": JOB, "receipt": "ef" * 32, "input_units": 3, "output_units": 2, "amount": 1_234_500,
        }  # fmt: skip
        yield (RunEvent("finished", facts),)

    async def cancel(self, job: str) -> JobView:
        self.calls.append(("cancel", job))
        self.cancelled.set()
        return self.job(job)

    def jobs(self, count_max: int = 1_000) -> tuple[JobView, ...]:
        return (self.job(JOB), self.job("abcd" + "0" * 60))[:count_max]

    async def why(self, job: str) -> WhyView:
        return why_example(self.job(job).job)

    def request(self, request: str) -> RequestView:
        return self.known.get(request, RequestView(request, "unknown"))

    def job(self, job: str) -> JobView:
        if not job.startswith("ab"):
            raise ControlError("job_not_found", f"no job {job}", 1)
        timeline = ((1_700_000_000_000, "agreed", "by both"),)
        return JobView(job, "buyer", "cancelled", "talker", OTHER, 1_700_000_000_000, 3, 2, 1_500, None, None, timeline)

    async def receipt(self, job: str) -> bytes:
        self.job(job)
        return b'{"receipt": true}\n'

    async def settle(self, job: str, timeout_ms: int) -> int:
        self.calls.append(("settle", job, timeout_ms))
        return 9

    def account(self, account: str | None) -> AccountView:
        return AccountView(account or OWN, 1_000_000_000, 3, 0, 0, 10_000_000)

    async def send(self, recipient: str, amount: int, timeout_ms: int) -> TransactionView:
        self.calls.append(("send", recipient, amount))
        if amount > 10**9:
            raise ControlError("funds", "not enough money", 4)
        return TransactionView("aa" * 32, 8, "bb" * 32)

    def channels(self) -> tuple[ChannelView, ...]:
        return (ChannelView("mcchan1abcd", OWN, OTHER, "payer", 10_000_000, 0, 1_500, 1, "open", None),)

    async def close_channel(self, channel: str, timeout_ms: int) -> TransactionView:
        self.calls.append(("close", channel))
        return TransactionView("aa" * 32, 8, "bb" * 32)

    async def bond(self, amount: int, timeout_ms: int) -> TransactionView:
        self.calls.append(("bond", amount))
        return TransactionView("aa" * 32, 8, "bb" * 32)

    async def unbond(self, amount: int, timeout_ms: int) -> TransactionView:
        raise ControlError("timeout", "no block within the time", 124)

    def provider(self) -> ProviderView:
        models = (ProviderModelView("talker", "mcmodel1talker", "gguf", "ready", 120),)
        checks = (("start the sandbox", True, "namespaces"),)
        return ProviderView(True, None, "strong", checks, 50_000_000, 10_000_000, 2, 2, models, 4, 5_000, 1_000)

    def record(self, who: str) -> RecordView:
        if not OTHER.startswith(who):
            raise ControlError("account_not_found", f"no live offer and no channel of this node's is of {who!r}")
        score = ScoreView("provider", 480, 500, 12, 24, 1000, 938, True, "as reckoned")
        facts = (
            FactView("provider", "volume", 1_500_000, "base units", "ledger after block 7, row 74"),
            FactView("provider", "age", 93_600_000, "ledger ms", "ledger after block 7, row 74"),
            FactView("here", "held back", "no", "text", "this node's memory"),
        )
        return RecordView(OTHER, None, 7, 90_000, (score,), facts)

    def ledger(self) -> LedgerView:
        return LedgerView(7, "11" * 32, 1_700_000_000_000, 90_000, "22" * 32, ("mcauth1a", "mcauth1b"), 3, 0)

    def block(self, height: int) -> BlockView:
        if height > 7:
            raise ControlError("block_not_found", f"the tip is 7, not {height}", 1)
        transactions = (BlockTransactionView("aa" * 32, OWN, 1, 100, "transfer", "1.00 credits to mc1…"),)
        return BlockView(
            height, "11" * 32, "10" * 32, 1_700_000_000_000, 90_000, "22" * 32, "33" * 32, 1, ("a",), transactions
        )

    def supply(self) -> SupplyView:
        raise RuntimeError("a defect")

    async def proof(self, subject: str, identity: str, timeout_ms: int) -> bytes:
        raise ControlError("not_proven_yet", "no block yet", 124)

    async def checkpoint(self, timeout_ms: int) -> bytes:
        return b'{"format": "mercat-checkpoint-1"}\n'

    async def decided(self, height: int) -> bytes:
        return b"\x90"

    def authorities(self) -> AuthoritiesView:
        first = AuthorityView("first", AUTHORITY, OTHER, "mcnode1y", "active", 1, None, 5_000_000, 12)
        return AuthoritiesView(7, 3, 1, (first, msgspec.structs.replace(first, name="second", authority="mcauth1b")))

    def parameters(self) -> ParametersView:
        return ParametersView(1, 2, 900, (ParameterView("fee_min", 100, 0, 1_000),))

    def motions(self) -> tuple[MotionView, ...]:
        return (self.motion(3),)

    def motion(self, number: int) -> MotionView:
        if number > 3:
            raise ControlError("motion_not_found", f"the ledger tells of no motion {number}", 1)
        votes = (VoteView("first", AUTHORITY, True), VoteView("second", "mcauth1b", None))
        return MotionView(
            number,
            "ParameterChange",
            "fee_min = 200\x1b[31m",
            "open",
            OWN,
            5,
            900_000,
            90_000,
            1,
            0,
            3,
            votes,
            None,
            "",
        )

    async def open_motion(self, subject: SubjectBody, timeout_ms: int) -> MotionView:
        self.calls.append(("open_motion", subject))
        return self.motion(3)

    async def vote(self, number: int, approve: bool, timeout_ms: int) -> MotionView:
        self.calls.append(("vote", number, approve))
        return self.motion(number)

    def registration(self, model: str) -> RegistrationView:
        self.calls.append(("registration", model))
        if model == "00" * 32:
            return RegistrationView("mcmodel1none", False, None, None, None)
        return RegistrationView("mcmodel1some", True, OTHER, 12, 300)

    async def publish(self, manifest: str, timeout_ms: int) -> TransactionView:
        self.calls.append(("publish", manifest))
        return TransactionView("22" * 32, 13, "33" * 32)


_: type[NodeControl] = FakeNode


@contextlib.contextmanager
def served(path: Path, node: FakeNode) -> Iterator[None]:
    """The node's control API in a thread of its own while the context lasts."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serve_control(node, path):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
