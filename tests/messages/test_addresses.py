"""Addresses: round trips, every single typing error, the published vectors of the checksum."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.primitives.addresses import (
    _ALPHABET,
    _CHECKSUM_CONSTANT,
    AddressInvalid,
    AddressKind,
    _expanded,
    _polymod,
    begins_with,
    format_address,
    parse_address,
)

KEYS = st.binary(min_size=32, max_size=32)
KINDS = st.sampled_from(AddressKind)
EXAMPLE = format_address(AddressKind.NODE, bytes(range(32)))


@given(kind=KINDS, key=KEYS)
def test_address_round_trips_in_both_cases(kind: AddressKind, key: bytes) -> None:
    text = format_address(kind, key)
    assert parse_address(kind, text) == parse_address(kind, text.upper()) == key
    assert text.startswith(kind.value + "1")


@given(key=KEYS, kind=KINDS, other=KINDS)
def test_address_of_another_kind_is_refused(key: bytes, kind: AddressKind, other: AddressKind) -> None:
    if kind is not other:
        with pytest.raises(AddressInvalid):
            parse_address(other, format_address(kind, key))


@pytest.mark.parametrize("position", range(len(EXAMPLE)))
def test_every_single_typing_error_is_found(position: int) -> None:
    for letter in _ALPHABET + "1bio":
        if letter != EXAMPLE[position]:
            with pytest.raises(AddressInvalid):
                parse_address(AddressKind.NODE, EXAMPLE[:position] + letter + EXAMPLE[position + 1 :])


@settings(max_examples=300)
@given(key=KEYS, errors=st.dictionaries(st.integers(7, 64), st.sampled_from(_ALPHABET), min_size=1, max_size=4))
def test_up_to_four_wrong_letters_are_found(key: bytes, errors: dict[int, str]) -> None:
    text = format_address(AddressKind.NODE, key)
    letters = list(text)
    for position, letter in errors.items():
        letters[position] = letter
    wrong = "".join(letters)
    if wrong != text:
        with pytest.raises(AddressInvalid):
            parse_address(AddressKind.NODE, wrong)


@pytest.mark.parametrize("position", range(7, len(EXAMPLE) - 1))
def test_swapped_neighbours_are_found(position: int) -> None:
    wrong = EXAMPLE[:position] + EXAMPLE[position + 1] + EXAMPLE[position] + EXAMPLE[position + 2 :]
    if wrong != EXAMPLE:
        with pytest.raises(AddressInvalid):
            parse_address(AddressKind.NODE, wrong)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "mc", "mc1", "mcnode1", EXAMPLE[:-1], EXAMPLE + "q", " " + EXAMPLE),
        EXAMPLE[:20].upper() + EXAMPLE[20:],
        format_address(AddressKind.NODE, bytes(32))[:-6],
        "mcnode1" + "q" * 58,
        "ｍcnode1" + EXAMPLE[7:],
    ],
)
def test_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressInvalid):
        parse_address(AddressKind.NODE, text)


@given(text=st.text(max_size=80))
def test_any_text_is_an_address_or_an_error_for_the_user(text: str) -> None:
    with contextlib.suppress(AddressInvalid):
        parse_address(AddressKind.ACCOUNT, text)


def checksum_holds(text: str) -> bool:
    """The checksum alone, for strings with prefixes that are not ours."""
    prefix, _, rest = text.lower().rpartition("1")
    return _polymod(_expanded(prefix) + [_ALPHABET.index(letter) for letter in rest]) == _CHECKSUM_CONSTANT


@pytest.mark.parametrize(
    "text",
    [
        "A1LQFN3A",
        "a1lqfn3a",
        "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
        "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
        "11" + "l" * 82 + "ludsr8",
        "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
        "?1v759aa",
    ],
)
def test_valid_vectors_of_bip_350_hold(text: str) -> None:
    assert checksum_holds(text)


@pytest.mark.parametrize("text", ["A12UEL5L", "a12uel5l", "M1VUXWEZ", "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw"])
def test_checksums_of_the_older_form_and_of_upper_case_prefixes_do_not_hold(text: str) -> None:
    assert not checksum_holds(text)


def test_addresses_of_each_kind_are_pinned() -> None:
    assert {kind.name: format_address(kind, bytes(32)) for kind in AddressKind} == PINNED


PINNED = {
    "ACCOUNT": "mc1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq87qupr",
    "NODE": "mcnode1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqlmyery",
    "AUTHORITY": "mcauth1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqlpa9ss",
    "MODEL": "mcmodel1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqu50fvf",
    "CHANNEL": "mcchan1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqypcp9h",
    "JOB": "mcjob1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqcc3gu6",
}


@given(st.binary(min_size=32, max_size=32), st.integers(0, 52))
def test_a_key_is_found_by_the_beginning_of_its_address_and_another_is_not(key: bytes, length: int) -> None:
    letters = format_address(AddressKind.NODE, key).removeprefix("mcnode1")
    assert begins_with(letters[:length])(key)
    assert begins_with(letters)(key)
    other = bytes((key[0] ^ 0x80,)) + key[1:]
    assert begins_with(letters[:length])(other) == (length == 0)
    with pytest.raises(AddressInvalid):
        begins_with("b" + letters)
