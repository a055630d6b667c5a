"""``mercat run``: one job, its output alone on standard output and the facts about it on standard error."""

import base64
import codecs
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.job_terms import JobTerms, with_terms
from node.cli.market import print_quote
from node.cli.options import CREDITS, Session, timeout_option, with_node
from node.cli.output import Output, Progress, credits_text, note, printable, short
from node.cli.replica_report import TOLD
from node.cli.replica_report import told as in_words
from node.runtime.control import ModelView, RunEvent, RunRequest
from protocol.primitives.limits import GRAMMAR_BYTES_MAX, JOB_INPUT_BYTES_MAX, LOGPROBS_MAX, SCHEMA_BYTES_MAX
from protocol.primitives.units import Amount

Fact = str | int | bool | None
AMOUNT_FACTS = frozenset({"amount", "due", "paid", "price", "price_ceiling", "debt", "deposit"})
"""Facts that are money, in base units."""
TEXT_RUNTIMES = ("gguf", "upstream")
"""What takes turns of a chat."""
ID_FACTS = frozenset({"job", "provider", "model", "receipt"})

CANCEL_SECONDS = 5.0
GRACE_SECONDS = 10.0
"""The node keeps the job's own deadline; only a node that hangs lets ours pass."""


class RunResult(msgspec.Struct, frozen=True):
    """What ``--json`` prints: the output as text if it is UTF-8, else in base64, and all facts of the job."""

    output: str | None
    output_base64: str | None
    facts: dict[str, Fact]
    receipt_file: str | None
    market: tuple[dict[str, Fact], ...] = ()
    """What was told of quotes and replicas, in order."""


class OutputWriter:
    """Passes output on as it comes: bytes as they are to a file or pipe, without control characters to a terminal."""

    def __init__(self, collect: bool, is_text: bool) -> None:
        self._collect = collect
        self._is_text = is_text
        self._terminal = sys.stdout.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._last = "\n"
        self.collected = bytearray()

    def write(self, payload: bytes) -> None:
        """One more piece."""
        if self._collect:
            self.collected += payload
        elif self._terminal:
            self._write_text(self._decoder.decode(payload))
        else:
            self._last = payload[-1:].decode("latin-1") or self._last
            sys.stdout.buffer.write(payload)
            sys.stdout.buffer.flush()

    def _write_text(self, text: str) -> None:
        if text:
            self._last = text[-1]
            sys.stdout.write(printable(text, keep="\n\t"))
            sys.stdout.flush()

    def end(self) -> None:
        """No more pieces. Text ends with a line's end, so that whatever comes next starts on a line of its own; other
        bytes go to a pipe or file as they are."""
        if self._collect:
            return
        if self._terminal:
            self._write_text(self._decoder.decode(b"", True))
        if self._last != "\n" and (self._terminal or self._is_text):
            sys.stdout.write("\n")
            sys.stdout.flush()


def fact_text(facts: dict[str, Fact]) -> str:
    """Facts on one line: ``provider mc1x6lczt4l5…  paid 0.0012 credits``. Ids are cut; ``--json`` has them whole."""
    parts = []
    for name, value in facts.items():
        if value in (None, "") or name in ("exit_code", "code", "channel", "request"):
            continue
        if name in AMOUNT_FACTS and isinstance(value, int):
            value = credits_text(value)
        elif name in ID_FACTS:
            value = short(str(value), 16)
        parts.append(f"{name.replace('_', ' ')} {value}")
    return printable("  ".join(parts))


def agreed_text(facts: dict[str, Fact]) -> str:
    """Who does it, and what it may cost."""
    return f"{short(str(facts.get('provider')), 16)} does it for at most {_amount_text(facts.get('price_ceiling'))}"


def finished_text(facts: dict[str, Fact]) -> str:
    """What was done and paid, and where the proof is."""
    job = short(str(facts.get("job")), 16).rstrip("…")
    units = f"{facts.get('input_units')} units in, {facts.get('output_units')} out"
    finish = f" ({facts['finish']})" if facts.get("finish") else ""
    amount, paid = facts.get("amount"), facts.get("paid")
    in_all = "" if paid in (None, amount) else f", {_amount_text(paid)} in all"
    did = f"{units}{finish}, paid {_amount_text(amount)}{in_all}"
    if facts.get("receipt") == "missing":
        return f"{did}; {facts.get('reason')}; once the provider is back: mercat job receipt {job}"
    return f"{did}; proof: mercat job receipt {job}"


