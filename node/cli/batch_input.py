"""The input of ``mercat batch``: one prompt a line, as people write them or as OpenAI's batch files do.

Law: every line is judged before anything is spent. A file is read line by line and looked into by offset: its lines are
never in memory together.
"""

from array import array
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.run import TEXT_RUNTIMES, offered_model
from node.runtime.control import ModelView, RunRequest
from protocol.primitives.limits import JOB_INPUT_BYTES_MAX

LINE_BYTES_MAX = 4 * JOB_INPUT_BYTES_MAX
"""A prompt of the largest size with every letter escaped."""

IDENTITY_LENGTH_MAX = 512
ROLES = ("system", "developer", "user", "assistant")
CHAT_PATH = "/v1/chat/completions"


class LineInvalid(Exception):
    """A line that can't be a job; ``str`` says why."""


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | tuple[_Part, ...]


class _Settings(msgspec.Struct):
    model: str = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    n: int | None = None
    tools: tuple[msgspec.Raw, ...] | None = None
    response_format: msgspec.Raw | None = None
    logprobs: bool | None = None


class _Body(_Settings):
    messages: tuple[_Message, ...] = ()


class _Row(_Body):
    id: str | int | None = None
    custom_id: str | None = None
    prompt: str | None = None
    system: str | None = None
    method: str = "POST"
    url: str = CHAT_PATH
    body: _Body | None = None


class Defaults(msgspec.Struct, frozen=True):
    """What holds for a line that does not say otherwise. Part of a batch's identity: results depend on it."""

    model: str
    system: str
    output_units_max: int
    seed: int
    temperature_milli: int
    stop: tuple[str, ...]
    lines: bool
    """The file is plain text: each line is a prompt."""


class Task(msgspec.Struct, frozen=True):
    """One line of input, ready to be asked for."""

    line: int
    """Of the file, from 1."""
    identity: str
    request: RunRequest


