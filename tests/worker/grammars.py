"""Walking grammars for tests: along a text, and along dice."""

import random

from node.worker.child.text_grammar import Grammar, State

LONG = 2_000


def fitting(grammar: Grammar, text: str | bytes) -> bool:
    """Whether a text is complete in a grammar."""
    state: State | None = grammar.start
    for symbol in text.encode() if isinstance(text, str) else text:
        grammar.work = 0
        state = grammar.step(state, symbol) if state is not None else None
    return state is not None and grammar.complete(state)


def walked(grammar: Grammar, dice: random.Random, closing: bytes = b'"]}') -> bytes:
    """A text that the dice chose byte by byte; whatever may come next leads on, and sooner or later to an end."""
    state, text = grammar.start, bytearray()
    while not grammar.complete(state) or (dice.random() < 0.8 and grammar.next_bytes(state) and len(text) < LONG):
        symbols = grammar.next_bytes(state)
        ends = [symbol for symbol in symbols if symbol in closing]
        symbol = dice.choice(ends) if ends and (dice.random() < 0.3 or len(text) > LONG) else dice.choice(symbols)
        text.append(symbol)
        grammar.work = 0
        there = grammar.step(state, symbol)
        assert there is not None, "a byte that may come next leads on"
        state = there
        assert len(text) < 10 * LONG
    return bytes(text)
