"""Text around a language model: prompts out of chat turns, and output text out of tokens.

Law: a turn's content can't become a control token, because only the template's own markers are read as such. Output
is whole characters only, and text that may turn out to begin a stop string is held back until that is decided.
"""

import codecs
from collections.abc import Callable

from node.worker.child.frames import MalformedFrame, decode
from node.worker.child.runtime import Refused

ROLES = ("system", "user", "assistant")
TURNS_MAX = 1024

Piece = tuple[str, bool]  # text, and whether it is a marker of the template
Template = Callable[[list[tuple[str, str]]], list[Piece]]


def plain_chatml(turns: list[tuple[str, str]]) -> list[Piece]:
    """`<|im_start|>role⏎content<|im_end|>⏎` for each turn, then the start of the answer; no system prompt is added."""
    pieces: list[Piece] = []
    for role, content in turns:
        pieces += [("<|im_start|>", True), (f"{role}\n", False), (content, False), ("<|im_end|>", True), ("\n", False)]
    return [*pieces, ("<|im_start|>", True), ("assistant\n", False)]


TEMPLATES: dict[str, Template] = {"plain-chatml": plain_chatml}


def parse_turns(payload: bytes) -> list[tuple[str, str]]:
    """Chat turns from a request. Raises Refused."""
    try:
        value = decode(payload)
    except MalformedFrame as error:
        raise Refused(f"the payload is not a list of chat turns: {error}") from None
    if not isinstance(value, list) or not 0 < len(value) <= TURNS_MAX:
        raise Refused(f"the payload must be a list of 1 to {TURNS_MAX} chat turns")
    turns = []
    for turn in value:
        if not isinstance(turn, list) or len(turn) != 2:
            raise Refused("a chat turn is a pair of role and content")
        role, content = turn
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise Refused("a chat turn is a role (" + ", ".join(ROLES) + ") and a text")
        turns.append((role, _encodable(content)))
    return turns


def parse_text(payload: bytes) -> str:
    """A raw prompt from a request. Raises Refused."""
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("the payload is not UTF-8 text") from None


def parse_prefix(prefix: bytes) -> str:
    """Output that is there already. Raises Refused."""
    try:
        return prefix.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("the output that is there already is not UTF-8 text") from None


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("a chat turn's content is not UTF-8 text") from None
    return text


class TextStream:
    """Turns tokens' bytes into releasable text."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, piece: bytes) -> tuple[str, bool]:
        """Text that may be released now, and whether a stop string was met (it and what follows are dropped)."""
        self._held += self._decoder.decode(piece)
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            text, self._held = self._held[: min(found)], ""
            return text, True
        keep = self._undecided()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text, False

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return text

    def _undecided(self) -> int:
        """Length of the longest end of the held text with which a stop string could begin."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
