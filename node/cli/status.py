"""``mercat status``: the node at a glance."""

import click

from node.cli.jobs import time_text
from node.cli.options import Session, with_node
from node.cli.output import fields, short, table
from node.runtime.control import StatusView


def status_text(view: StatusView) -> str:
    """A node for people."""
    selling = "yes" if view.selling else f"no, {view.not_selling_because}" if view.not_selling_because else "no"
    pairs = [
        ("network", f"{view.network}{' (development)' if view.development else ''}"),
        ("genesis", view.genesis_hash),
        ("version", view.version),
        ("roles", ", ".join(view.roles) or "follower"),
        ("node", view.node),
        ("account", view.account),
        *([("authority", view.authority)] if view.authority else []),
        ("listens on", view.listen),
        ("height", f"{view.height}  {view.block_hash}"),
        ("block time", time_text(view.block_timestamp_ms)),
        ("live offers", str(view.live_offers)),
        *([("isolation", view.isolation)] if view.isolation else []),
        *([("selling", selling)] if "provider" in view.roles else []),
        ("up for", f"{view.uptime_ms // 1000} s"),
        ("peers", str(len(view.peers))),
    ]
    peers = [
        (short(peer.node, 16), peer.address, peer.direction, "yes" if peer.authority else "") for peer in view.peers
    ]
    listing = "\n\n" + table(("PEER", "ADDRESS", "LINK", "AUTHORITY"), peers) if peers else ""
    return fields(pairs) + listing


@click.command()
@with_node
def status(session: Session) -> None:
    """The node at a glance: network, keys, height, peers."""
    view = session.client.status()
    session.output.show(view, status_text(view), (view.node,))
