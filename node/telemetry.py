"""Structured log events: what happened, in which room, for which job.

Law: an event is a name with fields, never a sentence. What people send and what signs for them is never logged: fields
whose name promises it are withheld, and bytes longer than an id show only their length.
"""

import json
import logging
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec
import structlog

WITHHELD = frozenset({"body", "input", "output", "passphrase", "payload", "prompt", "secret", "seed", "signing_key"})
"""Field names whose values never reach a log."""

_ID_BYTES_MAX = 64
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Event = MutableMapping[str, Any]
EventLogger = structlog.typing.FilteringBoundLogger


def withhold(_logger: object, _method: str, event: Event) -> Event:
    """Processor: takes secrets and people's words out of an event, and spells bytes as hex."""
    for name, value in event.items():
        if name in WITHHELD:
            event[name] = "(withheld)"
        elif isinstance(value, bytes):
            event[name] = value.hex() if len(value) <= _ID_BYTES_MAX else f"({len(value)} bytes)"
    return event


def _spelled(text: str) -> str:
    """The same text with everything that a terminal would obey spelled as an escape."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)


def _one_line(_logger: object, _method: str, event: Event) -> str:
    try:
        return _spelled(msgspec.json.encode(event, enc_hook=str).decode())
    except UnicodeEncodeError:  # half a character pair, out of a stranger's JSON
        return json.dumps(event, default=str)


def _spell(_logger: object, _method: str, event: Event) -> Event:
    """Processor: the same for text that isn't JSON; a traceback keeps its lines."""
    for name, value in event.items():
        if isinstance(value, str):
            lines = value.split("\n") if name == "exception" else [value]
            event[name] = "\n".join(_spelled(line) for line in lines)
    return event


def configure_events(stream: TextIO, level: str, as_json: bool) -> None:
    """Send events of at least ``level`` (debug, info, warning, error) to ``stream``, flushed line by line."""
    text: list[structlog.typing.Processor] = [_spell, structlog.dev.ConsoleRenderer(colors=False)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            withhold,
            *([_one_line] if as_json else text),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def open_log(path: Path) -> TextIO:
    """A log file to append to, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", encoding="utf-8", buffering=1, opener=_private_opener)


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def event_logger(room: str) -> EventLogger:
    """The logger of one room: ``event_logger("transport").info("link_up", peer=node_id)``."""
    return cast(EventLogger, structlog.get_logger(room=room))
