"""Control groups of version 2, on a tree of files like the kernel's: this machine may have another version."""

import os
from pathlib import Path

import pytest

from node.worker.limits import WorkerLimits
from node.worker.sandbox import cgroup

LIMITS = WorkerLimits(processes=7, cpu_percent=50)
OWN = "0::/system.slice/mercat.service\n"
CONTROLLERS = "cpuset cpu io memory pids\n"


def make_group(directory: Path, *, passed_on: str = "", processes: str = "") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(CONTROLLERS)
    (directory / "cgroup.subtree_control").write_text(passed_on)
    (directory / "cgroup.procs").write_text(processes)
    return directory


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder gets the files that the kernel would show in it."""
    make = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        make(self, mode, parents, exist_ok)
        if self.name.startswith(cgroup.PREFIX):
            for name in ("cgroup.procs", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"):
                (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)


def written(group: cgroup.ControlGroup, name: str) -> str:
    return (group.directories[0] / name).read_text()


@pytest.mark.usefixtures("kernel")
def test_a_delegated_group_limits_memory_processes_and_time(tmp_path: Path) -> None:
    make_group(tmp_path / "system.slice" / "mercat.service", passed_on="cpu memory pids\n")
    made = cgroup.create("x", 1000, LIMITS, tmp_path, OWN)
    assert made.limited == ["memory", "processes", "processor time"]
    assert written(made, "memory.max") == "1000"
    assert written(made, "memory.swap.max") == "0"
    assert written(made, "memory.oom.group") == "1"
    assert written(made, "pids.max") == "7"
    assert written(made, "cpu.max") == "50000 100000"


@pytest.mark.usefixtures("kernel")
def test_a_node_alone_in_its_group_moves_into_a_leaf_and_passes_controllers_on(tmp_path: Path) -> None:
    own = make_group(tmp_path / "system.slice" / "mercat.service", processes=f"{os.getpid()}\n")
    made = cgroup.create("x", 1000, LIMITS, tmp_path, OWN)
    assert (own / cgroup.LEAF / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert made.directories[0].parent == own


@pytest.mark.usefixtures("kernel")
def test_a_node_in_its_leaf_makes_groups_beside_itself(tmp_path: Path) -> None:
    own = make_group(tmp_path / "a.service", passed_on="memory pids")
    make_group(own / cgroup.LEAF, processes=f"{os.getpid()}\n")
    made = cgroup.create("x", 1000, LIMITS, tmp_path, f"0::/a.service/{cgroup.LEAF}\n")
    assert made.directories[0].parent == own


def test_a_group_shared_with_others_is_left_alone_and_the_lack_is_told(tmp_path: Path) -> None:
    own = make_group(tmp_path / "session.scope", processes=f"{os.getpid()}\n1\n")
    made = cgroup.create("x", 1000, LIMITS, tmp_path, "0::/session.scope\n")
    assert made.directories == []
    assert "per process, not per group" in made.describe()
    assert not (own / cgroup.LEAF).exists()


def test_a_group_into_which_this_user_may_move_nobody_is_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a login session: the group above is somebody else's, though a folder might be made in it."""
    own = make_group(tmp_path / "a.slice" / "session.scope", passed_on="memory pids")
    make_group(own.parent, passed_on="memory pids")
    assert cgroup.delegated(own) == own
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "cgroup.procs")
    assert cgroup.delegated(own) is None


def test_no_control_groups_at_all_are_no_error(tmp_path: Path) -> None:
    made = cgroup.create("x", 1000, LIMITS, tmp_path, "")
    assert made.join_files() == []
    assert not made.out_of_memory()
    assert made.memory_peak_bytes() == 0
    made.kill()
    made.remove()
