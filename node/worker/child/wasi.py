"""The world that a WebAssembly job sees: WASI preview 1, closed and deterministic.

Law: everything a module can learn is its arguments, its input and the read-only files of its job, the same on every
node: clocks stand at a start and move a fixed step at each question, random bytes come from the job's seed. Nothing
here touches this process's own files, clocks or environment. Every question costs fuel, so that a module can't make
the host work for nothing.

Source: WASI snapshot preview 1 (`witx/wasi_snapshot_preview1.witx` of the WebAssembly/WASI repository): names,
signatures, error numbers and layouts.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

Write = Callable[[int, bytes], None]
Read = Callable[[int, int], bytes]

CALL_FUEL = 2_000
"""What one question costs beside the module's own steps: about what the host needs for it, in steps."""
BYTE_FUEL = 1
OPEN_FILES_MAX = 64
VECTORS_MAX = 1024
RANDOM_BYTES_MAX = 1 << 16
CLOCK_START_NS = 1_600_000_000_000_000_000
CLOCK_STEP_NS = 1_000

SUCCESS, BAD_DESCRIPTOR, INVALID, NOT_DIRECTORY, NO_ENTRY, NOT_SUPPORTED, READ_ONLY = 0, 8, 28, 54, 44, 58, 69
TOO_MANY_FILES = 33
KIND_CHARACTER_DEVICE, KIND_DIRECTORY, KIND_FILE = 2, 3, 4
ROOT_DESCRIPTOR = 3
_EVERY_RIGHT = (1 << 30) - 1
_DIRECTORY_ENTRY = struct.Struct("<QQIB3x")
_OPEN_CREATES = 1 | 4 | 8  # O_CREAT, O_EXCL, O_TRUNC

SIGNATURES: dict[str, str] = {
    "args_get": "ii", "args_sizes_get": "ii", "environ_get": "ii", "environ_sizes_get": "ii", "clock_res_get": "ii",
    "clock_time_get": "iIi", "fd_advise": "iIIi", "fd_allocate": "iII", "fd_close": "i", "fd_datasync": "i",
    "fd_fdstat_get": "ii", "fd_fdstat_set_flags": "ii", "fd_fdstat_set_rights": "iII", "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI", "fd_filestat_set_times": "iIIi", "fd_pread": "iiiIi", "fd_prestat_get": "ii",
    "fd_prestat_dir_name": "iii", "fd_pwrite": "iiiIi", "fd_read": "iiii", "fd_readdir": "iiiIi",
    "fd_renumber": "ii", "fd_seek": "iIii", "fd_sync": "i", "fd_tell": "ii", "fd_write": "iiii",
    "path_create_directory": "iii", "path_filestat_get": "iiiii", "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii", "path_open": "iiiiiIIii", "path_readlink": "iiiiii", "path_remove_directory": "iii",
    "path_rename": "iiiiii", "path_symlink": "iiiii", "path_unlink_file": "iii", "poll_oneoff": "iiii",
    "proc_raise": "i", "random_get": "ii", "sched_yield": "", "sock_accept": "iii", "sock_recv": "iiiiii",
    "sock_send": "iiiii", "sock_shutdown": "ii",
}  # fmt: skip
"""Parameters of every function that answers with an error number: i is 32 bits, I is 64. `proc_exit` is apart."""


