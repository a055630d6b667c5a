"""What people put to vote, as they and their programs write it: addresses as text, amounts in base units.

Law: this module imports nothing heavy, because the command line reads it at every start.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.primitives.units import AMOUNT_MAX

Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    pass


class AuthorityBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An authority's record, as its operator sends it."""

    name: str
    authority: str
    account: str
    node: str


class AuthoritiesBody(_Body, frozen=True, tag="authorities"):
    """Remove keys, add others, or replace some by others."""

    remove: tuple[str, ...] = ()
    add: tuple[AuthorityBody, ...] = ()


class ParametersBody(_Body, frozen=True, tag="parameters"):
    """Set parameters."""

    values: dict[str, Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]]


class VersionBody(_Body, frozen=True, tag="version"):
    """Follow another version of the rules from a height on."""

    version: int
    height: int


class IssuanceBody(_Body, frozen=True, tag="issuance"):
    """Make credits."""

    recipient: str
    amount: Amount
    reason: str


class RedemptionBody(_Body, frozen=True, tag="redemption"):
    """Burn credits of this node's account."""

    amount: Amount
    reason: str


SubjectBody = AuthoritiesBody | ParametersBody | VersionBody | IssuanceBody | RedemptionBody
