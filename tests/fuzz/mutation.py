"""Small changes to good inputs, drawn from dice: flips, cuts, repeats, extreme numbers, pieces of other inputs."""

import random

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
