"""The parts that need no sandbox: frames, text, sampling, filters, the binary interface's self-test."""

import asyncio
import contextlib
import struct
from types import SimpleNamespace

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.worker import frames
from node.worker.child import llama, sampling
from node.worker.child.frames import MalformedFrame, Value, decode, encode
from node.worker.child.llama import CONTEXT_DEFAULTS, MODEL_DEFAULTS, SYMBOLS, Llama, self_test
from node.worker.child.runtime import LoadFailed, Refused, parse_request
from node.worker.child.text import TextStream, parse_turns, plain_chatml
from node.worker.limits import OUTPUT_FRAME_BYTES_MAX
from node.worker.sandbox import seccomp


@given(st.binary(max_size=200))
def test_any_bytes_are_a_known_frame_or_malformed(content: bytes) -> None:
    with contextlib.suppress(MalformedFrame):
        frames.parse(decode(content))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_any_value_is_a_request_or_refused(value: Value) -> None:
    with contextlib.suppress(Refused):
        parse_request(value)


@given(values, values)
def test_any_value_in_a_frame_is_known_or_malformed(job: Value, rest: Value) -> None:
    for kind in ("prefilled", "piece", "refused", "broken", "cancelled", "confined", "ready", "failed", "canary"):
        for frame in ([kind, job], [kind, job, rest], [kind, job, b"", rest, [rest], None]):
            with contextlib.suppress(MalformedFrame):
                frames.parse(frame)


@given(values)
def test_frames_round_trip(value: Value) -> None:
    assert decode(encode(value)[4:]) == value


async def test_frames_that_come_together_or_in_pieces_are_read_one_by_one() -> None:
    said: list[Value] = [["prefilled", 1, 5], ["cancelled", 2], ["piece", 1, b"x" * 100_000, 3, [], "done"]]
    whole = b"".join(encode(value) for value in said)
    for size in (1, 7, 70_000, len(whole)):
        stream = asyncio.StreamReader(limit=1 << 20)
        reader = frames.FrameReader(stream, 5)
        pieces = iter([whole[start : start + size] for start in range(0, len(whole), size)] if size > 1 else [whole])
        seen = []
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_frames(reader, len(said)))
            for piece in pieces:
                stream.feed_data(piece)
                await asyncio.sleep(0)
            seen = await reading
        assert seen == [frames.parse(value) for value in said]


async def _frames(reader: frames.FrameReader, count: int) -> list[frames.Frame]:
    return [await reader.next() for _ in range(count)]


async def test_the_reader_refuses_long_and_stalled_frames_and_sees_the_end() -> None:
    async def read(content: bytes, end: bool) -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(content)
        if end:
            stream.feed_eof()
        await frames.FrameReader(stream, 0.01).next()

    with pytest.raises(frames.FrameTooLong):
        await read(struct.pack(">I", OUTPUT_FRAME_BYTES_MAX * 2), end=False)
    with pytest.raises(frames.FrameStalled):
        await read(b"\x00\x00", end=False)
    with pytest.raises(frames.FrameStalled):
        await read(b"\x00\x00\x00\x09part", end=False)
    with pytest.raises(asyncio.IncompleteReadError):
        await read(b"", end=True)


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_released_text_is_the_text_before_the_first_stop_string(text: str, stops: list[str], step: int) -> None:
    """However the bytes are cut, and never a part of a character."""
    content = text.encode()
    stream = TextStream(tuple(stops))
    released, stopped = "", False
    for start in range(0, len(content), step):
        piece, stopped = stream.push(content[start : start + step])
        released += piece
        if stopped:
            break
    if not stopped:
        released += stream.finish()
        assert released == text
    else:
        assert text.startswith(released)
        assert any(text[len(released) :].startswith(stop) for stop in stops)
    assert all(stop not in released for stop in stops) or not stops


def test_a_possible_beginning_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(("<end>",))
    assert stream.push(b"a<e") == ("a", False)
    assert stream.push(b"x<en") == ("<ex", False)
    assert stream.push(b"d>more") == ("", True)


def test_half_a_character_waits_for_its_other_half() -> None:
    stream = TextStream(())
    assert stream.push("é".encode()[:1]) == ("", False)
    assert stream.push("é".encode()[1:]) == ("é", False)
    assert stream.push(b"\xf0\x9f") == ("", False)
    assert stream.finish() == "�"


def test_only_the_templates_own_markers_may_be_control_tokens() -> None:
    pieces = plain_chatml(parse_turns(msgpack.packb([["user", "<|im_end|>"], ["assistant", "ok"]])))
    assert [text for text, marker in pieces if marker] == ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"]
    assert ("<|im_end|>", False) in pieces
    assert pieces[-1] == ("assistant\n", False)


def test_at_temperature_zero_the_highest_logit_wins_and_the_lowest_number_breaks_a_tie() -> None:
    logits = numpy.array([1, 5, 5, 2], dtype=numpy.float32)
    assert {sampling.choose(logits, 0, seed, position) for seed in range(5) for position in range(5)} == {1}


def test_samples_follow_the_distribution_over_seeds_and_over_positions() -> None:
    logits = numpy.array([2, 1, 0, -1, 0.5], dtype=numpy.float32)
    weights = numpy.exp(logits.astype(numpy.float64) / 0.8)
    expected = weights / weights.sum()
    for cases in ([(seed, 16) for seed in range(3000)], [(7, position) for position in range(3000)]):
        drawn = [sampling.choose(logits, 800, seed, position) for seed, position in cases]
        seen = numpy.bincount(drawn, minlength=5) / len(drawn)
        assert numpy.abs(seen - expected).max() < 0.03


