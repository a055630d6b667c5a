"""Out-of-band recovery: what operators agree on when more than a third of the authorities are gone for good.

Law: a recovery names one decided block and the set that decides from the next height on. It changes nothing by itself:
every operator hands it to his own node, and a node that was not given it goes on to name the old set. Views up to
``attempt`` · 1,000,000 are void at the first height after it: the old set may have voted there, and what its members
signed for it must not be counted for the new one. Sign guards stay as they are.
"""

from typing import Annotated

from msgspec import Meta

from protocol.messages.genesis import Membership
from protocol.primitives.codec import Message
from protocol.primitives.units import BlockHashField, HeightField, View

VIEWS_VOID = 1_000_000
"""More views than a halted height can have gone through: a year at thirty seconds each."""


class Recovery(Message, frozen=True):
    """Signed by at least one member of the set that it replaces; its envelope binds it to the network."""

    height: HeightField
    """Height of the last decided block."""
    block_hash: BlockHashField
    membership: Membership
    """Decides from ``height`` + 1 on."""
    attempt: Annotated[int, Meta(ge=1, le=4_000)] = 1
    """Grows when a recovery at this height has to be replaced by another one."""

    @property
    def view_base(self) -> View:
        """The last void view of the first height after it."""
        return View(self.attempt * VIEWS_VOID)
