"""Named sets of faults: what a user asks for with ``--profile``."""

from typing import NamedTuple

from node.simulation import adversaries
from node.simulation.adversaries import Adversary
from node.simulation.faults import (
    ClockJump,
    ClockSkew,
    Crash,
    CrashAll,
    CrashAtSync,
    Delay,
    Drop,
    Duplicate,
    Fault,
    LoseDisk,
    OldBackup,
    OldLedger,
    OneWay,
    Partition,
    Pause,
    Reorder,
    Restart,
)
from node.simulation.power import Moment


class Profile(NamedTuple):
    """What may go wrong in a seed."""

    faults: tuple[Fault, ...]
    liars: tuple[type[Adversary], ...] = ()
    """What one to f authorities may be from the start on."""
    lying_followers: tuple[type[Adversary], ...] = ()
    twins: bool = False
    """An authority may run twice instead, with two disks, each speaking to some of the others."""
    liar_share: float = 1.0
    """This share of seeds has liars or twins; in the others disks and clocks may fail."""
    spares: int = 0
    """Nodes that may become authorities by vote; with some, operators change who decides while faults strike."""


_NETWORK = (Drop(), Duplicate(), Reorder(), Delay(), Partition(), OneWay())
_AT_SYNC = tuple(CrashAtSync(moment) for moment in Moment)
_CRASHES = (Crash(), *_AT_SYNC, CrashAll(), Pause(), Restart(), Restart())
_DISKS = (LoseDisk(), OldBackup(), OldLedger())
_CLOCKS = (ClockSkew(), ClockJump())

PROFILES = {
    "none": Profile(()),
    "network": Profile(_NETWORK),
    "crashes": Profile(_CRASHES),
    "disks": Profile((*_DISKS, *_DISKS, *_CRASHES, Partition(), Drop())),
    "clocks": Profile((*_CLOCKS, *_CLOCKS, Partition(), Crash(), Pause())),
    "byzantine": Profile(
        (Drop(), Delay(), Partition(), Pause(), Crash()), adversaries.AUTHORITIES, adversaries.FOLLOWERS, twins=True
    ),
    "changes": Profile((*_NETWORK, Pause(), Crash(), *_AT_SYNC, Restart(), LoseDisk()), spares=2),
    "all": Profile(
        (*_NETWORK, *_CRASHES, *_DISKS, *_CLOCKS),
        adversaries.AUTHORITIES,
        adversaries.FOLLOWERS,
        twins=True,
        liar_share=0.5,
    ),
}
"""By the name that ``--profile`` takes."""
