"""Holding an answer to a grammar, token by token.

Law: a token is allowed if its bytes lead on in the grammar, an end token if the text may end there, and a token without
bytes never: so whatever ends by an end token is a complete text of the grammar.
"""

import numpy

from node.worker.child.runtime import Refused
from node.worker.child.sampling import Mask
from node.worker.child.text_grammar import Grammar, State

NO_BYTES, ENDS = -1, -2  # behind the 256 bytes, counted from the end


class Vocabulary:
    """The bytes of every token, and which ones end an output."""

    def __init__(self, pieces: list[bytes], ends: list[int]) -> None:
        self.pieces = pieces
        self.ends = frozenset(ends)
        first = [piece[0] if piece else NO_BYTES for piece in pieces]
        for token in ends:
            first[token] = ENDS
        self._first = numpy.array(first, dtype=numpy.int16)

    def beginning_with(self, symbols: list[int], ending: bool) -> Mask:
        """Tokens that begin with one of these bytes, and the end tokens if those are wanted."""
        wanted = numpy.zeros(256 + 2, dtype=numpy.bool_)
        wanted[symbols] = True
        wanted[ENDS] = ending
        return wanted[self._first]


class Guide:
    """One answer on its way through a grammar."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, prefix: bytes) -> None:
        """`prefix`: what of the answer is there already. Raises Refused, GrammarTooLarge."""
        state = grammar.walk(grammar.start, prefix)
        if state is None:
            raise Refused("the output that is there already is not the beginning of an answer of this schema")
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._state: State = state

    def allows(self, token: int) -> bool:
        """Whether this token may come next. Raises GrammarTooLarge."""
        if token in self._vocabulary.ends:
            return self._grammar.complete(self._state)
        piece = self._vocabulary.pieces[token]
        return bool(piece) and self._grammar.walk(self._state, piece) is not None

    def possible(self) -> Mask:
        """Tokens whose first byte leads on, and end tokens where the text may end."""
        return self._vocabulary.beginning_with(
            self._grammar.next_bytes(self._state), self._grammar.complete(self._state)
        )

    def take(self, token: int) -> None:
        """The allowed token that was chosen. Raises GrammarTooLarge."""
        if token in self._vocabulary.ends:
            return
        state = self._grammar.walk(self._state, self._vocabulary.pieces[token])
        assert state is not None
        self._state = state
