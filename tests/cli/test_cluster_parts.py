"""The parts of a development cluster that need no running node: layout, handles, lifelines."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.cli.cluster_layout import (
    ProcessRecord,
    Shape,
    create_cluster,
    existing_record,
    free_addresses,
    log_tail,
    read_record,
    record_path,
    remove_files,
)
from node.cli.cluster_processes import is_running, start_ticks, stop_processes
from node.cli.cluster_start import cluster_lock
from node.cli.failures import CommandFailed, ExitCode
from node.config.genesis_file import load_genesis
from node.config.loading import check_exposure, load_config
from node.keystore.files import open_keys
from protocol.primitives.units import CREDIT

OBEDIENT = "print('up', flush=True); input()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); input(); input()"
HANGING = """
import sys
from node.cli.lifeline import hold_lifeline
hold_lifeline(int(sys.argv[1]))
print('up', flush=True)
print(input(), flush=True)
"""


@contextmanager
def child(source: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Iterator["subprocess.Popen[str]"]:
    """A Python process that has said that it is up."""
    with subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def record_of(process: "subprocess.Popen[str]") -> ProcessRecord:
    ticks = start_ticks(process.pid)
    assert ticks is not None
    return ProcessRecord(process.pid, ticks)


class TestProcesses:
    def test_process_is_known_by_number_and_start_time(self) -> None:
        with child(OBEDIENT) as process:
            record = record_of(process)
            assert is_running(record)
            assert not is_running(ProcessRecord(record.pid, record.start_ticks + 1))
        assert not is_running(record)
        assert not is_running(None)

    def test_other_process_with_a_reused_number_is_never_signalled(self) -> None:
        with child(OBEDIENT) as process:
            record = record_of(process)
            assert stop_processes([ProcessRecord(record.pid, record.start_ticks + 1)], seconds=0.1) == 0
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.close()
            assert process.wait(10) == 0

    def test_stopping_waits_until_the_process_is_gone(self) -> None:
        with child(OBEDIENT) as process:
            record = record_of(process)
            assert stop_processes([record]) == 0
            assert not is_running(record)

    def test_process_that_does_not_stop_is_killed(self) -> None:
        with child(STUBBORN) as process:
            record = record_of(process)
            assert stop_processes([record], seconds=0.2) == 1
            assert not is_running(record)


class TestLifeline:
    def test_losing_it_ends_the_process(self) -> None:
        reading, writing = os.pipe()
        with child(HANGING, str(reading), pass_fds=(reading,)) as process:
            os.close(reading)
            os.close(writing)
            assert process.wait(10) == -15

    def test_released_process_lives_on(self) -> None:
        reading, writing = os.pipe()
        with child(HANGING, str(reading), pass_fds=(reading,)) as process:
            os.close(reading)
            os.write(writing, b"1")
            os.close(writing)
            assert process.communicate("alive\n", timeout=10)[0] == "alive\n"
            assert process.returncode == 0


class TestLayout:
    @pytest.fixture
    def folder(self, short_path: Path) -> Path:
        create_cluster(short_path / "c", Shape(4, 2), ("echo",), short_path / "models")
        return short_path / "c"

    def test_genesis_gives_each_role_its_money(self, folder: Path) -> None:
        genesis = load_genesis(folder / "genesis.json")
        assert genesis.development
        assert len(genesis.authorities) == 4
        amounts = sorted((entry.balance // CREDIT, entry.bond // CREDIT) for entry in genesis.allocations)
        assert amounts == [(10, 0)] * 4 + [(100, 50)] * 2 + [(1000, 0)]

    def test_every_node_can_load_its_settings_and_keys(self, folder: Path) -> None:
        genesis = load_genesis(folder / "genesis.json")
        for node in existing_record(folder).nodes:
            config = load_config(node.config).config
            check_exposure(config, genesis)
            assert str(config.control_socket) == node.control
            assert config.listen == node.address
            assert config.listen not in config.seeds
            keys = open_keys(config.keystore.directory, b"development", node.role == "authority")
            assert (keys.authority_id is not None) is (node.role == "authority")

    def test_keys_are_the_same_in_every_cluster(self, folder: Path, short_path: Path) -> None:
        other = create_cluster(short_path / "d", Shape(4, 2), ("echo",), short_path / "models")
        assert [node.node for node in other.nodes] == [node.node for node in existing_record(folder).nodes]

    def test_path_too_long_for_a_socket_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        long = tmp_path / ("x" * 80)
        with pytest.raises(CommandFailed, match="shorter --dir") as caught:
            create_cluster(long, Shape(1, 0), ("echo",), tmp_path)
        assert caught.value.exit_code == ExitCode.USAGE
        assert not long.exists()

    def test_damaged_record_is_an_error_not_a_new_cluster(self, folder: Path) -> None:
        record_path(folder).write_text("{")
        with pytest.raises(CommandFailed, match="damaged"):
            read_record(folder)

    def test_only_a_clusters_directory_is_deleted(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "precious").mkdir()
        with pytest.raises(CommandFailed):
            remove_files(tmp_path / "precious")
        assert (tmp_path / "precious").exists()
        remove_files(folder)
        assert not folder.exists()

    def test_one_command_at_a_time_changes_a_cluster(self, tmp_path: Path) -> None:
        with cluster_lock(tmp_path), pytest.raises(CommandFailed, match="another command"), cluster_lock(tmp_path):
            pass
        with cluster_lock(tmp_path):
            pass

    def test_free_addresses_differ(self) -> None:
        assert len(dict.fromkeys(free_addresses(20))) == 20

    def test_log_tail_of_a_missing_and_of_a_long_log(self, tmp_path: Path) -> None:
        assert log_tail(tmp_path / "none", 5) == []
        (tmp_path / "log").write_text("".join(f"{number}\n" for number in range(100)))
        assert log_tail(tmp_path / "log", 2) == ["98", "99"]