def test_the_noise_is_pinned() -> None:
    """A change here changes every sampled output, and so what a receipt says."""
    noise = sampling.gumbel_noise(sampling.random_numbers(3, seed=1, position=2))
    assert [round(float(value), 9) for value in noise] == NOISE
    assert numpy.isfinite(sampling.gumbel_noise(sampling.random_numbers(100_000, seed=3, position=4))).all()


NOISE = [-0.26959, 1.569222628, 1.676162582]


class Machine:
    """A small interpreter of the filters' instructions: what would the kernel answer?"""

    def __init__(self, program: bytes) -> None:
        self.records = list(struct.iter_unpack("<HBBI", program))

    def verdict(self, number: int, *arguments: int, architecture: int = seccomp.ARCHITECTURE_X86_64) -> int:
        padded = [*arguments, *([0] * (6 - len(arguments)))]
        seen = struct.pack("<IIQ6Q", number, architecture, 0, *(value & (2**64 - 1) for value in padded))
        counter, accumulator = 0, 0
        while True:
            code, true, false, constant = self.records[counter]
            counter += 1
            match code:
                case seccomp.LOAD_WORD:
                    (accumulator,) = struct.unpack_from("<I", seen, constant)
                case seccomp.AND_CONSTANT:
                    accumulator &= constant
                case seccomp.JUMP_EQUAL:
                    counter += true if accumulator == constant else false
                case seccomp.JUMP_GREATER_EQUAL:
                    counter += true if accumulator >= constant else false
                case seccomp.RETURN:
                    return int(constant)


CALLS = seccomp.NUMBERS
RULES = [
    # call, arguments, allowed from the start, allowed after imports
    ("read", (), True, True),
    ("execve", (), True, False),
    ("fork", (), True, False),
    ("clone", (17,), True, False),  # a process
    ("clone", (0x50F00,), True, True),  # a thread
    ("clone", (0x50F00 | 0x10000000,), False, False),  # with a new user namespace
    ("clone3", (), False, False),
    ("openat", (0, 0, 0), True, True),
    ("openat", (0, 0, 0o100 | 1), True, False),
    ("openat", (0, 0, 2), True, False),
    ("openat", (0, 0, 0o2000000), True, True),  # close on exec
    ("open", (0, 0o1000), True, False),
    ("mmap", (0, 4096, 3, 0x22), True, True),  # private
    ("mmap", (0, 4096, 3, 0x21), False, False),  # shared and anonymous
    ("mmap", (0, 4096, 1, 0x01), True, True),  # a file, shared
    ("mmap", (0, 4096, 3, 0x23), False, False),
    ("mmap", (0, 4096, 3, 0x20022), True, True),  # a thread's stack
    ("mmap", (0, 4096, 3, 0x122), False, False),  # one that grows by itself
    ("prlimit64", (0, 2, 0, 4096), True, True),
    ("prlimit64", (0, 2, 4096, 0), True, False),
    ("prlimit64", (0, 2, 1 << 32, 0), True, False),  # a pointer whose low half is zero
    ("tgkill", (2, 2, 6), True, True),
    ("tgkill", (1, 1, 9), True, False),
    ("kill", (1, 9), True, False),
    ("dup2", (), True, False),
    ("fcntl", (0, 1), True, True),
    ("fcntl", (0, 0), True, False),
    ("ioctl", (0, 0x5412), False, False),
    ("prctl", (15,), True, True),
    ("prctl", (1,), False, False),
    ("seccomp", (1,), True, False),
]


@pytest.mark.parametrize(("name", "arguments", "first", "second"), RULES)
def test_filters_judge_calls_by_their_arguments(
    name: str, arguments: tuple[int, ...], first: bool, second: bool
) -> None:
    for program, allowed in ((seccomp.filter_from_start(), first), (seccomp.filter_after_imports(), second)):
        assert (Machine(program).verdict(CALLS[name], *arguments) == seccomp.ALLOW) is allowed


def test_unknown_calls_are_refused_and_foreign_ones_kill() -> None:
    for program in (seccomp.filter_from_start(), seccomp.filter_after_imports()):
        machine = Machine(program)
        listed = {number for name, number in CALLS.items()}
        for number in range(600):
            if number not in listed:
                assert machine.verdict(number) == seccomp.refuse(1)
        assert machine.verdict(39, architecture=0x40000003) == seccomp.KILL_PROCESS
        assert machine.verdict(seccomp.X32_SYSCALL_BIT | 39) == seccomp.KILL_PROCESS


def test_the_second_filter_allows_nothing_that_the_first_does_not() -> None:
    first, second = Machine(seccomp.filter_from_start()), Machine(seccomp.filter_after_imports())
    for number in range(600):
        for arguments in ((), (1, 1, 1, 0x21), (1, 1, 1, 0x122), (0x10000,), (2, 2, 6), (0, 0, 0)):
            if second.verdict(number, *arguments) == seccomp.ALLOW:
                assert first.verdict(number, *arguments) == seccomp.ALLOW


def test_the_installed_library_is_the_declared_one() -> None:
    assert "CPU" in Llama().processor


@pytest.mark.parametrize("kind", ["model", "context", "symbol"])
def test_a_library_whose_structures_differ_is_refused(kind: str) -> None:
    model, context = dict(MODEL_DEFAULTS), dict(CONTEXT_DEFAULTS)
    if kind == "model":
        model["main_gpu"] = 7
    if kind == "context":
        context["n_ubatch"] = 1
    library = SimpleNamespace(**dict.fromkeys(SYMBOLS))
    library.llama_model_default_params = lambda: SimpleNamespace(**model)
    library.llama_context_default_params = lambda: SimpleNamespace(**context)
    if kind == "symbol":
        del library.llama_decode
    with pytest.raises(LoadFailed):
        self_test(library, llama.MODEL_DEFAULTS, llama.CONTEXT_DEFAULTS)
