"""One job of a language model: what it has read, what it has written, and what of that may be released.

Law: it computes at most a piece ahead of the credit that it has. A piece's payload is text, or JSON lines of the same
text token by token: `{"id", "text", "logprob", "top": [{"id", "text", "logprob"}]}`. The `text` of all lines together
is the output's text: a token that ends within a character, or where a stop string may have begun, adds nothing yet.
"""

import json
from collections import deque
from dataclasses import dataclass, field

from node.worker.child.runtime import Piece, Request
from node.worker.child.sampling import Likelihood
from node.worker.child.text import TextStream
from node.worker.child.text_guide import Guide

PIECES_AHEAD = 1
# A piece of token lines ends here: with one more line, of twenty texts of a kilobyte each, it is still a chunk.
LINES_BYTES_MAX = 96 << 10


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What is told of a chosen token: its likelihood, and the likeliest tokens with their bytes."""

    chosen: Likelihood
    top: tuple[tuple[Likelihood, bytes], ...]


@dataclass(slots=True)
class TextJob:
    """One sequence. `evaluated` counts tokens in the model's memory; `pending` is chosen but not evaluated yet."""

    number: int
    sequence: int
    request: Request
    prompt: list[int]
    output_max: int
    text: TextStream
    guide: Guide | None = None
    evaluated: int = 0
    pending: int | None = None
    produced: int = 0
    credit: int = 0
    finish: str | None = None
    payload: bytearray = field(default_factory=bytearray)
    tokens: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    ready: deque[Piece] = field(default_factory=deque)

    def reading(self) -> bool:
        """Whether some of its prompt is not evaluated yet."""
        return self.evaluated < len(self.prompt)

    def writing(self) -> bool:
        """Whether it has a token to evaluate and may: it stops a piece ahead of what was asked for."""
        return self.pending is not None and self.finish is None and len(self.ready) < PIECES_AHEAD

    def releasable(self) -> bool:
        """Whether a piece is there that was asked for."""
        return self.credit > 0 and bool(self.ready)

    def remembered(self) -> list[int]:
        """The tokens that the model's memory holds of this job's sequence."""
        return (self.prompt + self.written)[: self.evaluated]

    def accept(self, token: int, content: bytes, ends: bool, facts: TokenFacts | None = None) -> None:
        """Take the chosen token into the output."""
        self.produced += 1
        self.tokens.append(token)
        self.written.append(token)
        text = ""
        if ends:
            self.finish = "stop"
        else:
            text, stopped = self.text.push(content)
            if stopped:
                self.finish = "stop"
            elif self.produced >= self.output_max:
                self.finish = "length"
        if self.finish is not None:
            text += self.text.finish()
        self.pending = token if self.finish is None else None
        self.payload += text.encode() if facts is None else _line(token, text, facts)
        full = len(self.tokens) >= self.request.chunk_units or (facts and len(self.payload) >= LINES_BYTES_MAX)
        if full or self.finish is not None:
            self.ready.append(
                Piece(self.number, bytes(self.payload), len(self.tokens), tuple(self.tokens), self.finish)
            )
            self.payload.clear()
            self.tokens.clear()


def _line(token: int, text: str, facts: TokenFacts) -> bytes:
    """One token as JSON. An alternative's text may be a part of a character: it is shown as U+FFFD."""
    top = [
        {"id": each.token, "text": content.decode("utf-8", "replace"), "logprob": each.logprob}
        for each, content in facts.top
    ]
    line = {"id": token, "text": text, "logprob": facts.chosen.logprob, "top": top}
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