def _amount_text(fact: Fact) -> str:
    return credits_text(fact) if isinstance(fact, int) else "an unknown amount"


def _limited(content: bytes, what: str) -> bytes:
    if len(content) > JOB_INPUT_BYTES_MAX:
        raise CommandFailed(f"{what} is larger than {JOB_INPUT_BYTES_MAX} bytes", ExitCode.USAGE, "usage")
    return content


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return _limited(file.read(JOB_INPUT_BYTES_MAX + 1), str(path))


def tensors_body(path: Path) -> bytes:
    """The tensors of a file: MessagePack as it is, or JSON ``{name: {dtype, shape, data: base64}}``."""
    content = _read(path)
    if not content.lstrip().startswith(b"{"):
        return content
    try:
        tensors = msgspec.json.decode(content)
        for tensor in tensors.values():
            tensor["data"] = base64.b64decode(tensor["data"], validate=True)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError):
        raise CommandFailed(
            f"{path} is not tensors: JSON of name → dtype, shape and base64 data, or MessagePack", ExitCode.USAGE
        ) from None
    return _limited(msgspec.msgpack.encode(tensors), str(path))


def _prompt(argument: str | None) -> bytes:
    if argument is not None and argument != "-":
        return argument.encode()
    if argument is None and sys.stdin.isatty():
        raise CommandFailed("no prompt: give it after the model, on standard input, or with --file", ExitCode.USAGE)
    return _limited(sys.stdin.buffer.read(JOB_INPUT_BYTES_MAX + 1), "the prompt")


def job_input(
    runtime: str, prompt: str | None, system: str | None, file: Path | None, tensors: Path | None
) -> tuple[str, bytes]:
    """Format and body of the input: what was given decides, then what the model's runtime takes."""
    if sum(given is not None for given in (prompt, file, tensors)) > 1:
        raise CommandFailed("give one of a prompt, --file and --tensors", ExitCode.USAGE, "usage")
    if tensors is not None:
        return "tensors", tensors_body(tensors)
    content = _read(file) if file is not None else _prompt(prompt)
    if runtime == "onnx":
        return "bytes", content
    try:
        text = content.decode()
    except UnicodeDecodeError:
        if runtime in TEXT_RUNTIMES:
            raise CommandFailed("a language model's prompt must be UTF-8 text", ExitCode.USAGE, "usage") from None
        return "bytes", content
    if runtime in TEXT_RUNTIMES:
        messages = [["system", system]] if system is not None else []
        return "chat", _limited(msgspec.msgpack.encode([*messages, ["user", text]]), "the prompt")
    return "text", content


