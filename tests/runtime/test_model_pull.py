"""Pulls over real TLS: from several sources, from liars, over interruptions, and what is left when it can't be done."""

import asyncio
import json
import re
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from node.runtime.model_plan import Piece, PullPlan
from node.runtime.model_pull import PullSettings
from node.runtime.model_source import SourceAddress
from node.runtime.model_sources import PullFailed
from node.transport.piece_channel import PieceTimes
from node.transport.piece_server import NotShared, PieceLibrary, PiecePolicy, SharedModel
from node.worker.errors import BadDescription, ModelInUse, StoreFull
from node.worker.models import ModelDescription, ModelStore
from node.worker.models import ModelId as StoredModelId
from node.worker.partial import opened_partial
from node.worker.pieces import PIECE_BYTES
from node.worker.quota import pulls, remove
from protocol.primitives.units import ModelId
from tests.runtime.givers import PIECES, TIMES, Spoiling, giving
from tests.transport.network import identity_of

LATE_S = 20
"""The most that one of two sources waits for the other."""
PATIENT = PieceTimes(silence_ms=1000 * LATE_S)


def honest(library: PieceLibrary) -> PieceLibrary:
    return library


def corrupt(library: PieceLibrary) -> PieceLibrary:
    return Spoiling(library, from_piece=0)


class Mute:
    """Answers the manifest, and stalls on the first piece."""

    def __init__(self, inner: PieceLibrary) -> None:
        self._inner = inner

    def open(self, model: ModelId) -> SharedModel:
        return Stalling(self._inner.open(model))


class Stalling:
    def __init__(self, inner: SharedModel) -> None:
        self._inner = inner
        self.manifest = inner.manifest
        self.piece_list = inner.piece_list
        self.close = inner.close

    def piece(self, file: int, piece: int) -> tuple[int, int, int]:
        threading.Event().wait(4)
        raise NotShared("too late")


class Gated:
    """Before it gives a piece, it calls a function in the thread that gives it."""

    def __init__(self, inner: PieceLibrary, before: Callable[[], object]) -> None:
        self._inner = inner
        self._before = before

    def open(self, model: ModelId) -> SharedModel:
        return GatedModel(self._inner.open(model), self._before)


class GatedModel:
    def __init__(self, inner: SharedModel, before: Callable[[], object]) -> None:
        self._inner = inner
        self._before = before
        self.manifest = inner.manifest
        self.piece_list = inner.piece_list
        self.close = inner.close

    def piece(self, file: int, piece: int) -> tuple[int, int, int]:
        self._before()
        return self._inner.piece(file, piece)


class Shut:
    """Shares nothing."""

    def open(self, model: ModelId) -> SharedModel:
        raise NotShared("this node does not share that model")


def refusing(library: PieceLibrary) -> PieceLibrary:
    return Shut()


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again until it holds; a thread makes it so."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def nothing_visible(store: ModelStore) -> bool:
    return not store.model_ids() and not list((store.directory / "files").iterdir())


