"""What a buyer does every day: run, quote, pay, look up, verify."""

import base64
import json
from pathlib import Path

import pytest

from tests.e2e.network import CHUNK_UNITS, Ended, Network, price_of, run_command

PYTHON_FILE = Path(__file__)


def test_chat_writes_text_alone_to_output_and_facts_to_error(network: Network) -> None:
    ended = network.mercat("run", "smollm2-135m", "What is the capital of France?", "--max-tokens", "24")
    assert "Paris" in ended.out
    assert "mc1" not in ended.out
    assert "units in" in ended.err
    assert "paid" in ended.err
    assert "Paris" not in ended.err


def test_same_prompt_and_seed_give_the_same_text_from_standard_input(network: Network) -> None:
    prompt = "Name three colours."
    arguments = ("run", "smollm2-135m", "--max-tokens", "16", "--seed", "7", "--temperature", "0.8")
    assert network.mercat(*arguments, prompt).out == network.mercat(*arguments, stdin=prompt.encode()).out


def test_json_holds_output_and_every_fact(network: Network) -> None:
    result = network.json("run", "smollm2-135m", "Say hello.", "--max-tokens", "8")
    facts = result["facts"]
    assert result["output"]
    assert (
        facts["amount"]
        == price_of(facts["input_units"], facts["output_units"])
        == facts["paid"]
        <= facts["price_ceiling"]
    )
    assert 0 < facts["output_units"] <= 8
    view = network.json("job", "show", facts["job"][:12])
    assert (view["job"], view["state"], view["amount"]) == (facts["job"], "done", facts["amount"])
    assert view["timeline"][0][1] == "choosing"


def test_magika_labels_a_python_file(network: Network) -> None:
    ended = network.mercat("run", "magika", "--file", str(PYTHON_FILE))
    assert json.loads(ended.out)["label"] == "python"


def test_echo_returns_bytes_that_are_not_text(network: Network) -> None:
    content = bytes(range(256))
    result = json.loads(network.mercat("run", "echo", "-", "--json", stdin=content).out)
    assert result["output"] is None
    assert base64.b64decode(result["output_base64"]) == content


def test_receipt_verifies_without_any_node_and_no_changed_byte_passes(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    network.mercat("run", "echo", "a receipt", "--receipt", str(path), "--settle")

    def verify(checked: Path, expect: int) -> Ended:
        return run_command(
            "verify", str(checked), "--genesis", str(network.genesis), "--settled", "--json",
            home=network.home, variables={"MERCAT_CONTROL": str(tmp_path / "nobody.sock")}, expect=expect,
        )  # fmt: skip

    report = verify(path, expect=0).json
    assert report["holds"]
    assert report["settlement"] == "settled"
    content = json.loads(path.read_text())
    changes = {
        "output": ("output_commitment", b"A receipt".hex()),
        "input": ("input_commitment", None),
        "receipt": (None, None),
        "voucher": (None, None),
        "acceptance": (None, None),
    }
    for name, (failing, value) in changes.items():
        changed = tmp_path / f"{name}.json"
        changed.write_text(json.dumps({**content, name: value or _flipped(content[name])}))
        refused = verify(changed, expect=1).json
        assert not refused["holds"]
        assert refused["failed"] == failing or failing is None
        assert refused["failed"]


def _flipped(text: str) -> str:
    """Hex with one bit of its last byte changed."""
    content = bytearray.fromhex(text)
    content[-1] ^= 1
    return content.hex()


def test_unknown_model_ends_with_5_and_names_what_there_is(network: Network) -> None:
    ended = network.mercat("run", "nosuch", "hi", expect=5)
    assert "nosuch" in ended.err
    assert "magika" in ended.err
    assert ended.out == ""


def test_ceiling_below_every_offer_ends_with_5_and_says_why_for_each(network: Network) -> None:
    ended = network.mercat("run", "smollm2-135m", "hi", "--max-price", "0.000001", expect=5)
    assert ended.err.count("mc1") == 2
    rows = network.json("quote", "smollm2-135m", "--max-price", "0.000001")["rows"]
    assert [row["would_take"] for row in rows] == [False, False]
    assert all("ceiling" in row["reason"] for row in rows)
    assert [row["would_take"] for row in network.json("quote", "smollm2-135m")["rows"]] == [True, True]
    dry = network.mercat("run", "smollm2-135m", "hi", "--dry-run")
    assert dry.out.count("yes") == 2


def test_prompt_over_the_context_is_the_users_fault_and_tried_once(network: Network) -> None:
    jobs_before = network.jobs("buyer-1").keys()
    ended = network.mercat("run", "smollm2-135m", "-", stdin=b"word " * 6_000, expect=3)
    assert "too long" in ended.err
    assert "retry" not in ended.err
    (job,) = network.jobs("buyer-1").keys() - jobs_before
    view = network.jobs("buyer-1")[job]
    assert (view.state, view.amount, view.output_units) == ("failed", 0, 0)


@pytest.mark.parametrize("arguments", [("job", "show", "abcdef123456"), ("ledger", "block", "99999")])
def test_unknown_things_end_with_1(network: Network, arguments: tuple[str, ...]) -> None:
    assert network.mercat(*arguments, expect=1).err.startswith("mercat: ")


def test_two_sides_tell_the_same_story_of_a_job(network: Network) -> None:
    facts = network.json("run", "smollm2-135m", "Count to ten.", "--max-tokens", str(CHUNK_UNITS + 8))["facts"]
    seller = network.name_of(facts["provider"])
    bought, sold = network.jobs("buyer-1")[facts["job"]], network.jobs(seller)[facts["job"]]
    assert (bought.side, sold.side) == ("buyer", "seller")
    for name in ("state", "model", "input_units", "output_units", "amount"):
        assert getattr(bought, name) == getattr(sold, name)
    receipt = network.mercat("job", "receipt", facts["job"], "--settle")
    assert json.loads(receipt.out)["receipt"]
    assert network.jobs("buyer-1")[facts["job"]].settled_height


def test_tables_for_people_show_what_there_is(network: Network) -> None:
    assert network.mercat("models").out.count("\n") == 4
    offers = network.json("offers")
    assert len(offers) == 6
    assert {offer["isolation"] for offer in offers} == {"strong"}
    assert {offer["bond"] for offer in offers} == {50_000_000}
    status = network.json("status")
    assert len(status["peers"]) >= 3
    assert status["roles"] == ["buyer"]
    for arguments in (("job", "list"), ("channel", "list"), ("ledger", "block"), ("wallet", "balance"), ("offers",)):
        assert network.mercat(*arguments).out.strip()
    supply = network.json("ledger", "supply")
    assert supply["total"] == supply["genesis_total"] + supply["issued_by_vote"] - supply["redeemed_by_vote"]
