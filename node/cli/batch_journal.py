"""What a batch has done so far, on disk beside its results: whatever ends the process, the same command goes on.

Law: one JSON line for each try that starts and each that ends, added before anything else happens; a try that has
started and not ended is looked up at the node by its request's id, never guessed. In memory there are a few bytes for
each line of input.
"""

import contextlib
import fcntl
import os
import secrets
import time
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

from node.cli.batch_input import Defaults
from node.cli.failures import CommandFailed, ExitCode

SYNC_SECONDS = 1.0
"""A power cut forgets so much: the node then tells what became of those tries. A killed process forgets nothing."""

_WAITING, _RUNNING, _DONE, _FAILED = range(4)


class Usage(msgspec.Struct, frozen=True):
    """Work units, as the model counts them."""

    input_units: int
    output_units: int


class Fault(msgspec.Struct, frozen=True):
    """Whose fault a failure was (``user``, ``provider``, ``capacity``, ``network``, or empty), and what it was."""

    fault: str
    reason: str


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the results. ``price`` is what all tries of the line cost, in base units; ``job`` names the receipt.

    ``text`` is the output, ``base64`` stands for it where it is no UTF-8 text.
    """

    line: int
    id: str
    text: str | None = None
    base64: str | None = None
    finish: str = ""
    usage: Usage | None = None
    price: int = 0
    provider: str = ""
    job: str = ""
    error: Fault | None = None


class _Header(msgspec.Struct, frozen=True, tag="batch", tag_field="entry"):
    batch: str
    digest: str
    defaults: Defaults


class _Started(msgspec.Struct, frozen=True, tag="start", tag_field="entry"):
    place: int
    attempt: int


class _Ended(msgspec.Struct, frozen=True, tag="end", tag_field="entry"):
    place: int
    attempt: int
    paid: int
    result: Result | None
    """``None`` for a try that came to nothing and is to be repeated."""


_Entry = _Header | _Started | _Ended


class Journal:
    """One batch's state. ``place`` counts the good lines of the input from 0."""

    def __init__(self, path: Path, count: int) -> None:
        """Use ``opened``."""
        self.path = path
        self.batch = ""
        self.spent = 0
        self.done = 0
        self.failed = 0
        self._states = bytearray(count)
        self._attempts = array("L", bytes(array("L").itemsize * count))
        self._paid = array("Q", bytes(8 * count))
        self._rows = array("Q", bytes(8 * count))
        """Where each ended line's entry begins in the file."""
        self._file = path.open("a+b")
        self._synced_at = time.monotonic()
        self._next = 0

    @staticmethod
    @contextlib.contextmanager
    def opened(path: Path, digest: str, defaults: Defaults, count: int) -> "Iterator[Journal]":
        """Go on with the journal at ``path`` or begin one; nobody else may use it meanwhile. Raises ``CommandFailed``
        for one of another input or other options."""
        journal = Journal(path, count)
        try:
            try:
                fcntl.flock(journal._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CommandFailed(f"another batch is writing {path}", ExitCode.FAILED, "busy") from None
            journal._replay(digest, defaults)
            yield journal
        finally:
            with contextlib.suppress(ValueError):
                journal._file.close()

    # What there is to do

    def __len__(self) -> int:
        return len(self._states)

    @property
    def waiting(self) -> int:
        """Lines that have not ended, running ones included."""
        return len(self._states) - self.done - self.failed

    def take(self) -> int | None:
        """The next line that waits, now marked as running; ``None`` when none does."""
        place = self._states.find(_WAITING, self._next)
        if place < 0:
            return None
        self._states[place] = _RUNNING
        self._next = place + 1
        return place

    def give_back(self, place: int) -> None:
        """A taken line was not tried, or is to be tried again."""
        self._states[place] = _WAITING
        self._next = min(self._next, place)

    def request(self, place: int) -> str:
        """The id of the line's present try: the same in every life of this batch."""
        name = self.batch.encode() + place.to_bytes(8, "big") + self._attempts[place].to_bytes(8, "big")
        return blake2b(name, digest_size=32, person=b"mercat batch").hexdigest()

    def paid(self, place: int) -> int:
        """What the line's tries have cost so far, in base units."""
        return self._paid[place]

    def unresolved(self) -> tuple[int, ...]:
        """Lines whose try had started when the last process ended; they count as running."""
        return tuple(place for place, state in enumerate(self._states) if state == _RUNNING)

    # What happens

    def started(self, place: int) -> None:
        """The line's present try is about to be sent to the node."""
        self._write(_Started(place, self._attempts[place]))

    def ended(self, place: int, paid: int, result: Result) -> None:
        """The line is done, or has failed for good."""
        self._take_in(_Ended(place, self._attempts[place], paid, result), self._write_ended(place, paid, result))

    def came_to_nothing(self, place: int, paid: int) -> None:
        """The try is over without a result, and the line waits again, under a new request id."""
        self._take_in(_Ended(place, self._attempts[place], paid, None), self._write_ended(place, paid, None))

    def retry_failed(self) -> int:
        """Let all failed lines wait again; how many there were."""
        places = [place for place, state in enumerate(self._states) if state == _FAILED]
        for place in places:
            self.came_to_nothing(place, 0)
        return len(places)

    def failures(self) -> Iterator[Result]:
        """The failed lines in the order of the input."""
        return (result for result in self.results() if result.error is not None)

    def results(self) -> Iterator[Result]:
        """All ended lines in the order of the input, read from the file one by one."""
        with self.path.open("rb") as file:
            for place, state in enumerate(self._states):
                if state in (_DONE, _FAILED):
                    file.seek(self._rows[place])
                    entry = msgspec.json.decode(file.readline(), type=_Entry)
                    assert isinstance(entry, _Ended)
                    assert entry.result is not None
                    yield entry.result

    def publish(self, out: Path) -> None:
        """Write the results of ended lines to ``out``, in the order of the input, all or nothing."""
        unfinished = out.with_name(out.name + ".new")
        with unfinished.open("wb") as file:
            for result in self.results():
                file.write(msgspec.json.encode(result) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(out)

    def remove(self) -> None:
        """The batch is over and its results are published."""
        self._file.close()
        self.path.unlink()

    def untouched(self, place: int) -> bool:
        """Whether no try of the line was ever begun or taken over here."""
        return self._states[place] == _WAITING and self._attempts[place] == 0

    def adopt(self, result: Result, place: int) -> None:
        """Take over a published result, to go on from."""
        self.ended(place, result.price, result)

    # The file

    def _replay(self, digest: str, defaults: Defaults) -> None:
        self._file.seek(0)
        offset = 0
        for raw in self._file:
            if not raw.endswith(b"\n"):
                break  # cut off by a kill in the middle of a write
            try:
                self._take_in(msgspec.json.decode(raw, type=_Entry), offset, digest, defaults)
            except (msgspec.DecodeError, IndexError):
                raise CommandFailed(f"{self.path} is not a batch's journal; remove it to begin anew") from None
            offset += len(raw)
        self._file.truncate(offset)
        if not self.batch:
            self.batch = secrets.token_hex(16)
            self._write(_Header(self.batch, digest, defaults))
            os.fsync(self._file.fileno())

    def _take_in(self, entry: _Entry, offset: int, digest: str = "", defaults: Defaults | None = None) -> None:
        match entry:
            case _Header():
                if entry.digest != digest or entry.defaults != defaults:
                    what = "another input" if entry.digest != digest else "other options"
                    raise CommandFailed(
                        f"{self.path} was begun with {what}; remove it to begin anew, or name another --out",
                        ExitCode.USAGE,
                        "other_batch",
                    )
                self.batch = entry.batch
            case _Started():
                self._states[entry.place] = _RUNNING
                self._attempts[entry.place] = entry.attempt
            case _Ended():
                self._end(entry, offset)

    def _end(self, entry: _Ended, offset: int) -> None:
        place = entry.place
        self.failed -= self._states[place] == _FAILED
        self.spent += entry.paid
        self._paid[place] += entry.paid
        self._rows[place] = offset
        if entry.result is None:
            self._attempts[place] = entry.attempt + 1
            self.give_back(place)
        elif entry.result.error is not None:
            self._states[place] = _FAILED
            self.failed += 1
        else:
            self._states[place] = _DONE
            self.done += 1

    def _write_ended(self, place: int, paid: int, result: Result | None) -> int:
        return self._write(_Ended(place, self._attempts[place], paid, result))

    def _write(self, entry: _Entry) -> int:
        """Add one entry; where it begins."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()
        return offset
