"""Jobs that end in the middle: by Ctrl-C, by a dead provider, by a dead buyer. Who pays what, and who is free again."""

import os
import signal
import subprocess

import pytest

from node.runtime.control import JobView
from tests.e2e.network import (
    CHUNK_UNITS,
    LONG_JOB,
    OUTPUT_UNIT,
    WAIT_SECONDS,
    Network,
    descendants,
    is_alive,
    price_of,
    streaming,
    wait_until,
)

ONE_CHUNK = CHUNK_UNITS * OUTPUT_UNIT


def _running(network: Network) -> JobView:
    """The buyer's job that is being delivered now."""
    (view,) = [view for view in network.jobs("buyer-1").values() if view.state == "streaming"]
    return view


def _ended(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    _, err = process.communicate(timeout=3 * WAIT_SECONDS)  # a busy machine writes a story slowly
    return process.returncode, err.decode()


def test_ctrl_c_cancels_on_both_sides_and_charges_for_delivered_chunks_alone(network: Network) -> None:
    with streaming(network, *LONG_JOB) as process:
        job = _running(network).job
        seller = network.name_of(network.jobs("buyer-1")[job].counterparty)
        process.send_signal(signal.SIGINT)
        code, err = _ended(process)
    assert code == 130
    assert "cancel" in err
    bought = network.jobs("buyer-1")[job]
    assert bought.state == "cancelled"
    assert 0 < bought.output_units < 1_000
    assert bought.amount <= price_of(bought.input_units, bought.output_units)
    wait_until(lambda: network.jobs(seller)[job].state == "cancelled", "the seller knows of the end")
    sold = network.jobs(seller)[job]
    assert abs(sold.amount - bought.amount) <= ONE_CHUNK
    wait_until(lambda: network.slots_free(seller) == (2, 2), "the seller's slot is free again")
    assert network.mercat("run", "echo", "next").out.rstrip("\n") == "next"


MIDDLING_JOB = ("smollm2-135m", "Tell a long story about the sea.", "--max-tokens", "200")


def _attempts(network: Network, before: "dict[str, JobView]") -> tuple[JobView, JobView]:
    """The two agreements of the job that was started since: the one that failed, then the one that went on."""
    new = [view for job, view in network.jobs("buyer-1").items() if job not in before]
    (failed,) = (view for view in new if view.state == "failed")
    (done,) = (view for view in new if view.state == "done")
    return failed, done


def test_provider_killed_in_the_middle_is_paid_for_its_chunks_and_the_other_one_goes_on(network: Network) -> None:
    before = network.jobs("buyer-1")
    with streaming(network, *MIDDLING_JOB) as process:
        running = _running(network)
        seller = network.name_of(running.counterparty)
        workers = descendants(network.pid(seller))
        assert workers, "a provider with models has worker processes"
        network.kill(seller)
        code, err = _ended(process)
    assert code == 0, err
    assert "retry" in err
    wait_until(lambda: not any(is_alive(worker) for worker in workers), "the workers of a killed provider are gone")
    failed, done = _attempts(network, before)
    assert failed.job == running.job
    assert failed.reason
    assert 0 < running.output_units <= failed.output_units < 200
    assert failed.output_units + done.output_units <= 200
    assert failed.amount == price_of(failed.input_units, failed.output_units)
    assert done.amount == price_of(done.input_units, done.output_units)
    assert done.input_units > failed.input_units, "prompt and prefix are billed as the second one's input"
    assert network.name_of(done.counterparty) != seller
    network.up()
    sold = network.jobs(seller)[running.job]
    assert sold.state == "failed"
    assert sold.amount <= failed.amount <= sold.amount + ONE_CHUNK
    assert network.slots_free(seller) == (2, 2)
    assert network.is_conserved()


def test_buyer_killed_in_the_middle_finds_its_books_intact_and_deals_on_the_same_channel(network: Network) -> None:
    with streaming(network, *LONG_JOB) as process:
        running = _running(network)
        seller = network.name_of(running.counterparty)
        channels = network.channels()
        network.kill("buyer-1")
        code, err = _ended(process)
    assert code == 5, err
    network.up()
    wait_until(lambda: network.slots_free(seller) == (2, 2), "a buyer that was gone holds no slot", seconds=30)
    bought = network.jobs("buyer-1")[running.job]
    assert bought.state == "failed"
    assert bought.reason
    sold = network.jobs(seller)[running.job]
    assert sold.state == "cancelled", "the returned buyer told the seller"
    assert sold.amount <= bought.amount <= sold.amount + ONE_CHUNK
    after = network.channels()
    assert [view.channel for view in after] == [view.channel for view in channels]
    assert all(now.promised >= then.promised for now, then in zip(after, channels, strict=True))
    for _ in range(2):
        assert network.mercat("run", "echo", "after a crash").out.rstrip("\n") == "after a crash"
    assert [view.channel for view in network.channels()] == [view.channel for view in channels]
    assert network.is_conserved()


def test_time_limit_ends_with_124_and_pays_for_what_came(network: Network) -> None:
    jobs_before = network.jobs("buyer-1").keys()
    ended = network.mercat("run", *LONG_JOB, "--timeout", "2", expect=124)
    (job,) = network.jobs("buyer-1").keys() - jobs_before
    bought = network.jobs("buyer-1")[job]
    assert bought.state == "failed"
    assert len(ended.out) > 0
    assert bought.amount == price_of(bought.input_units, bought.output_units)
    seller = network.name_of(bought.counterparty)
    wait_until(lambda: network.slots_free(seller) == (2, 2), "the seller's slot is free again")


@pytest.mark.long
def test_provider_stopped_in_order_tells_the_buyer_and_leaves_no_worker(network: Network) -> None:
    before = network.jobs("buyer-1")
    with streaming(network, *MIDDLING_JOB[:-1], "600") as process:
        running = _running(network)
        seller = network.name_of(running.counterparty)
        workers = descendants(network.pid(seller))
        os.kill(network.pid(seller), signal.SIGTERM)
        code, err = _ended(process)
    assert code == 0, err
    assert "stopping" in err
    wait_until(lambda: not any(map(is_alive, workers)), "its workers are gone")
    wait_until(lambda: seller not in network.running(), "it stops within seconds")
    failed, done = _attempts(network, before)
    assert failed.amount == price_of(failed.input_units, failed.output_units)
    assert network.name_of(done.counterparty) != seller
    assert network.mercat("run", "echo", "elsewhere").out.rstrip("\n") == "elsewhere"
