"""``mercat provider``: the stake and the state of somebody who sells."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.money import LEDGER_WAIT, show_transaction
from node.cli.options import CREDITS, Session, confirm, passphrase_options, timeout_option, with_node, yes_option
from node.cli.output import credits_text, fields, note, printable, short, table
from node.cli.provider_show import show
from node.cli.settings import config_file, config_options, flag_settings
from node.runtime.control import ProviderModelView, ProviderView
from protocol.primitives.units import Amount

if TYPE_CHECKING:
    from node.config.settings import NodeConfig, ProviderModel

MEBIBYTE = 1 << 20
REDRAW = "\033[H\033[2J"


def state_text(model: ProviderModelView, now_ms: int) -> str:
    """Whether a model is served, and if not, until when."""
    left = f" for {math.ceil((model.until_ms - now_ms) / 1000)} s" if model.until_ms > now_ms else ""
    return model.state.partition(":")[0] + left


def reasons_text(models: tuple[ProviderModelView, ...]) -> str:
    """For each model that is not served, why."""
    lines = []
    for model in models:
        reason = model.reason or model.state.partition(": ")[2]
        if model.state != "ready" and reason:
            lines.append(printable(f"{model.name}: {reason}"))
    return "\n".join(lines)


def models_text(models: tuple[ProviderModelView, ...], now_ms: int) -> str:
    """The models and their workers; memory and time as the kernel counted them."""
    headers = (
        "MODEL", "RUNTIME", "STATE", "JOBS", "QUEUE", "UNITS", "UNITS/S", "MEMORY", "CPU", "CRASHES", "LOADED IN", "ID",
    )  # fmt: skip
    rows = [
        (
            model.name,
            model.runtime,
            state_text(model, now_ms),
            str(model.jobs),
            str(model.waiting),
            str(model.units_out),
            f"{model.units_per_second:.1f}",
            f"{model.memory_bytes // MEBIBYTE} MiB",
            f"{model.cpu_ms / 1000:.1f} s",
            str(model.crashes),
            f"{model.load_ms} ms",
            short(model.model, 16),
        )
        for model in models
    ]
    return table(headers, rows)


def provider_text(view: ProviderView, with_checks: bool = False) -> str:
    """A provider for its operator."""
    because = f", because {view.not_selling_because}" if view.not_selling_because else ""
    head = fields(
        [
            ("selling", "yes" if view.selling else f"no{because}"),
            ("isolation", view.isolation),
            ("bond", f"{credits_text(view.bond)} (at least {credits_text(view.bond_min)})"),
            ("slots free", f"{view.slots_free} of {view.slots_total}"),
            ("jobs done", str(view.jobs_done)),
            ("earned", f"{credits_text(view.earned)}, of which not yet redeemed {credits_text(view.unredeemed)}"),
        ]
    )
    parts = [head, models_text(view.models, round(time.time() * 1000)), reasons_text(view.models)]
    failed = [name for name, holds, _ in view.checks if not holds]
    if with_checks:
        rows = [(name, "yes" if holds else "NO", detail) for name, holds, detail in view.checks]
        parts.append(table(("CHECK", "HOLDS", "DETAIL"), rows))
    elif view.checks:
        held = f"{len(view.checks) - len(failed)} of {len(view.checks)} checks of the sandbox passed"
        parts.append(held + (f"; not: {', '.join(failed)}" if failed else " (--checks lists them)"))
    return "\n\n".join(part for part in parts if part)


@click.group()
def provider() -> None:
    """Bond, unbond and state of a provider."""


provider.add_command(show)


@provider.command()
@click.option("--checks", is_flag=True, help="List every attack that the sandbox was tried with.")
@click.option("--watch", "-w", is_flag=True, help="Show it anew until Ctrl-C.")
@click.option("--every", type=click.FloatRange(min=0.1, max=3600), default=1.0, show_default=True, help="Seconds.")
@with_node
def status(session: Session, checks: bool, watch: bool, every: float) -> None:
    """Whether this node sells, what, and why not."""

    def show() -> None:
        view = session.client.provider()
        ids = (model.model for model in view.models)
        session.output.show(view, provider_text(view, checks), ids)

    if not watch:
        show()
        return
    redraw = sys.stdout.isatty() and not session.output.as_json and not session.output.quiet
    with contextlib.suppress(KeyboardInterrupt):
        for _ in ticks(every, time.monotonic, time.sleep):
            if redraw:
                sys.stdout.write(REDRAW)
            show()


def ticks(seconds: float, clock: Callable[[], float], wait: Callable[[float], None]) -> Iterator[int]:
    """0, 1, 2, … at the beginning of each interval; what took longer than one is followed at once."""
    started, count = clock(), 0
    while True:
        yield count
        count += 1
        wait(max(0.0, started + count * seconds - clock()))


@provider.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model to sell (repeatable): name of one in the store, name or path of a description, or any id: a model that "
    "is not in the store is pulled from peers.",
)
@click.option(
    "--upstream",
    default="",
    metavar="URL",
    help="Sell models of this OpenAI-compatible server (http://127.0.0.1:8000/v1); --model is its name for one.",
)
@click.option(
    "--server",
    type=click.Choice(["vllm", "llama-server", "ollama", "other"]),
    default="other",
    show_default=True,
    help="What the upstream server is.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of mode 0600 with the upstream server's key.",
)
@click.option("--slots", type=click.IntRange(1, 64), help="Jobs at the same time.")
@config_options
@passphrase_options
def run(
    models: tuple[str, ...],
    upstream: str,
    server: str,
    api_key_file: Path | None,
    slots: int | None,
    config: Path | None,
    listen: str | None,
    seeds: tuple[str, ...],
    settings: tuple[str, ...],
    passphrase_file: Path | None,
    passphrase_fd: int | None,
) -> None:
    """Run this user's node as a provider until SIGTERM or Ctrl-C; `mercat join` makes the node.

    Without --model it sells what its configuration names. Prices are those of the configuration, or the usual ones.
    With --upstream it sells models of a server that you run; their isolation is declared, never proved.
    """
    from node.cli.node import run_from_file

    if upstream:
        sold = upstream_models(upstream, models, server, api_key_file)
    elif api_key_file is not None or server != "other":
        raise click.UsageError("--server and --api-key-file go with --upstream")
    else:
        sold = ()

    path = config_file(config)
    flags = flag_settings(listen, seeds, settings)
    if slots is not None:
        flags["provider.slots"] = str(slots)
    note("selling once the sandbox is proved and the models are loaded; see: mercat provider status --watch")
    run_from_file(
        path, flags, passphrase_file, passphrase_fd,
        lambda loaded: as_provider(loaded, () if sold else models, sold),
    )  # fmt: skip


def upstream_models(
    url: str, models: tuple[str, ...], server: str, key_file: Path | None
) -> "tuple[ProviderModel, ...]":
    """Models of an upstream server, by its own names for them. Raises ``CommandFailed`` on what can't be used."""
    from node.cli.failures import CommandFailed, ExitCode
    from node.config.settings import ProviderModel
    from node.worker.errors import BadUpstream
    from node.worker.upstream import UpstreamAddress, check_address, read_key

    if not models:
        raise click.UsageError("name what the server has: mercat provider run --upstream URL --model NAME")
    key_path = key_file.absolute() if key_file is not None else None
    try:
        for model in models:
            check_address(UpstreamAddress(url, model, server, key_file=key_path))
        if key_path is not None:
            read_key(key_path)
    except BadUpstream as error:
        raise CommandFailed(error.reason, ExitCode.USAGE, "bad_upstream") from None
    return tuple(ProviderModel(upstream=url, model=name, server=server, api_key_file=key_path) for name in models)