async def test_a_model_comes_whole_from_one_source_and_can_be_given_on(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers:
        store = ModelStore(tmp_path / "pulled")
        pull = givers.pull(store)
        assert await pull.run() == givers.model.hex()
        assert store.verify(givers.model.hex()) == givers.manifest
        assert (pull.bytes_done, pull.pieces_left) == (givers.manifest.size_bytes(), 0)
        assert store.piece_list(givers.manifest.files[2]) == givers.store.piece_list(givers.manifest.files[2])


async def test_several_sources_share_the_work(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def meeting(library: PieceLibrary) -> PieceLibrary:
        """Its first pieces come only together with the other source's, however late that one is."""
        meetings = iter(range(2))
        return Gated(library, lambda: both.wait(LATE_S) if next(meetings, None) is not None else None)

    async with giving(tmp_path, {"a": meeting, "b": meeting}) as givers:
        pull = givers.pull(times=PATIENT)
        await pull.run()
        assert {source.node for source in pull.sources if source.pieces} == {givers.node("a"), givers.node("b")}


async def test_a_corrupt_source_is_named_with_the_piece_and_dropped_and_the_pull_goes_on(tmp_path: Path) -> None:
    async with giving(tmp_path, {"liar": corrupt, "a": honest}) as givers:
        pull = givers.pull()
        await pull.run()
        liar, other = pull.sources
        assert liar.node == givers.node("liar")
        assert (liar.dropped, liar.corrupt, liar.pieces) == (True, True, 0)
        assert re.fullmatch(r"sent a corrupt piece: piece \d of (large\.onnx|labels\.txt)", liar.state)
        assert other.pieces == PIECES + 1
        assert not other.corrupt


async def test_when_only_liars_are_left_each_is_named_and_nothing_is_visible(tmp_path: Path) -> None:
    async with giving(tmp_path, {"liar": corrupt, "other": corrupt}) as givers:
        store = ModelStore(tmp_path / "pulled")
        pull = givers.pull(store)
        with pytest.raises(PullFailed, match="no source is left for 7 of 7 pieces") as failed:
            await pull.run()
        for source in pull.sources:
            assert f"{source.name} sent a corrupt piece" in str(failed.value)
        assert nothing_visible(store)


@pytest.mark.parametrize(
    ("spoiling", "said"),
    [
        ({"manifest": b"{}"}, "sent another manifest"),
        ({"manifest": b"x" * 100_000}, "a manifest of 100000 bytes"),
        ({"piece_list": bytes(32 * PIECES)}, "sent a wrong piece list of large.onnx"),
        ({"piece_list": bytes(32 * PIECES - 1)}, "bytes instead of"),
        ({"from_piece": 0, "size": 5}, "5 bytes instead of"),
    ],
)
async def test_every_kind_of_lie_names_the_liar_and_costs_only_it(
    tmp_path: Path, spoiling: dict[str, bytes | int], said: str
) -> None:
    def lying(library: PieceLibrary) -> PieceLibrary:
        return Spoiling(library, **spoiling)  # type: ignore[arg-type]

    async with giving(tmp_path, {"liar": lying, "a": honest}) as givers:
        pull = givers.pull()
        await pull.run()
        liar = pull.sources[0]
        assert liar.corrupt
        assert said in liar.state


async def test_a_source_that_stalls_or_is_slow_delays_no_piece_for_long(tmp_path: Path) -> None:
    slow = {"slow": PiecePolicy(times=TIMES, upload_bytes_per_second=PIECE_BYTES // 4)}
    async with giving(tmp_path, {"mute": Mute, "slow": honest, "a": honest}, slow) as givers:
        pull = givers.pull()
        async with asyncio.timeout(20):
            await pull.run()
        assert [source.corrupt for source in pull.sources] == [False] * 3
        assert pull.sources[2].pieces >= PIECES - 1


async def test_a_source_that_is_gone_or_shares_nothing_is_told_when_nobody_is_left(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": refusing}) as givers:
        with pytest.raises(PullFailed, match="refused: this node does not share that model"):
            await givers.pull().run()
        await givers.transports["a"].stop()
        with pytest.raises(PullFailed, match="no source is left for the manifest"):
            await givers.pull().run()
    with pytest.raises(PullFailed, match="nobody on offer has the model"):
        await givers.pull(sources=list).run()


async def test_an_address_that_is_none_costs_nothing_but_that_source(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers:
        liar = SourceAddress(identity_of("liar").node_id, ("a..b:80",))
        pull = givers.pull(sources=lambda: [liar, givers.address("a")])
        await pull.run()
        assert "not a host's name" in pull.sources[0].state


async def test_a_source_that_turns_up_later_is_asked(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers:
        looked = 0

        def later() -> list[object]:
            nonlocal looked
            looked += 1
            return [] if looked < 4 else list(givers.addresses())

        await givers.pull(sources=later, settings=PullSettings(wait_ms=20_000)).run()  # type: ignore[arg-type]


async def test_a_source_that_dies_in_the_middle_leaves_its_pieces_to_the_others(tmp_path: Path) -> None:
    slow = {"a": PiecePolicy(times=TIMES, upload_bytes_per_second=5 * PIECE_BYTES)}
    died = threading.Event()
    async with giving(
        tmp_path, {"a": honest, "b": lambda library: Gated(library, lambda: died.wait(LATE_S))}, slow
    ) as givers:
        store = ModelStore(tmp_path / "pulled")
        addresses = givers.addresses()
        pull = givers.pull(store, sources=lambda: addresses, times=PATIENT)
        async with asyncio.TaskGroup() as group:
            group.create_task(pull.run())
            await until(lambda: pull.sources != () and pull.sources[0].pieces > 0)
            await givers.transports["a"].stop()
            died.set()
        store.verify(givers.model.hex())
        assert not any(source.corrupt for source in pull.sources)


async def test_an_interrupted_pull_goes_on_where_it_was(tmp_path: Path) -> None:
    slow = {"a": PiecePolicy(times=TIMES, upload_bytes_per_second=3 * PIECE_BYTES)}
    async with giving(tmp_path, {"a": honest, "b": honest}, slow) as givers:
        store = ModelStore(tmp_path / "pulled")
        first = givers.pull(store, sources=lambda: [givers.address("a")])
        async with asyncio.TaskGroup() as group:
            pulling = group.create_task(first.run())
            await until(lambda: first.bytes_done >= 2 * PIECE_BYTES)
            pulling.cancel()
        assert nothing_visible(store)
        second = givers.pull(store, sources=lambda: [givers.address("b")])
        await second.run()
        assert second.bytes_kept >= 2 * PIECE_BYTES
        assert second.sources[0].bytes_received <= givers.manifest.size_bytes() - 2 * PIECE_BYTES
        store.verify(givers.model.hex())


async def test_two_pulls_of_one_model_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers:
        store = ModelStore(tmp_path / "pulled")
        with opened_partial(store, givers.manifest), pytest.raises(ModelInUse, match="being pulled already"):
            await givers.pull(store).run()
        await givers.pull(store).run()


async def test_removing_what_is_pulled_is_refused_and_removing_others_harms_nothing(tmp_path: Path) -> None:
    slow = {"a": PiecePolicy(times=TIMES, upload_bytes_per_second=4 * PIECE_BYTES)}
    async with giving(tmp_path, {"a": honest}, slow) as givers:
        store = ModelStore(tmp_path / "pulled")
        other = store.add_local(
            ModelDescription("other", "1", "onnx", "MIT"),
            {"labels.txt": givers.store.file_path(givers.manifest.files[1])},
        )
        pull = givers.pull(store)
        async with asyncio.TaskGroup() as group:
            pulling = group.create_task(pull.run())
            await until(lambda: pull.bytes_done >= PIECE_BYTES)
            with pytest.raises(ModelInUse):
                remove(store, StoredModelId(givers.model.hex()))
            remove(store, other)
        store.verify(pulling.result())


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_fills_up_ends_the_pull_with_what_happened_and_nothing_visible(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers:
        store = ModelStore(tmp_path / "pulled")
        with opened_partial(store, givers.manifest):
            pass  # the files have their full size, so that only writing can fail
        with file_size_limit(2 * PIECE_BYTES), pytest.raises(StoreFull, match=r"large\.onnx can't be stored"):
            await givers.pull(store).run()
        assert nothing_visible(store)
        await givers.pull(store).run()
        store.verify(givers.model.hex())


async def test_what_does_not_fit_the_quota_is_refused_before_a_piece_is_asked_for(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers:
        store = ModelStore(tmp_path / "pulled", bytes_max=PIECE_BYTES)
        pull = givers.pull(store)
        with pytest.raises(StoreFull, match="the model store may take"):
            await pull.run()
        assert pull.sources[0].bytes_received == 0
        assert list(pulls(store).iterdir()) == []


def hostile_manifest(files: list[dict[str, object]]) -> bytes:
    table = {
        "name": "m", "version": "1", "runtime": "onnx", "license": "MIT",
        "source": "local", "files": files, "settings": {},
    }  # fmt: skip
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


BAD_FILES = [
    {"path": "../evil", "size": 1, "blake3": "0" * 64},
    {"path": "/etc/passwd", "size": 1, "blake3": "0" * 64},
    {"path": "a/../../b", "size": 1, "blake3": "0" * 64},
    {"path": "a", "size": 2**80, "blake3": "0" * 64},
    {"path": "a", "size": -1, "blake3": "0" * 64},
    {"path": "a", "size": 1, "blake3": "0" * 64, "link": "/etc/passwd"},
]


@pytest.mark.parametrize("file", [*BAD_FILES, None], ids=lambda file: "many" if file is None else str(file)[:40])
async def test_a_model_whose_own_manifest_is_hostile_is_its_makers_fault(
    tmp_path: Path, file: dict[str, object] | None
) -> None:
    files = [{"path": f"f{n:05}", "size": 1, "blake3": "0" * 64} for n in range(600)] if file is None else [file]
    manifest = hostile_manifest(files)
    async with giving(tmp_path, {"a": lambda library: Spoiling(library, manifest=manifest)}) as givers:
        givers.model = ModelId(blake3(manifest).digest())
        givers.store.manifest = lambda model_id: givers.manifest  # type: ignore[method-assign]
        with pytest.raises(BadDescription, match="whoever made this model is at fault"):
            await givers.pull().run()


async def test_sizes_that_disagree_with_the_pieces_are_found_before_anything_is_visible(tmp_path: Path) -> None:
    async with giving(tmp_path, {"a": honest}) as givers:
        large = givers.manifest.files[2]
        lying = replace(givers.manifest, files=(*givers.manifest.files[:2], replace(large, size=large.size - 1)))
        givers.model = ModelId(bytes.fromhex(givers.store.add_manifest(lying)))
        store = ModelStore(tmp_path / "pulled")
        pull = givers.pull(store)
        with pytest.raises(PullFailed, match="sent a corrupt piece: piece 5 of large"):
            await pull.run()
        assert nothing_visible(store)


def test_every_piece_is_given_once_until_one_comes_back_or_a_source_is_idle() -> None:
    pieces = [Piece(0, number) for number in range(4)]
    plan = PullPlan(pieces)
    assert [plan.take("a", idle=False), plan.take("a", idle=False), plan.take("b", idle=True)] == pieces[:3]
    plan.give_back("a", pieces[:2])
    assert [plan.take("b", idle=False) for _ in range(3)] == [pieces[0], pieces[1], pieces[3]]
    assert plan.take("b", idle=True) is None
    assert plan.take("c", idle=False) is None
    assert plan.take("c", idle=True) == pieces[2]
    assert plan.take("d", idle=True) == pieces[0]
    assert plan.done(pieces[2], 5)
    assert not plan.done(pieces[2], 5)
    assert not plan.is_wanted(pieces[2])
    plan.give_back("b", [pieces[0]])
    assert plan.take("a", idle=False) is None  # d still has it
    for piece in (pieces[0], pieces[1], pieces[3]):
        assert plan.done(piece, 5)
    assert (plan.left, plan.bytes_done) == (0, 20)
    assert plan.changed.is_set()
