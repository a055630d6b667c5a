"""Small changes to good inputs, drawn from dice: flips, cuts, repeats, extreme numbers, pieces of other inputs.

Law: a change of structure keeps the encoding whole, so that it reaches what stands behind the decoder, whose checks are
written in C and give coverage no hint.
"""

import random

import msgpack

EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc0", b"\xcf" + b"\xff" * 8, b"\xdd\xff\xff\xff\xff", b"9" * 20)


def mutated(original: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """One to four changes."""
    content = bytearray(original)
    for _ in range(dice.randint(1, 4)):
        place = dice.randint(0, len(content))
        end = min(len(content), place + dice.randint(1, 8))
        match dice.randint(0, 5):
            case 0 if content:
                content[place % len(content)] ^= 1 << dice.randint(0, 7)
            case 1:
                del content[place:end]
            case 2:
                content[place:place] = content[place:end] * dice.choice((1, 2, 16))
            case 3:
                content[place:end] = dice.choice(EXTREMES)
            case 4:
                other = dice.choice(others)
                start = dice.randint(0, len(other))
                content[place:end] = other[start : start + dice.randint(1, 64)]
            case _:
                content[place:end] = dice.randbytes(end - place)
    return bytes(content)


Tree = None | bool | int | float | str | bytes | list["Tree"] | dict["Tree", "Tree"]
LEAVES: tuple[Tree, ...] = (None, True, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, "", "x" * 300, b"", bytes(32), [])
_PREFIX = 1
"""Some targets read one byte that chooses a kind before the encoding begins."""


def restructured(content: bytes, dice: random.Random) -> bytes | None:
    """One value somewhere in a MessagePack tree replaced, dropped or repeated; None if the input is no such tree."""
    for start in (0, _PREFIX):
        tree = _parsed(content[start:])
        if isinstance(tree, list) and tree:
            return content[:start] + _packed(_changed(tree, dice))
    return None


def _parsed(content: bytes) -> Tree:
    try:
        tree: Tree = msgpack.unpackb(content, strict_map_key=True)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException, UnicodeDecodeError):
        return None
    return tree


def _packed(tree: Tree) -> bytes:
    try:
        packed: bytes = msgpack.packb(tree)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
        return b""
    return packed


def _changed(tree: Tree, dice: random.Random) -> Tree:
    if isinstance(tree, list) and tree and dice.random() < 0.85:
        place = dice.randrange(len(tree))
        match dice.randint(0, 9):
            case 0:
                return tree[:place] + tree[place + 1 :]
            case 1:
                return [*tree[:place], tree[place], *tree[place:]]
            case _:
                return [*tree[:place], _changed(tree[place], dice), *tree[place + 1 :]]
    if isinstance(tree, bytes) and dice.random() < 0.8:
        inner = _parsed(tree)  # envelopes hold payloads, frames hold envelopes
        if isinstance(inner, list) and inner:
            return _packed(_changed(inner, dice))
        return dice.choice((tree[:-1], tree + b"\x00", bytes(len(tree)), tree[:1] * len(tree)))
    if isinstance(tree, int) and not isinstance(tree, bool) and dice.random() < 0.7:
        return dice.choice((tree + 1, tree - 1, tree * 2, -tree, tree ^ 1))
    return dice.choice(LEAVES)