def as_provider(
    config: "NodeConfig", models: tuple[str, ...], upstream: "tuple[ProviderModel, ...]" = ()
) -> "NodeConfig":
    """The same node as a provider of these models; of those that it sells anyway if none is named.

    Upstream models replace what the configuration names; one that it names already keeps its prices.
    """
    import msgspec

    from node.cli.failures import CommandFailed, ExitCode
    from node.config.settings import ProviderModel, Role

    sold = config.provider.models
    if upstream:
        priced = {(model.upstream, model.model): model for model in sold if model.upstream}
        sold = tuple(priced.get((model.upstream, model.model)) or model for model in upstream)
    if models:
        known = {model.description: model for model in sold}
        paths = [_reference(config, model) for model in models]
        sold = tuple(known.get(path) or ProviderModel(description=path) for path in paths)
    if not sold:
        raise CommandFailed("name what to sell: mercat provider run --model NAME", ExitCode.USAGE, "usage")
    roles = config.roles if Role.PROVIDER in config.roles else (*config.roles, Role.PROVIDER)
    provider = msgspec.structs.replace(config.provider, models=sold)
    return msgspec.structs.replace(config, roles=roles, provider=provider)


def _reference(config: "NodeConfig", model: str) -> str:
    """A model's id, which the node pulls if it lacks it, or the path of a description. Raises ``CommandFailed``."""
    from node.cli.failures import CommandFailed, ExitCode
    from node.config.descriptions import DescriptionMissing, model_reference
    from node.worker.errors import UnknownModel
    from node.worker.models import ModelStore
    from protocol.primitives.addresses import AddressInvalid, AddressKind, parse_address

    with contextlib.suppress(AddressInvalid):
        return parse_address(AddressKind.MODEL, model).hex()
    try:
        return model_reference(model)
    except DescriptionMissing as missing:
        if not config.model_store.is_dir():
            raise
        try:
            return ModelStore(config.model_store).named(model)
        except UnknownModel as unknown:
            raise CommandFailed(f"{missing}; {unknown.reason}", ExitCode.USAGE, "model_unknown") from None


@provider.command()
@click.argument("amount", type=CREDITS)
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def bond(session: Session, amount: Amount, yes: bool, timeout: float) -> None:
    """Put AMOUNT credits at stake; offers count only from a bonded provider."""
    confirm(f"Put {credits_text(amount)} at stake?", yes)
    show_transaction(session, session.client.bond(amount, round(timeout * 1000)))


@provider.command()
@click.argument("amount", type=CREDITS)
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def unbond(session: Session, amount: Amount, yes: bool, timeout: float) -> None:
    """Start to take AMOUNT credits of the stake back; they come after the network's unbonding time."""
    confirm(f"Take {credits_text(amount)} of the stake back?", yes)
    show_transaction(session, session.client.unbond(amount, round(timeout * 1000)))
