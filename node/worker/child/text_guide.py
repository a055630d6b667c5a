"""Holding an answer to a grammar, token by token.

Law: a token is allowed if its bytes lead on in the grammar, an end token if the text may end there, and a token without
bytes never: so whatever ends by an end token is a complete text of the grammar. What is remembered is bounded and
changes no answer; the work for one token is bounded by the grammar's.
"""

from collections import OrderedDict

import numpy

from node.worker.child.runtime import Refused, Request
from node.worker.child.sampling import Mask
from node.worker.child.text_grammar import Grammar, GrammarTooLarge, State

SCHEMA_RULES, GRAMMAR_RULES = 2, 1
"""Versions of what schemas and grammars mean here: what an answer says depends on them, so receipts name them."""
NO_BYTES, ENDS = -1, -2  # behind the 256 bytes, counted from the end
MASKS_MAX = 64  # of one answer; each a byte for every token
PREFIX_STRIDE = 64  # bytes of a prefix that are walked as one token is
PREFIX_WORK_MAX = 1 << 20  # for all of it; nothing else is done meanwhile
Numbers = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.intp]]
Symbols = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint8]]


def grammar_for(request: Request) -> Grammar:
    """The grammar that an answer is to be held to, of a request that has one. Raises Refused.

    What reads schemas and grammars is imported by the first job that has one: it would delay every start.
    """
    if request.schema:
        from node.worker.child.text_schema import grammar_of

        return grammar_of(request.schema)
    from node.worker.child.text_gbnf import grammar_of_gbnf

    return grammar_of_gbnf(request.grammar)


class _Level:
    """All beginnings of tokens that have the same length: the beginning one byte shorter, and the last byte."""

    def __init__(self, shorter: Numbers, symbols: Symbols, tokens: Numbers, places: Numbers) -> None:
        self.shorter = shorter
        self.symbols = symbols
        self.tokens = tokens
        """Tokens that are such a beginning as a whole,"""
        self.places = places
        """and which one each of them is."""


class Vocabulary:
    """The bytes of every token, and which ones end an output."""

    def __init__(self, pieces: list[bytes], ends: list[int]) -> None:
        self.pieces = pieces
        self.ends = frozenset(ends)
        first = [piece[0] if piece else NO_BYTES for piece in pieces]
        for token in ends:
            first[token] = ENDS
        self._first = numpy.array(first, dtype=numpy.int16)
        self._levels: list[_Level] | None = None

    def beginning_with(self, symbols: list[int], ending: bool) -> Mask:
        """Tokens that begin with one of these bytes, and the end tokens if those are wanted."""
        wanted = numpy.zeros(256 + 2, dtype=numpy.bool_)
        wanted[symbols] = True
        wanted[ENDS] = ending
        return wanted[self._first]

    def levels(self) -> list[_Level]:
        """The tree of all beginnings of tokens, by length."""
        if self._levels is None:
            self._levels = self._grow()
        return self._levels

    def _grow(self) -> list[_Level]:
        levels: list[_Level] = []
        whole = [token for token in range(len(self.pieces)) if self.pieces[token] and token not in self.ends]
        # (token, which beginning of the level before it has)
        waiting = [(token, 0) for token in whole]
        length = 0
        while waiting:
            known: dict[tuple[int, int], int] = {}
            tokens, places, longer = [], [], []
            for token, shorter in waiting:
                piece = self.pieces[token]
                place = known.setdefault((shorter, piece[length]), len(known))
                if len(piece) == length + 1:
                    tokens.append(token)
                    places.append(place)
                else:
                    longer.append((token, place))
            levels.append(
                _Level(
                    numpy.array([shorter for shorter, _ in known], dtype=numpy.intp),
                    numpy.array([symbol for _, symbol in known], dtype=numpy.uint8),
                    numpy.array(tokens, dtype=numpy.intp),
                    numpy.array(places, dtype=numpy.intp),
                )
            )
            waiting, length = longer, length + 1
        return levels


class Guide:
    """One answer on its way through a grammar."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, prefix: bytes) -> None:
        """`prefix`: what of the answer is there already. Raises Refused, GrammarTooLarge."""
        state: State | None = grammar.start
        work = 0
        for begin in range(0, len(prefix), PREFIX_STRIDE):
            work += grammar.work
            if work > PREFIX_WORK_MAX:
                raise GrammarTooLarge
            grammar.work = 0
            state = grammar.walk(state, prefix[begin : begin + PREFIX_STRIDE]) if state is not None else None
        if state is None:
            raise Refused("the output that is there already is not the beginning of such an answer")
        grammar.work = 0
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._state: State = state
        self._masks: OrderedDict[State, Mask] = OrderedDict()

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

    def exact(self) -> Mask:
        """Exactly the tokens that may come next. Raises GrammarTooLarge."""
        mask = self._masks.pop(self._state, None)
        if mask is None:
            mask = self._judged()
        self._masks[self._state] = mask
        if len(self._masks) > MASKS_MAX:
            self._masks.popitem(last=False)
        return mask

    def _judged(self) -> Mask:
        """All tokens at once, along the tree of their beginnings: one step for each set of ways that differ."""
        grammar = self._grammar
        mask = self._vocabulary.beginning_with([], self._state.complete)
        states = [self._state]
        reached = numpy.zeros(1, dtype=numpy.intp)  # for each beginning the place of its state, -1: none
        for level in self._vocabulary.levels():
            before = reached[level.shorter]
            alive = numpy.flatnonzero(before >= 0)
            if not len(alive):
                break
            ways, way_of = numpy.unique(before[alive] * 256 + level.symbols[alive], return_inverse=True)
            following = [grammar.step(states[way >> 8], way & 255) for way in ways.tolist()]
            places: dict[State, int] = {}
            numbers = [-1 if state is None else places.setdefault(state, len(places)) for state in following]
            reached = numpy.full(len(before), -1, dtype=numpy.intp)
            reached[alive] = numpy.array(numbers, dtype=numpy.intp)[way_of]
            states = list(places)
            mask[level.tokens[reached[level.places] >= 0]] = True
        return mask

    def take(self, token: int) -> None:
        """The allowed token that was chosen. Raises GrammarTooLarge."""
        if token in self._vocabulary.ends:
            return
        state = self._grammar.walk(self._state, self._vocabulary.pieces[token])
        assert state is not None
        self._state = state
        self._grammar.work = 0
