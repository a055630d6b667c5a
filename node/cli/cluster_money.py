"""Where all credits of a development cluster are: one line for each account, and a sum that never changes."""

from pathlib import Path

import msgspec

from node.cli.client import NodeClient
from node.cli.cluster_layout import ClusterRecord
from node.cli.output import table
from protocol.primitives.units import format_credits


class Holding(msgspec.Struct, frozen=True):
    """What one account has, in base units."""

    name: str
    account: str
    balance: int
    bond: int
    in_channels: int


class Balances(msgspec.Struct, frozen=True):
    """All holdings at one height; ``total`` equals ``by_genesis`` or something is very wrong."""

    height: int
    holdings: tuple[Holding, ...]
    fee_pool: int
    total: int
    by_genesis: int


def read_balances(record: ClusterRecord) -> Balances:
    """Ask the buyer's node, which follows the ledger like every other."""
    client = NodeClient(Path(record.buyer.control))
    holdings = []
    for node in record.nodes:
        view = client.account(node.account)
        bond = view.bond + view.bond_unlocking
        holdings.append(Holding(node.name, node.account, view.balance, bond, view.in_channels))
    supply = client.supply()
    return Balances(client.ledger().height, tuple(holdings), supply.fee_pool, supply.total, supply.genesis_total)


def balances_table(balances: Balances) -> str:
    """For people, in credits."""
    rows = [
        (
            holding.name,
            format_credits(holding.balance),
            format_credits(holding.in_channels),
            format_credits(holding.bond),
        )
        for holding in balances.holdings
    ]
    rows.append(("fee pool", format_credits(balances.fee_pool), "", ""))
    lines = table(("ACCOUNT OF", "BALANCE", "IN CHANNELS", "BOND"), rows)
    verdict = "as by genesis" if balances.total == balances.by_genesis else "NOT as by genesis"
    total = f"{format_credits(balances.total)} credits, {verdict} ({format_credits(balances.by_genesis)})"
    return f"{lines}\nsum of all, at height {balances.height}: {total}"
