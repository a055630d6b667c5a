"""Faults on purpose, each a class with one idea.

Law: ``strike`` does one thing to the world and plans its end; every choice comes from the world's dice. It returns
False, and has done nothing, where the fault is impossible now. What a fault breaks ``World.heal`` makes whole again.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from node.simulation.power import Moment

if TYPE_CHECKING:
    from node.simulation.world import World


class Fault(ABC):
    """One kind of misfortune."""

    name: str

    @abstractmethod
    def strike(self, world: "World") -> bool:
        """Let it happen now, if it can."""


# The network


class Drop(Fault):
    """Frames are lost for a while."""

    name = "drop"

    def strike(self, world: "World") -> bool:
        world.network.weather.drop_share = world.dice.choice((0.05, 0.15, 0.4))
        world.later((500, 5000), lambda: setattr(world.network.weather, "drop_share", 0.0))
        return True


class Duplicate(Fault):
    """Frames arrive twice for a while."""

    name = "duplicate"

    def strike(self, world: "World") -> bool:
        world.network.weather.double_share = 0.2
        world.later((500, 5000), lambda: setattr(world.network.weather, "double_share", 0.0))
        return True


class Reorder(Fault):
    """Some frames come up to a second late, behind later ones."""

    name = "reorder"

    def strike(self, world: "World") -> bool:
        world.network.weather.straggle_share = 0.15
        world.later((500, 5000), lambda: setattr(world.network.weather, "straggle_share", 0.0))
        return True


class Delay(Fault):
    """All frames take longer for a while."""

    name = "delay"

    def strike(self, world: "World") -> bool:
        world.network.weather.delay_max_ms = world.dice.choice((120, 300, 700))
        world.later((500, 5000), lambda: setattr(world.network.weather, "delay_max_ms", 20))
        return True


class Partition(Fault):
    """The network falls into two parts."""

    name = "partition"

    def strike(self, world: "World") -> bool:
        world.network.parts = {node.id: world.dice.randint(0, 1) for node in world.nodes}
        world.later((500, 5000), world.join)
        return True


class OneWay(Fault):
    """One node is heard by some of the others no more, or hears them no more; the other way stays open."""

    name = "one-way partition"

    def strike(self, world: "World") -> bool:
        dice = world.dice
        victim, deaf = dice.choice(world.nodes).id, dice.random() < 0.5
        others = [node.id for node in world.nodes if node.id != victim and dice.random() < 0.7]
        pairs = [(other, victim) if deaf else (victim, other) for other in others]
        world.network.one_way.update(dict.fromkeys(pairs))

        def end() -> None:
            for pair in pairs:
                world.network.one_way.pop(pair, None)

        world.later((500, 5000), end)
        return bool(pairs)


# Processes


class Pause(Fault):
    """A process stands still for a while; frames wait for it."""

    name = "pause"

    def strike(self, world: "World") -> bool:
        node = world.dice.choice(world.nodes)
        node.paused_until = world.timeline.now_ms + world.dice.randint(100, 4000)
        return node.up


class Crash(Fault):
    """A process is killed between two steps."""

    name = "crash"

    def strike(self, world: "World") -> bool:
        node = world.dice.choice(world.nodes)
        was_up = node.up
        world.crash(node)
        world.restart_later(node)
        return was_up


class CrashAll(Fault):
    """The power fails everywhere."""

    name = "crash of all"

    def strike(self, world: "World") -> bool:
        for node in world.nodes:
            world.crash(node)
            world.restart_later(node)
        return True


class Restart(Fault):
    """Whoever is down comes back at once."""

    name = "restart"

    def strike(self, world: "World") -> bool:
        any_down = any(not node.up for node in world.nodes)
        world.restart_all()
        return any_down


class CrashAtSync(Fault):
    """A process is killed at one of its next syncs. Counted, under the name of the moment, when it happens."""

    def __init__(self, moment: Moment) -> None:
        self.name = moment.value
        self._moment = moment

    def strike(self, world: "World") -> bool:
        node = world.dice.choice(world.nodes)
        if node.up:
            node.disk.power.arm(world.dice.randint(0, 6), self._moment)
            world.restart_later(node)
        return False


# Disks


class LoseDisk(Fault):
    """An authority starts again with an empty disk, its sign guard gone too."""

    name = "lost disk"

    def strike(self, world: "World") -> bool:
        node = world.dice.choice(world.authority_nodes)
        if not world.lose_signatures(node):
            return False
        node.disk.close()
        node.disk = world.new_disk()
        world.restart_later(node)
        return True


class OldBackup(Fault):
    """An authority starts again from a backup of a few seconds ago, its sign guard as old as the rest."""

    name = "old backup"

    def strike(self, world: "World") -> bool:
        node = world.dice.choice(world.authority_nodes)
        if not world.trust.room:
            return False
        backup = node.disk.copy()

        def restore() -> None:
            if world.healed or not world.lose_signatures(node):
                return
            node.disk.close()
            node.disk = backup
            world.around.struck(self.name)
            world.restart_later(node)

        world.later((1000, 8000), restore)
        return False


class OldLedger(Fault):
    """An authority's ledger goes back to a backup while its sign guard stays as it is."""

    name = "old ledger backup"

    def strike(self, world: "World") -> bool:
        node = world.dice.choice(world.authority_nodes)
        if node.disk.says_observer:
            return False  # Its backup would make it an observer again: one more worthless authority.
        disk, backup = node.disk, node.disk.copy()

        def restore() -> None:
            if world.healed or node.disk is not disk:
                return
            world.crash(node)
            node.guard_is_ahead = True
            disk.take_ledger(backup)
            backup.close()
            world.around.struck(self.name)
            world.restart_later(node)

        world.later((1000, 8000), restore)
        return False


# Clocks


class ClockSkew(Fault):
    """A node's clock moves within what all clocks may be wrong by."""

    name = "clock skew"

    def strike(self, world: "World") -> bool:
        world.dice.choice(world.nodes).skew_ms = world.any_skew()
        return True


class ClockJump(Fault):
    """A node's clock is wrong by up to an hour for a while."""

    name = "clock jump"

    def strike(self, world: "World") -> bool:
        node = world.dice.choice(world.nodes)
        authority, before = node.authority, node.skew_ms
        if authority is not None and not world.trust.take(authority, self.name):
            return False
        node.skew_ms = world.dice.choice((-3_600_000, -60_000, -2_000, 2_000, 60_000, 3_600_000))

        def end() -> None:
            node.skew_ms = before
            if authority is not None:
                world.trust.give_back(authority)

        world.later((1000, 8000), end)
        return True
