"""``mercat provider``: the stake and the state of somebody who sells."""

import click

from node.cli.money import LEDGER_WAIT, show_transaction
from node.cli.options import CREDITS, Session, confirm, timeout_option, with_node, yes_option
from node.cli.output import credits_text, fields, table
from node.runtime.control import ProviderView
from protocol.primitives.units import Amount


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
    models = table(
        ("MODEL", "RUNTIME", "STATE", "LOADED IN", "ID"),
        [(model.name, model.runtime, model.state, f"{model.load_ms} ms", model.model) for model in view.models],
    )
    failed = [name for name, holds, _ in view.checks if not holds]
    if not with_checks and view.checks:
        held = f"{len(view.checks) - len(failed)} of {len(view.checks)} attacks on the sandbox were stopped"
        rest = f"; not: {', '.join(failed)}" if failed else " (--checks lists them)"
        return "\n\n".join([head, models, held + rest])
    checks = table(
        ("CHECK", "HOLDS", "DETAIL"), [(name, "yes" if holds else "NO", detail) for name, holds, detail in view.checks]
    )
    return "\n\n".join([head, models, checks] if view.checks else [head, models])


@click.group()
def provider() -> None:
    """Bond, unbond and state of a provider."""


@provider.command()
@click.option("--checks", is_flag=True, help="List every attack that the sandbox was tried with.")
@with_node
def status(session: Session, checks: bool) -> None:
    """Whether this node sells, what, and why not."""
    view = session.client.provider()
    session.output.show(view, provider_text(view, checks), (model.model for model in view.models))


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
