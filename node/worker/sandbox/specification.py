"""What the node asks the launch stage to do.

Law: plain values that ``marshal`` carries, because the stage imports nothing that takes time.
"""

from typing import TypedDict


class Direct(TypedDict):
    """How to start the worker itself. ``targets`` say where under ``root`` each staged path is shown."""

    root: str
    targets: list[str]
    readable: list[str]
    landlock: bool
    filter: int


class Specification(TypedDict):
    """What the node asks for. An argument `{n}` stands for the place of path n in `staged`."""

    parent: int
    descriptors: list[int]
    uid: int | None
    staged: list[str]
    cgroup_files: list[str]
    limits: list[tuple[int, int]]
    arguments: list[str]
    environment: dict[str, str]
    direct: Direct | None
