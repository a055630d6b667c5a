"""What authorities can put to vote, and the range within which each number of the network may be set.

Law: one authority, one vote; balances never buy one. A subject names all that passing it would do, so that whoever
votes knows it. Every parameter has its bounds in the one table here, for the genesis and for votes alike.
"""

from typing import Annotated, NamedTuple, NewType

import msgspec
from msgspec import Meta

from protocol.messages.genesis import AuthorityRecord, Parameters
from protocol.primitives.codec import Message
from protocol.primitives.errors import UserError
from protocol.primitives.limits import AUTHORITIES_MAX, TEXT_BYTES_MAX
from protocol.primitives.units import (
    AMOUNT_MAX,
    CREDIT,
    AccountIdField,
    AmountField,
    AuthorityIdField,
    HeightField,
)

MotionNumber = NewType("MotionNumber", int)
"""Motions are numbered from 1 in the order in which they were opened."""
MotionNumberField = Annotated[MotionNumber, Meta(ge=1, le=2**48)]

PARAMETER_CHANGES_MAX = 32
"""Values in one motion: all that there are."""


class _Subject(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag_field="subject"):
    pass


class AuthorityChange(_Subject, frozen=True, tag=1):
    """Take keys out of the authority set, bring others in, or both at once, which replaces them."""

    remove: Annotated[tuple[AuthorityIdField, ...], Meta(max_length=AUTHORITIES_MAX)]
    add: Annotated[tuple[AuthorityRecord, ...], Meta(max_length=AUTHORITIES_MAX)]


class ParameterValue(Message, frozen=True):
    """A field of ``Parameters`` and what it shall be."""

    name: Annotated[str, Meta(max_length=64)]
    value: Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]


class ParameterChange(_Subject, frozen=True, tag=2):
    """Set parameters; all of them or none."""

    values: Annotated[tuple[ParameterValue, ...], Meta(min_length=1, max_length=PARAMETER_CHANGES_MAX)]


class VersionChange(_Subject, frozen=True, tag=3):
    """Blocks follow the rules of protocol ``version`` from ``height`` on."""

    version: Annotated[int, Meta(ge=1, le=2**16)]
    height: HeightField


class Issuance(_Subject, frozen=True, tag=4):
    """Make ``amount`` base units that did not exist, for ``recipient``; capped for each period."""

    recipient: AccountIdField
    amount: AmountField
    reason: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]


class Redemption(_Subject, frozen=True, tag=5):
    """Take ``amount`` base units of whoever opened the motion out of the world, against something outside of it."""

    amount: AmountField
    reason: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]


Subject = AuthorityChange | ParameterChange | VersionChange | Issuance | Redemption


class ParametersInvalid(UserError):
    """Parameters with which a network can't work, or a name that is none."""


class Bounds(NamedTuple):
    """The least value, the least in a development network, and the most. Durations in ms, amounts in base units."""

    least: int
    least_development: int
    most: int


_SECOND = 1_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_YEAR = 365 * _DAY
_FEE_MOST = CREDIT
_MOTION_FEE_MOST = 100 * CREDIT

PARAMETER_BOUNDS: dict[str, Bounds] = {
    "heartbeat_ms": Bounds(_SECOND, 1, _HOUR),
    "delta_ms": Bounds(50, 1, _MINUTE),
    "delta_cap_ms": Bounds(_SECOND, 1, _HOUR),
    "clock_precision_ms": Bounds(10, 0, _MINUTE),
    "challenge_ms": Bounds(_HOUR, 0, 30 * _DAY),
    "unbonding_ms": Bounds(_DAY, 0, _YEAR),
    "provider_bond_min": Bounds(0, 0, AMOUNT_MAX),
    "fee_min": Bounds(1, 0, _FEE_MOST),
    "redeem_fee_min": Bounds(0, 0, _FEE_MOST),
    "redeem_fee_share_ppm": Bounds(0, 0, 100_000),
    "epoch_blocks": Bounds(10, 1, 1_000_000),
    "evidence_blocks": Bounds(1_000, 1, 100_000_000),
    "evidence_ms": Bounds(_HOUR, 1, _YEAR),
    "motion_ms": Bounds(_HOUR, 1, 90 * _DAY),
    "motion_timelock_ms": Bounds(0, 0, 90 * _DAY),
    "motion_fee_min": Bounds(0, 0, _MOTION_FEE_MOST),
    "issuance_cap": Bounds(0, 0, AMOUNT_MAX),
    "issuance_period_ms": Bounds(_DAY, 1, _YEAR),
}
"""Every parameter. What costs somebody a claim has a long least time outside development: an hour to challenge a close,
a day to take a bond back, an hour to vote. No vote can make redeeming cost more than a tenth and two credits: one for
the transaction, one where a tenth is less; what somebody holds in vouchers was agreed on under lower fees."""


def check_parameters(parameters: Parameters, development: bool) -> None:
    """Raise ``ParametersInvalid`` unless every value is within its bounds and they fit each other."""
    for name, bounds in PARAMETER_BOUNDS.items():
        value = getattr(parameters, name)
        least = bounds.least_development if development else bounds.least
        if not least <= value <= bounds.most:
            raise ParametersInvalid(f"{name} must be {least} to {bounds.most}, not {value}")
    if parameters.delta_ms > parameters.delta_cap_ms:
        raise ParametersInvalid(f"delta_ms {parameters.delta_ms} exceeds delta_cap_ms {parameters.delta_cap_ms}")
    if not development and parameters.evidence_ms > parameters.unbonding_ms:
        raise ParametersInvalid(
            f"evidence_ms {parameters.evidence_ms} exceeds unbonding_ms {parameters.unbonding_ms}: "
            "a bond could leave before the proof against it has come"
        )


def with_values(parameters: Parameters, change: ParameterChange) -> Parameters:
    """The parameters after a change. Raises ``ParametersInvalid`` on an unknown or repeated name."""
    values: dict[str, int] = {}
    for entry in change.values:
        if entry.name not in PARAMETER_BOUNDS:
            raise ParametersInvalid(f"no parameter is named {entry.name!r}")
        if entry.name in values:
            raise ParametersInvalid(f"{entry.name} is set twice")
        values[entry.name] = entry.value
    return msgspec.structs.replace(parameters, **values)