def offered_model(models: tuple[ModelView, ...], wanted: str) -> ModelView:
    """The offered model of that name or id."""
    named = [model for model in models if wanted in (model.name, model.model)]
    if len(named) > 1:
        ids = ", ".join(model.model for model in named)
        raise CommandFailed(f"several models are called {wanted!r}; name one by its id: {ids}", ExitCode.USAGE)
    if not named:
        others = ", ".join(dict.fromkeys(printable(model.name) for model in models)) or "none"
        raise CommandFailed(f"nobody offers {wanted!r} now; offered are: {others}", ExitCode.UNREACHABLE, "no_provider")
    return named[0]


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="System message before the prompt.")
@click.option("--file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Input from a file.")
@click.option(
    "--tensors", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Input tensors (MessagePack, JSON)."
)
@click.option("--max-price", type=CREDITS, help="Ceiling on all that the job may cost, in credits.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Output units at most.")
@click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), default=0, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0, max=10), default=0.0, show_default=True)
@click.option("--stop", multiple=True, help="Stop before this text (repeatable).")
@click.option(
    "--schema",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Hold the answer to the JSON schema in this file.",
)
@click.option(
    "--grammar",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Hold the answer to the grammar in this file (GBNF, as for llama.cpp).",
)
@click.option("--logprobs", type=click.IntRange(0, LOGPROBS_MAX), help="JSON lines: each token, and so many others.")
@timeout_option(120, "Seconds for the whole job.")
@click.option("--receipt", type=click.Path(path_type=Path, dir_okay=False), help="Write the receipt file here.")
@click.option("--settle", is_flag=True, help="Wait until the ledger has the receipt.")
@click.option("--dry-run", is_flag=True, help="Only say who would take the job, and for how much.")
@with_node
@with_terms
def run(
    session: Session,
    terms: JobTerms,
    model: str,
    prompt: str | None,
    system: str | None,
    file: Path | None,
    tensors: Path | None,
    max_price: Amount | None,
    max_tokens: int,
    seed: int,
    temperature: float,
    stop: tuple[str, ...],
    schema: Path | None,
    grammar: Path | None,
    logprobs: int | None,
    timeout: float,
    receipt: Path | None,
    settle: bool,
    dry_run: bool,
) -> None:
    """Run MODEL on PROMPT (or standard input) on somebody's machine.

    The output alone goes to standard output; provider, work, price and receipt to standard error. Ctrl-C cancels the
    job and its further charges.

    With --schema or --grammar a language model can only write what fits; an answer that ends by itself (finish "stop")
    fits as a whole. What a provider can't hold an answer to is refused and named, never passed over.
    """
    if schema is not None and grammar is not None:
        raise CommandFailed("give one of --schema and --grammar", ExitCode.USAGE, "usage")
    offered = offered_model(session.client.models(), model)
    input_format, body = job_input(offered.runtime, prompt, system, file, tensors)
    request = RunRequest(
        model=offered.model,
        format=input_format,
        body=body,
        output_units_max=max_tokens,
        price_max=int(max_price or 0),
        seed=seed,
        temperature_milli=round(temperature * 1000),
        stop=stop,
        output="text" if logprobs is None else "tokens",
        schema=_text(schema, "a schema", SCHEMA_BYTES_MAX) if schema is not None else "",
        grammar=_text(grammar, "a grammar", GRAMMAR_BYTES_MAX) if grammar is not None else "",
        logprobs=logprobs or 0,
        timeout_ms=round(timeout * 1000),
    )
    request = terms.on(request)
    if dry_run:
        print_quote(session.output, session.client.quote(request))
        return
    writer = OutputWriter(collect=session.output.as_json, is_text=input_format in ("chat", "text"))
    told: list[RunEvent] = []
    facts = _stream(session, request, writer, timeout, told, early=terms.stream and terms.replicas > 1)
    missing = facts.get("receipt") == "missing"
    receipt_file = None if missing else _keep_receipts(session, facts, told, receipt, settle, timeout)
    if session.output.as_json:
        _print_result(session.output, bytes(writer.collected), facts, receipt_file, told)
    if missing and (receipt is not None or settle):
        raise CommandFailed(printable(str(facts.get("reason"))), ExitCode.JOB_FAILED, "receipt_missing")
    if facts.get("finish") == "failed":
        raise CommandFailed("the program ended with an error; see its output", ExitCode.JOB_FAILED, "program_failed")


def _text(path: Path, what: str, size_max: int) -> str:
    """A schema or grammar from a file. Raises ``CommandFailed``."""
    try:
        with path.open("rb") as file:
            return file.read(4 * size_max).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} can't be read as {what}: {error}", ExitCode.USAGE, "usage") from None


def _stream(
    session: Session, request: RunRequest, writer: OutputWriter, timeout: float, told: list[RunEvent], early: bool
) -> dict[str, Fact]:
    """Follow the job to its end; its facts. What is told of quotes and replicas is added to ``told``.

    With ``early`` the first replica's output is written as it comes. Raises ``CommandFailed`` unless it finished.
    """
    facts: dict[str, Fact] = {}
    progress = Progress(enabled=not session.output.quiet)
    began = time.monotonic()
    events = session.client.run(request, timeout + GRACE_SECONDS)
    try:
        with contextlib.closing(events):
            for event in _until(events, began + timeout + GRACE_SECONDS):
                progress.clear()
                if event.event in ("output", "replica_output"):
                    if (event.event == "replica_output") is early:
                        writer.write(event.payload)
                    continue
                if event.event in TOLD:
                    told.append(event)
                    session.output.note(in_words(event))
                    continue
                if event.event != "progress":
                    facts.update(event.facts)
                if event.event in ("finished", "failed", "cancelled"):
                    writer.end()
                    return _ended(session.output, event, facts, late=time.monotonic() - began >= timeout)
                _tell(session.output, progress, event)
    except KeyboardInterrupt:
        progress.clear()
        writer.end()
        _cancel(session, facts)
        raise CommandFailed("interrupted; the job is cancelled", ExitCode.INTERRUPTED, "interrupted") from None
    writer.end()
    raise CommandFailed("the node hung up before the job ended", ExitCode.UNREACHABLE, "node_unreachable")


