"""The desk: what may be given away, what a name means, who is asked, and one pull for all who wait for it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.clock import read_clock
from node.config.settings import KeystoreConfig, ModelsConfig, NodeConfig, Sharing
from node.runtime.control import ControlError
from node.runtime.model_desk import (
    UPLOAD_BYTES_PER_SECOND,
    UPLOAD_PER_PEER_BYTES_PER_SECOND,
    ModelDesk,
    piece_policy,
)
from node.runtime.model_pull import ModelPull
from node.runtime.model_views import PullEvent, PullRequest
from node.transport.piece_server import PieceLibrary, PiecePolicy
from node.worker.models import ModelStore
from node.worker.pieces import PIECE_BYTES
from protocol.engine.inputs import Discredited, Input
from protocol.market.order_book import OrderBook
from protocol.messages.market import ModelOffer, Offer, Prices
from protocol.messages.transactions import ModelRegister
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import (
    AccountId,
    Amount,
    MessageId,
    ModelId,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from tests.ledger.world import Ledger, account_of
from tests.runtime.givers import TIMES, Givers, Spoiling, giving
from tests.transport.network import GENESIS, identity_of

PRICES = Prices(Amount(1), Amount(1), Amount(1))


def honest(library: PieceLibrary) -> PieceLibrary:
    return library


def corrupt(library: PieceLibrary) -> PieceLibrary:
    return Spoiling(library, from_piece=0)


class Desk:
    """A desk over a real book, ledger and store; of a node only what the desk looks at."""

    def __init__(self, folder: Path, group: asyncio.TaskGroup, share: Sharing = Sharing.SERVED) -> None:
        self.book, self.ledger = OrderBook(), Ledger()
        self.fed: list[Input] = []
        self.served: dict[str, None] = {}
        self._group = group
        config = NodeConfig(
            genesis=folder, state=folder / "state", keystore=KeystoreConfig(folder), models=ModelsConfig(share=share)
        )
        node: Any = SimpleNamespace(
            config=config,
            engine=SimpleNamespace(book=self.book, replica=SimpleNamespace(state=self.ledger.state)),
            keys=SimpleNamespace(node_id=NodeId(b"o" * 32), account_id=account_of("alice")),
            shelf=SimpleNamespace(serves=lambda model: model in self.served),
            identity=identity_of("puller"),
            loop=SimpleNamespace(feed=self.fed.append),
            spawn=self._spawn,
        )
        self.desk = ModelDesk(node)
        self.desk._genesis_hash = GENESIS

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._group.create_task(work)

    def hear(self, name: str, node: NodeId, addresses: tuple[str, ...], model: ModelId) -> None:
        """A live offer."""
        served = ModelOffer(model, name, "onnx", "onnx 1", "", PRICES, WorkUnits(9), WorkUnits(9))
        now = read_clock()
        expires = TimestampMs(now.wall_ms + 60_000)
        offer = Offer(node, SequenceNumber(1), expires, addresses, "", "strong", 1, 1, (served,))
        account = AccountId(node)
        self.book.consider_offer(MessageId(node), offer, account, Amount(1), Amount(1), now)

    async def pull(self, request: PullRequest) -> list[PullEvent]:
        return [event async for events in self.desk.pull(request) for event in events]


@asynccontextmanager
async def desk(folder: Path, share: Sharing = Sharing.SERVED) -> AsyncIterator[Desk]:
    async with asyncio.TaskGroup() as group:
        yield Desk(folder, group, share)


def hear_all(desk: Desk, givers: Givers, name: str = "m") -> None:
    for giver in givers.transports:
        address = givers.address(giver)
        assert address.node is not None
        desk.hear(name, address.node, address.endpoints, givers.model)


async def test_only_what_is_served_published_or_pulled_is_given_unless_the_setting_says_all_or_none(
    tmp_path: Path,
) -> None:
    async with giving(tmp_path, {"a": honest}) as givers, desk(tmp_path) as one:
        model = givers.model
        assert not one.desk.may_share(model)
        one.served[model.hex()] = None
        assert one.desk.may_share(model)
        one.served.clear()
        manifest = givers.manifest.encode()
        one.ledger.include(one.ledger.transaction("bob", ModelRegister(model, len(manifest), manifest), fee=100))
        assert not one.desk.may_share(model)  # published, but by somebody else
        hear_all(one, givers)
        await one.pull(PullRequest("m"))
        assert one.desk.may_share(model)  # pulled from peers
        other = ModelId(b"x" * 32)
        one.ledger.include(one.ledger.transaction("alice", ModelRegister(other, 60_000, b""), fee=100))
        assert one.desk.may_share(other)
    async with desk(tmp_path / "all", Sharing.ALL) as one:
        assert one.desk.may_share(ModelId(b"y" * 32))
    async with desk(tmp_path / "none", Sharing.NONE) as one:
        assert one.desk.library() is None


async def test_a_name_an_address_and_an_id_mean_the_same_model_and_the_rest_is_said_to_mean_nothing(
    tmp_path: Path,
) -> None:
    model = ModelId(b"m" * 32)
    async with desk(tmp_path) as one:
        one.hear("m", NodeId(b"1" * 32), ("127.0.0.1:1",), model)
        for text in ("m", model.hex(), format_address(AddressKind.MODEL, model)):
            assert one.desk._named(text) == model
        one.hear("m", NodeId(b"2" * 32), ("127.0.0.1:1",), ModelId(b"n" * 32))
        with pytest.raises(ControlError, match="several models on offer"):
            one.desk._named("m")
        for text in ("nobody", "../etc/passwd", "zz" * 32, ""):
            with pytest.raises(ControlError, match="no live offer has it"):
                one.desk._named(text)


@pytest.mark.parametrize("source", ["nowhere", "127.0.0.1:0", "mcnode1x@127.0.0.1:7400", "/etc/passwd"])
async def test_a_source_that_is_no_address_is_refused_before_anything_is_pulled(tmp_path: Path, source: str) -> None:
    async with desk(tmp_path) as one:
        with pytest.raises(Exception, match=r"not host:port|not a port|address"):
            await one.pull(PullRequest("ab" * 32, (source,)))


async def test_who_offers_a_model_is_asked_and_who_lies_is_held_to_it_and_asked_no_more(tmp_path: Path) -> None:
    async with giving(tmp_path, {"liar": corrupt, "a": honest}) as givers, desk(tmp_path) as one:
        hear_all(one, givers)
        events = await one.pull(PullRequest(givers.model.hex()))
        assert events[-1].event == "finished"
        assert (events[-1].name, events[-1].license, events[-1].publisher) == ("m", "MIT", None)
        assert events[-1].bytes_done == events[-1].bytes_total == givers.manifest.size_bytes()
        liars = [source for source in events[-1].sources if source.corrupt]
        if liars:  # the other one may have been so fast that the liar was never asked
            assert next(told for told in one.fed if isinstance(told, Discredited)).peer == givers.node("liar")
            assert [address.node for address in one.desk._sources(givers.model, {})] == [givers.node("a")]
        again = await one.pull(PullRequest("m"))
        assert [(event.event, event.bytes_kept) for event in again] == [("finished", givers.manifest.size_bytes())]


async def test_all_who_wait_for_a_model_wait_for_one_pull_and_it_ends_with_the_last_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulls: list[ModelPull] = []
    run = ModelPull.run

    async def counted(pull: ModelPull) -> str:
        pulls.append(pull)
        return await run(pull)

    monkeypatch.setattr(ModelPull, "run", counted)
    slow = {"a": PiecePolicy(times=TIMES, upload_bytes_per_second=3 * PIECE_BYTES)}
    async with giving(tmp_path, {"a": honest}, slow) as givers, desk(tmp_path) as one:
        hear_all(one, givers)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(one.pull(PullRequest("m")))
            second = group.create_task(one.pull(PullRequest(givers.model.hex())))
            while not (pulls and pulls[0].bytes_done):
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.Event().wait(), 0.02)
            first.cancel()
            await asyncio.wait((first,))
        assert second.result()[-1].event == "finished"
        assert len(pulls) == 1
        assert ModelStore(tmp_path / "state" / "models").verify(givers.model.hex()).name == "m"


async def test_a_pull_that_nobody_waits_for_any_more_stops_and_keeps_what_it_has(tmp_path: Path) -> None:
    slow = {"a": PiecePolicy(times=TIMES, upload_bytes_per_second=5 * PIECE_BYTES)}
    async with giving(tmp_path, {"a": honest}, slow) as givers:
        async with desk(tmp_path) as one:
            hear_all(one, givers)
            async with aclosing(one.desk.pull(PullRequest("m"))) as stream:
                async for told in stream:
                    if told[0].bytes_done >= PIECE_BYTES:
                        break
        async with desk(tmp_path) as two:
            hear_all(two, givers)
            events = await two.pull(PullRequest("m"))
            assert events[-1].bytes_kept >= PIECE_BYTES
            assert events[-1].event == "finished"


async def test_what_a_provider_lacks_is_obtained_and_what_it_has_asks_nobody(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers, desk(tmp_path) as one:
        hear_all(one, givers)
        await one.desk.obtain(givers.model, 5_000)
        assert one.desk.store.verify(givers.model.hex()).name == "m"
        await givers.transports["a"].stop()
        await one.desk.obtain(givers.model, 5_000)


LIMITS: list[tuple[ModelsConfig, bool, tuple[int | None, int | None]]] = [
    (ModelsConfig(), False, (UPLOAD_BYTES_PER_SECOND, UPLOAD_PER_PEER_BYTES_PER_SECOND)),
    (ModelsConfig(), True, (None, None)),
    (ModelsConfig(upload_bytes_per_second=0, upload_per_peer_bytes_per_second=0), False, (None, None)),
    (ModelsConfig(upload_bytes_per_second=7_000), False, (7_000, UPLOAD_PER_PEER_BYTES_PER_SECOND)),
    (ModelsConfig(upload_per_peer_bytes_per_second=9_000), True, (None, 9_000)),
]


@pytest.mark.parametrize(("models", "development", "limits"), LIMITS)
def test_uploads_are_limited_unless_the_operator_lifts_it(
    models: ModelsConfig, development: bool, limits: tuple[int | None, int | None]
) -> None:
    policy = piece_policy(models, development=development)
    assert (policy.upload_bytes_per_second, policy.upload_per_peer_bytes_per_second) == limits