class Exited(Exception):
    """The module ended itself with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class OutputTooLarge(Exception):
    """The module wrote more than a job may give."""


class OutOfMemoryBounds(Exception):
    """A pointer that the module passed lies outside its memory."""


@dataclass(slots=True)
class _Open:
    """One open descriptor: what it reads, where it stands."""

    kind: int
    content: bytes = b""
    position: int = 0
    writes: bytearray | None = None


@dataclass(slots=True)
class World:
    """One job's world. `read` and `write` reach the module's memory and raise ``OutOfMemoryBounds``."""

    arguments: tuple[bytes, ...]
    stdin: bytes
    files: dict[str, bytes]
    seed: int
    output_bytes_max: int
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    _open: dict[int, _Open] = field(default_factory=dict)
    _questions: int = 0
    _drawn: int = 0

    def __post_init__(self) -> None:
        self._open = {
            0: _Open(KIND_CHARACTER_DEVICE, self.stdin),
            1: _Open(KIND_CHARACTER_DEVICE, writes=self.stdout),
            2: _Open(KIND_CHARACTER_DEVICE, writes=self.stderr),
            ROOT_DESCRIPTOR: _Open(KIND_DIRECTORY),
        }

    def call(self, name: str, read: Read, write: Write, arguments: tuple[int, ...]) -> int:
        """Answer one question with an error number of WASI; unknown abilities are "not supported"."""
        answer = getattr(self, f"_{name}", None)
        if answer is None:
            return READ_ONLY if name.startswith("path_") else NOT_SUPPORTED
        result: int = answer(read, write, *arguments)
        return result

    # Arguments, environment, clocks, dice

    def _args_sizes_get(self, _read: Read, write: Write, count: int, size: int) -> int:
        write(count, len(self.arguments).to_bytes(4, "little"))
        write(size, sum(len(argument) + 1 for argument in self.arguments).to_bytes(4, "little"))
        return SUCCESS

    def _args_get(self, _read: Read, write: Write, pointers: int, content: int) -> int:
        for number, argument in enumerate(self.arguments):
            write(pointers + 4 * number, content.to_bytes(4, "little"))
            write(content, argument + b"\0")
            content += len(argument) + 1
        return SUCCESS

    def _environ_sizes_get(self, _read: Read, write: Write, count: int, size: int) -> int:
        write(count, bytes(4))
        write(size, bytes(4))
        return SUCCESS

    def _environ_get(self, _read: Read, _write: Write, _pointers: int, _content: int) -> int:
        return SUCCESS

    def _clock_res_get(self, _read: Read, write: Write, _clock: int, at: int) -> int:
        write(at, CLOCK_STEP_NS.to_bytes(8, "little"))
        return SUCCESS

    def _clock_time_get(self, _read: Read, write: Write, _clock: int, _precision: int, at: int) -> int:
        self._questions += 1
        write(at, (CLOCK_START_NS + self._questions * CLOCK_STEP_NS).to_bytes(8, "little"))
        return SUCCESS

    def _random_get(self, _read: Read, write: Write, at: int, size: int) -> int:
        if size > RANDOM_BYTES_MAX:
            return INVALID
        drawn = bytearray()
        while len(drawn) < size:
            self._drawn += 1
            counter = self.seed.to_bytes(8, "little") + self._drawn.to_bytes(8, "little")
            drawn += blake2b(counter, person=b"mercat-wasi-dice").digest()
        write(at, bytes(drawn[:size]))
        return SUCCESS

    def _sched_yield(self, _read: Read, _write: Write) -> int:
        return SUCCESS

    # Descriptors

    def _fd_close(self, _read: Read, _write: Write, descriptor: int) -> int:
        return SUCCESS if self._open.pop(descriptor, None) is not None else BAD_DESCRIPTOR

    def _fd_sync(self, _read: Read, _write: Write, descriptor: int) -> int:
        return SUCCESS if descriptor in self._open else BAD_DESCRIPTOR

    _fd_datasync = _fd_sync

    def _fd_fdstat_get(self, _read: Read, write: Write, descriptor: int, at: int) -> int:
        held = self._open.get(descriptor)
        if held is None:
            return BAD_DESCRIPTOR
        write(at, struct.pack("<BxHxxxxQQ", held.kind, 0, _EVERY_RIGHT, _EVERY_RIGHT))
        return SUCCESS

    def _fd_filestat_get(self, _read: Read, write: Write, descriptor: int, at: int) -> int:
        held = self._open.get(descriptor)
        if held is None:
            return BAD_DESCRIPTOR
        write(at, _file_facts(held.kind, len(held.content)))
        return SUCCESS

    def _fd_prestat_get(self, _read: Read, write: Write, descriptor: int, at: int) -> int:
        if descriptor != ROOT_DESCRIPTOR:
            return BAD_DESCRIPTOR
        write(at, struct.pack("<BxxxI", 0, 1))
        return SUCCESS

    def _fd_prestat_dir_name(self, _read: Read, write: Write, descriptor: int, at: int, size: int) -> int:
        if descriptor != ROOT_DESCRIPTOR or size < 1:
            return BAD_DESCRIPTOR
        write(at, b"/")
        return SUCCESS

    def _fd_read(self, read: Read, write: Write, descriptor: int, vectors: int, count: int, at: int) -> int:
        held = self._open.get(descriptor)
        if held is None or held.writes is not None or held.kind == KIND_DIRECTORY:
            return BAD_DESCRIPTOR
        if count > VECTORS_MAX:
            return INVALID
        taken = self._scatter(read, write, held.content, held.position, vectors, count)
        held.position += taken
        write(at, taken.to_bytes(4, "little"))
        return SUCCESS

    def _fd_pread(
        self, read: Read, write: Write, descriptor: int, vectors: int, count: int, offset: int, at: int
    ) -> int:
        held = self._open.get(descriptor)
        if held is None or held.kind != KIND_FILE:
            return BAD_DESCRIPTOR
        if count > VECTORS_MAX:
            return INVALID
        write(at, self._scatter(read, write, held.content, offset, vectors, count).to_bytes(4, "little"))
        return SUCCESS

    @staticmethod
    def _scatter(read: Read, write: Write, content: bytes, start: int, vectors: int, count: int) -> int:
        taken = 0
        for number in range(count):
            at, size = struct.unpack("<II", read(vectors + 8 * number, 8))
            piece = content[start + taken : start + taken + size]
            if not piece:
                break
            write(at, piece)
            taken += len(piece)
        return taken

    def _fd_write(self, read: Read, write: Write, descriptor: int, vectors: int, count: int, at: int) -> int:
        held = self._open.get(descriptor)
        if held is None or held.writes is None:
            return BAD_DESCRIPTOR
        if count > VECTORS_MAX:
            return INVALID
        written = 0
        for number in range(count):
            start, size = struct.unpack("<II", read(vectors + 8 * number, 8))
            if len(held.writes) + size > self.output_bytes_max:
                raise OutputTooLarge
            held.writes += read(start, size)
            written += size
        write(at, written.to_bytes(4, "little"))
        return SUCCESS

    def _fd_seek(self, _read: Read, write: Write, descriptor: int, offset: int, whence: int, at: int) -> int:
        held = self._open.get(descriptor)
        if held is None or held.kind != KIND_FILE:
            return BAD_DESCRIPTOR
        signed = offset - (1 << 64) if offset >= 1 << 63 else offset
        base = {0: 0, 1: held.position, 2: len(held.content)}.get(whence)
        if base is None or base + signed < 0:
            return INVALID
        held.position = base + signed
        write(at, held.position.to_bytes(8, "little"))
        return SUCCESS

    def _fd_tell(self, _read: Read, write: Write, descriptor: int, at: int) -> int:
        held = self._open.get(descriptor)
        if held is None or held.kind != KIND_FILE:
            return BAD_DESCRIPTOR
        write(at, held.position.to_bytes(8, "little"))
        return SUCCESS

    def _fd_readdir(
        self, _read: Read, write: Write, descriptor: int, buffer: int, size: int, cookie: int, at: int
    ) -> int:
        held = self._open.get(descriptor)
        if held is None or held.kind != KIND_DIRECTORY:
            return NOT_DIRECTORY
        listed = b"".join(
            _DIRECTORY_ENTRY.pack(number + 1, number + 1, len(name.encode()), KIND_FILE) + name.encode()
            for number, name in enumerate(sorted(self.files))
            if number >= cookie
        )[:size]
        write(buffer, listed)
        write(at, len(listed).to_bytes(4, "little"))
        return SUCCESS

    # Files of the job, read-only, all in the root

    def _named(self, read: Read, path: int, size: int) -> str | None:
        try:
            name = read(path, size).decode()
        except UnicodeDecodeError:
            return None
        while name.startswith(("./", "/")):
            name = name.removeprefix("./").removeprefix("/")
        return "" if name in ("", ".") else name

    def _path_filestat_get(
        self, read: Read, write: Write, directory: int, _flags: int, path: int, size: int, at: int
    ) -> int:
        if directory != ROOT_DESCRIPTOR:
            return NOT_DIRECTORY
        name = self._named(read, path, size)
        if name == "":
            write(at, _file_facts(KIND_DIRECTORY, 0))
        elif name in self.files:
            write(at, _file_facts(KIND_FILE, len(self.files[name])))
        else:
            return NO_ENTRY
        return SUCCESS

    def _path_open(
        self, read: Read, write: Write, directory: int, _look_up: int, path: int, size: int,
        creation: int, _rights: int, _inherited: int, _flags: int, at: int,
    ) -> int:  # fmt: skip
        if directory != ROOT_DESCRIPTOR:
            return NOT_DIRECTORY
        name = self._named(read, path, size)
        if creation & _OPEN_CREATES:
            return READ_ONLY
        if name is None or (name and name not in self.files):
            return NO_ENTRY
        if len(self._open) >= OPEN_FILES_MAX:
            return TOO_MANY_FILES
        descriptor = next(
            number for number in range(ROOT_DESCRIPTOR + 1, OPEN_FILES_MAX + 8) if number not in self._open
        )
        self._open[descriptor] = _Open(KIND_FILE, self.files[name]) if name else _Open(KIND_DIRECTORY)
        write(at, descriptor.to_bytes(4, "little"))
        return SUCCESS


def _file_facts(kind: int, size: int) -> bytes:
    return struct.pack("<QQBxxxxxxxQQQQQ", 0, 0, kind, 1, size, 0, 0, 0)