def _until(events: Iterator[RunEvent], deadline: float) -> Iterator[RunEvent]:
    for event in events:
        yield event
        if time.monotonic() > deadline:
            raise CommandFailed("the job took longer than --timeout", ExitCode.TIMEOUT, "timeout")


def _tell(output: Output, progress: Progress, event: RunEvent) -> None:
    """``request`` and ``input`` are passing states; what cost or changed something is kept on the screen."""
    if event.event == "agreed":
        output.note(agreed_text(event.facts))
    elif event.event == "retry":
        output.note(f"retry: {fact_text(event.facts)}")
    elif not output.as_json:
        progress.update(f"{event.event} {fact_text(event.facts)}")


def _ended(output: Output, event: RunEvent, facts: dict[str, Fact], late: bool) -> dict[str, Fact]:
    """The facts of a job that finished. Raises ``CommandFailed`` for any other end; a late one is a timeout."""
    if event.event == "finished":
        output.note(finished_text(event.facts))
        return facts
    reason = printable(str(event.facts.get("reason") or event.event))
    paid = event.facts.get("paid")
    message = f"the job {event.event}: {reason}" if event.event == "failed" else "the job was cancelled"
    if isinstance(paid, int):
        message += f" (paid {credits_text(paid)})"
    given = event.facts.get("exit_code")
    exit_code = ExitCode.TIMEOUT if late else given if isinstance(given, int) and given else ExitCode.JOB_FAILED
    raise CommandFailed(message, exit_code, str(event.facts.get("code", "job")))


def _cancel(session: Session, facts: dict[str, Fact]) -> None:
    """Say to the node that the job is over and tell what it cost; hanging up alone would cancel it too."""
    job = facts.get("job") or facts.get("request")
    if not isinstance(job, str):
        return
    with contextlib.suppress(CommandFailed, KeyboardInterrupt):
        view = session.client.cancel(job, CANCEL_SECONDS)
        note(f"{view.state}: {view.output_units} output units, paid {credits_text(view.amount)}")


def _keep_receipts(
    session: Session, facts: dict[str, Fact], told: list[RunEvent], path: Path | None, settle: bool, timeout: float
) -> str | None:
    """The receipt of the job; of replicas, each under a name with its number."""
    finished = [event.facts for event in told if event.event == "replica_finished"]
    for replica in finished:
        numbered = path.with_name(f"{path.stem}-{replica['replica']}{path.suffix}") if path is not None else None
        _keep_receipt(session, str(replica["job"]), numbered, settle, timeout)
    if finished:
        return None if path is None else str(path.with_name(f"{path.stem}-N{path.suffix}"))
    return _keep_receipt(session, str(facts.get("job", "")), path, settle, timeout)


def _keep_receipt(session: Session, job: str, path: Path | None, settle: bool, timeout: float) -> str | None:
    if settle:
        height = session.client.settle(job, round(timeout * 1000)).height
        session.output.note(f"settled in block {height}")
    if path is None:
        return None
    path.write_bytes(session.client.receipt(job))
    session.output.note(f"receipt file {path}  (check it: mercat verify {path})")
    return str(path)


def _print_result(
    output: Output, content: bytes, facts: dict[str, Fact], receipt_file: str | None, told: list[RunEvent]
) -> None:
    try:
        text, encoded = content.decode(), None
    except UnicodeDecodeError:
        text, encoded = None, base64.b64encode(content).decode()
    market = tuple({"event": event.event, **event.facts} for event in told)
    output.show(RunResult(text, encoded, facts, receipt_file, market), "")
