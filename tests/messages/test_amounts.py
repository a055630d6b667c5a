"""Amounts: sums that can't overflow, text that people read and write, hashes and signatures."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.hashing import Domain, commitment, content_hash, digest
from protocol.primitives.signing import SignatureCheck, signature_holds
from protocol.primitives.units import (
    AMOUNT_MAX,
    CREDIT,
    PublicKey,
    Salt,
    Signature,
    checked_add,
    checked_subtract,
    checked_sum,
    format_credits,
    parse_credits,
)

AMOUNTS = st.integers(0, AMOUNT_MAX)
WIDE = st.integers(-(2**70), 2**70)


@given(amounts=st.lists(WIDE, max_size=6))
def test_sum_is_exact_or_out_of_range(amounts: list[int]) -> None:
    if all(0 <= amount <= AMOUNT_MAX for amount in amounts) and sum(amounts) <= AMOUNT_MAX:
        assert checked_sum(amounts) == sum(amounts)
    else:
        with pytest.raises(AmountOutOfRange):
            checked_sum(amounts)


@given(left=WIDE, right=WIDE)
def test_difference_is_exact_or_out_of_range(left: int, right: int) -> None:
    if 0 <= right <= AMOUNT_MAX and 0 <= left - right <= AMOUNT_MAX:
        assert checked_subtract(left, right) == left - right
    else:
        with pytest.raises(AmountOutOfRange):
            checked_subtract(left, right)


def test_sum_at_the_cap_holds_and_one_above_does_not() -> None:
    assert checked_add(AMOUNT_MAX, 0) == AMOUNT_MAX
    with pytest.raises(AmountOutOfRange) as caught:
        checked_add(AMOUNT_MAX, 1)
    assert caught.value.amount == 2**63


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00"),
        (1, "0.000001"),
        (10, "0.00001"),
        (10_000, "0.01"),
        (500_000, "0.50"),
        (CREDIT, "1.00"),
        (1_234_567, "1.234567"),
        (1_230_000, "1.23"),
        (-1_500_000, "-1.50"),
        (AMOUNT_MAX, "9223372036854.775807"),
    ],
)
def test_credits_are_written_for_people(amount: int, text: str) -> None:
    assert format_credits(amount) == text


@given(amount=AMOUNTS)
def test_credits_round_trip(amount: int) -> None:
    assert parse_credits(format_credits(amount)) == amount


@pytest.mark.parametrize(
    ("text", "amount"), [("0.5", 500_000), ("1", CREDIT), ("1.", CREDIT), (".5", 500_000), (" 2 ", 2 * CREDIT)]
)
def test_credits_may_be_written_short(text: str, amount: int) -> None:
    assert parse_credits(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-1",
        "+1",
        "1e6",
        "1,5",
        "1.2345678",
        "1.2.3",
        "0x10",
        "١",
        "1 000",
        "nan",
        "9223372036854.775808",
        "1_0",
    ],
)
def test_text_that_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        parse_credits(text)


@given(text=st.text(max_size=30))
def test_any_text_is_an_amount_in_range_or_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_credits(text) <= AMOUNT_MAX


def test_domains_end_in_zero_and_none_begins_another() -> None:
    values = [domain.value for domain in Domain]
    assert all(value.endswith(b"\0") and value.count(b"\0") == 1 for value in values)
    assert len({*values}) == len(values)


def test_same_bytes_hash_differently_for_each_purpose() -> None:
    assert len({digest(domain, b"x") for domain in Domain}) == len(Domain)


def test_commitment_depends_on_salt_and_content() -> None:
    salts = [Salt(bytes((number,)) * 32) for number in range(2)]
    made = [commitment(Domain.INPUT_COMMITMENT, salt, content) for salt in salts for content in (b"a", b"b")]
    assert len({*made}) == 4


def test_content_hash_is_the_published_blake3() -> None:
    assert content_hash(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
        "b00d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_signatures_of_rfc_8032_hold_and_changed_ones_do_not(key: str, message: str, signature: str) -> None:
    parts = bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature)
    assert signature_holds(*parts)
    assert SignatureCheck(PublicKey(parts[0]), parts[1], Signature(parts[2])).holds()
    assert not signature_holds(parts[0], parts[1] + b"x", parts[2])
    assert not signature_holds(parts[0], parts[1], bytes((parts[2][0] ^ 1,)) + parts[2][1:])
    assert not signature_holds(b"\0" * 32, parts[1], parts[2])


@pytest.mark.parametrize(("key", "signature"), [(b"", b""), (b"k" * 31, b"s" * 64), (b"k" * 32, b"s" * 63)])
def test_keys_and_signatures_of_wrong_length_do_not_hold(key: bytes, signature: bytes) -> None:
    assert not signature_holds(key, b"message", signature)


def test_identity_key_signs_nothing() -> None:
    identity = b"\1" + b"\0" * 31
    assert not signature_holds(identity, b"message", identity + b"\0" * 32)