class InputFile:
    """A file whose good lines are known by their place."""

    def __init__(self, path: Path, defaults: Defaults, models: tuple[ModelView, ...]) -> None:
        self.path = path
        self._defaults = defaults
        self._models = models
        self._known: dict[str, ModelView] = {}
        self._offsets = array("Q")
        self._lines = array("Q")
        self.bad: list[tuple[int, str]] = []
        """Line numbers and reasons."""
        self.digest = self._scan()

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def models(self) -> frozenset[str]:
        """Ids of the models that the good lines want."""
        return frozenset(model.model for model in self._known.values())

    def task(self, index: int) -> Task:
        """The good line at a place, read anew."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return self._task(self._lines[index], file.readline(LINE_BYTES_MAX + 1))

    def _scan(self) -> str:
        """Judge every line; the digest of the file."""
        digest, seen, offset, number = blake2b(digest_size=32), set[int](), 0, 0
        with self.path.open("rb") as file:
            while raw := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                digest.update(raw)
                if raw.strip():
                    self._judge(number, offset, raw, seen)
                offset += len(raw)
                if len(raw) > LINE_BYTES_MAX and not raw.endswith(b"\n"):
                    offset += _passed_over(file, digest)
        return digest.hexdigest()

    def _judge(self, number: int, offset: int, raw: bytes, seen: set[int]) -> None:
        try:
            task = self._task(number, raw)
            # Eight bytes of a hash for each id: two lines that meet by chance are as rare as a lost disk.
            mark = int.from_bytes(blake2b(task.identity.encode(), digest_size=8).digest(), "big")
            if mark in seen:
                raise LineInvalid(f"the id {task.identity[:64]!r} is used twice")
        except LineInvalid as error:
            self.bad.append((number, str(error)))
            return
        seen.add(mark)
        self._offsets.append(offset)
        self._lines.append(number)

    def _task(self, number: int, raw: bytes) -> Task:
        if len(raw) > LINE_BYTES_MAX:
            raise LineInvalid(f"longer than {LINE_BYTES_MAX} bytes")
        if self._defaults.lines:
            try:
                row = _Row(prompt=raw.rstrip(b"\r\n").decode())
            except UnicodeDecodeError:
                raise LineInvalid("not UTF-8 text") from None
        else:
            row = _decoded(raw)
        settings: _Body = row.body if row.body is not None else row
        identity = row.custom_id if row.custom_id is not None else str(row.id) if row.id is not None else str(number)
        if len(identity) > IDENTITY_LENGTH_MAX:
            raise LineInvalid(f"an id of more than {IDENTITY_LENGTH_MAX} letters")
        return Task(number, identity, self._request(row, settings))

    def _request(self, row: _Row, settings: _Body) -> RunRequest:
        _refuse_unsupported(row, settings)
        defaults = self._defaults
        model = self._model(settings.model or defaults.model)
        form, body = _input(model.runtime, _messages(row, settings, defaults.system))
        if len(body) > JOB_INPUT_BYTES_MAX - 4096:
            raise LineInvalid(f"the input has {len(body)} bytes; the limit is 1 MiB")
        most = (settings.max_completion_tokens, settings.max_tokens, defaults.output_units_max)
        output_units = next(units for units in most if units is not None)
        temperature, seed = settings.temperature, settings.seed
        temperature_milli = defaults.temperature_milli if temperature is None else round(temperature * 1000)
        seed = defaults.seed if seed is None else seed
        if output_units < 1 or not 0 <= temperature_milli <= 10_000 or not 0 <= seed < 2**63:
            raise LineInvalid("max_tokens, temperature or seed is out of range")
        stop = defaults.stop if settings.stop is None else settings.stop
        return RunRequest(
            model=model.model,
            format=form,
            body=body,
            output_units_max=output_units,
            seed=seed,
            temperature_milli=temperature_milli,
            stop=(stop,) if isinstance(stop, str) else stop,
        )

    def _model(self, wanted: str) -> ModelView:
        if not wanted:
            raise LineInvalid("names no model, and there is no --model")
        found = self._known.get(wanted)
        if found is None:
            try:
                found = self._known[wanted] = offered_model(self._models, wanted)
            except CommandFailed as error:
                raise LineInvalid(error.message) from None
        return found


def _passed_over(file: BinaryIO, digest: blake2b) -> int:
    """The rest of a line that is too long, piece by piece; its size."""
    size = 0
    while rest := file.readline(LINE_BYTES_MAX):
        digest.update(rest)
        size += len(rest)
        if rest.endswith(b"\n"):
            break
    return size


def _decoded(raw: bytes) -> _Row:
    try:
        row = msgspec.json.decode(raw, type=_Row)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineInvalid(f"not a line of a batch: {error}") from None
    if row.body is not None and (row.method != "POST" or row.url != CHAT_PATH):
        raise LineInvalid(f"{row.method} {row.url} is not served in a batch, only POST {CHAT_PATH}")
    return row


def _refuse_unsupported(row: _Row, settings: _Body) -> None:
    """What would change the result and is not done here must not be passed over in silence."""
    for holds, name in (
        (settings.n in (None, 1), "n above 1"),
        (not settings.tools, "tools"),
        (settings.response_format is None, "response_format"),
        (not settings.logprobs, "logprobs"),
        (row.body is None or row.prompt is None, "prompt beside body"),
    ):
        if not holds:
            raise LineInvalid(f"{name} is not supported in a batch")


def _messages(row: _Row, settings: _Body, system: str) -> list[list[str]]:
    if row.prompt is not None:
        if settings.messages:
            raise LineInvalid("both a prompt and messages")
        first = row.system if row.system is not None else system
        return [*([["system", first]] if first else []), ["user", row.prompt]]
    if not settings.messages:
        raise LineInvalid("neither a prompt nor messages")
    return [[_role(message.role), _text(message.content)] for message in settings.messages]


def _role(role: str) -> str:
    if role not in ROLES:
        raise LineInvalid(f"unknown role {role[:32]!r}")
    return "system" if role == "developer" else role


def _text(content: str | tuple[_Part, ...]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text":
            raise LineInvalid(f"content of type {part.type[:32]!r} is not supported")
    return "".join(part.text for part in content)


def _input(runtime: str, messages: list[list[str]]) -> tuple[str, bytes]:
    """Format and body as the model's runtime takes them."""
    if runtime in TEXT_RUNTIMES:
        return "chat", msgspec.msgpack.encode(messages)
    if len(messages) != 1 or messages[0][0] != "user":
        raise LineInvalid("this model takes one prompt, not a conversation")
    return ("bytes" if runtime == "onnx" else "text"), messages[0][1].encode()


def existing_file(path: Path) -> Path:
    """A regular file: a batch reads its input more than once. Raises ``CommandFailed``."""
    if not path.is_file():
        raise CommandFailed(f"{path} is not a file; a batch can't be read from a pipe", ExitCode.USAGE, "usage")
    return path
