"""Tokens per second through the market beside the same runtime called directly.

Same model, same settings, one stream, the same prompts, and the same text or the run fails. The market's side pays for
the buyer's and the provider's node, the sandbox and a voucher for each chunk.
"""

import time

import msgspec

from node.config.descriptions import description_path
from node.config.settings import BuyerConfig
from node.runtime.control import RunRequest
from node.worker.models import ModelStore, load_description
from node.worker.packages import add_from_package
from scripts.benchmarks.control import Control
from scripts.benchmarks.direct_model import Answer, Ask
from scripts.benchmarks.measure import PAIRS, Report, note, run_loop
from scripts.benchmarks.network import MODEL_STORE, Network, development_network
from scripts.benchmarks.processes import ProcessorMeter
from scripts.benchmarks.python_process import Spoken, python_process

MODEL = "smollm2-135m"
TOKENS = 64
_TOPICS = (
    "lighthouses", "bread", "railways", "glaciers", "bees", "clocks", "rivers", "maps", "bridges", "tea", "owls",
    "printing", "salt", "kites", "harbours", "volcanoes",
)  # fmt: skip


def _prompt(number: int) -> bytes:
    """Prompts differ, so that neither side gains from one that it has just read."""
    return msgspec.msgpack.encode([["user", f"Tell me the long history of {_TOPICS[number % len(_TOPICS)]}."]])


async def _through_market(control: Control, payload: bytes, tokens: int) -> Answer:
    started = time.perf_counter()
    events = await control.run(RunRequest(MODEL, "chat", payload, output_units_max=tokens))
    seconds = time.perf_counter() - started
    text = b"".join(event.payload for _, event in events)
    units = events[-1][1].facts["output_units"]
    assert isinstance(units, int)
    return Answer(seconds, units, text)


async def _directly(model: Spoken, payload: bytes, tokens: int) -> Answer:
    ask = Ask(payload, tokens, BuyerConfig().chunk_units)
    model.say(msgspec.json.encode(ask).decode())
    return msgspec.json.decode(await model.heard(), type=Answer)


async def _measure(network: Network, model: Spoken, model_id: str, report: Report, quick: bool) -> None:
    tokens = 8 if quick else TOKENS
    market: list[float] = []
    direct: list[float] = []
    model.say(model_id)
    assert await model.heard() == "ready"
    nodes = [record.name for record in network.record.nodes]
    async with Control(network.control("buyer-1")) as control:
        note(f"{PAIRS} pairs of {tokens} tokens")
        meter = ProcessorMeter({name: network.pid(name) for name in nodes})
        for number in range(-1, 2 if quick else PAIRS):
            payload = _prompt(number)
            if number % 2:
                one = await _through_market(control, payload, tokens)
                other = await _directly(model, payload, tokens)
            else:
                other = await _directly(model, payload, tokens)
                one = await _through_market(control, payload, tokens)
            assert (one.text, one.tokens) == (other.text, other.tokens), "the two sides did not do the same work"
            if number >= 0:  # the first opens the channel and warms both sides up
                market.append(one.tokens / one.seconds)
                direct.append(other.tokens / other.seconds)
    used = sum(map(meter.seconds, nodes)) / (tokens * (len(market) + 1))
    report.add("market.llm.nodes_processor_ms_per_token", used * 1000, "ms")
    report.add("market.llm.tokens_per_second/streams=1", sorted(market)[len(market) // 2], "tokens/s")
    report.baseline("runtime.llm.tokens_per_second/streams=1", sorted(direct)[len(direct) // 2], "tokens/s")
    report.ratio("market.llm_to_runtime_llm", market, direct)


async def _model_id() -> str:
    return await add_from_package(ModelStore(MODEL_STORE), load_description(description_path(MODEL)))


def measure(quick: bool) -> Report:
    """Tokens per second on both sides, prompt included."""
    report = Report.start(f"{MODEL}, {TOKENS} tokens, one stream, through the market and directly")
    model_id = run_loop(_model_id())
    with (
        python_process("scripts.benchmarks.direct_model") as model,
        development_network(authorities=1 if quick else 4, models=(MODEL,)) as network,
    ):
        run_loop(_measure(network, model, model_id, report, quick))
    report.target("market.llm_to_runtime_llm", ">=", 0.9)
    return report
