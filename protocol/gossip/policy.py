"""Gossip's numbers: one node's own choice, not part of the protocol. Durations in ms, rates per second."""

import msgspec


class Rate(msgspec.Struct, frozen=True):
    """A token bucket's law: ``burst`` at once, ``per_second`` in the long run."""

    per_second: int
    burst: int


class GossipPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How this node gossips."""

    degree_target: int = 6
    degree_min: int = 4
    degree_max: int = 10
    """Mesh links: below the least we graft, above the most we prune, both back to the target."""
    heartbeat_ms: int = 1_000
    lazy_peers: int = 3
    """Peers outside the mesh that are told of recent ids at each heartbeat."""
    recent_epochs: int = 4
    """For so many heartbeats an id counts as recent."""
    backlog_ids_per_heartbeat: int = 1_024
    """Live ids told to a new link at once, and then at each heartbeat until it knows all."""
    reconcile_ids_per_heartbeat: int = 256
    """Live ids told again to one peer at each heartbeat, in rotation: what repairs lost announcements."""
    pull_timeout_ms: int = 1_000
    """A peer that announced a body has so long to send it, then the next announcer is asked."""
    extensions_max: int = 4
    """A peer that is sending other bodies meanwhile is slow, not silent: its deadline moves so many times."""
    defer_ms: int = 100
    """A pull waits so long when every announcer's allowance is used up."""
    in_flight_max: int = 256
    """Bodies asked of one peer and not yet received."""
    judging_timeout_ms: int = 30_000
    """A body handed to the judge and never judged is forgotten after so long."""
    lifetime_ms_default: int = 60_000
    """For objects whose expiry nobody named."""
    retry_ms: int = 5_000
    retries_max: int = 3
    """How often, and after how long, an object ignored for lack of standing is asked for again."""
    prune_backoff_ms: int = 10_000
    """After a Prune, neither side grafts the other for so long."""

    ids_in: Rate = Rate(2_000, 40_000)
    """Announced ids looked at, for each peer; a new link may announce all its live objects."""
    bodies_in: Rate = Rate(1_000, 4_000)
    """Bodies pulled from each peer: each costs a signature check of 0.1 ms."""
    ignored_body_charge: int = 9
    """What an ignored body costs of that allowance beyond itself: who brings only such is asked for a tenth."""
    bytes_in: Rate = Rate(4 * 1024 * 1024, 16 * 1024 * 1024)
    bodies_out: Rate = Rate(2_000, 8_000)
    bytes_out: Rate = Rate(4 * 1024 * 1024, 16 * 1024 * 1024)
    """Pulls served, for each peer."""

    useless: Rate = Rate(2, 400)
    """Valid messages that cost a signature check and were of no use: stale offers, bids that nobody can pay, statements
    of no job of ours. Beyond this each costs points. An honest peer's are few: what it passes on it has accepted."""
    useful_refund: int = 4
    """Useless messages that one useful message makes up for: a peer that mostly helps is never cut off."""
    chatter: Rate = Rate(250, 20_000)
    """Messages that were dropped unchecked: of closed heights, unasked for, answered often enough already."""
    chatter_authority: Rate = Rate(1_000, 30_000)
    """A slow authority's words come late by nature: four a height, at a hundred heights a second."""
    old_ids_in: Rate = Rate(512, 65_536)
    """Announced ids that have long been known here: every live object on a new link, and again when a partition heals.
    """
    old_epochs: int = 60
    """An id known for so many heartbeats is old."""

    score_max: int = 100
    first_delivery_points: int = 1
    reject_cost: int = 40
    failed_pull_cost: int = 1
    """As much as a delivery earns: who loses messages stays, who serves nothing goes."""
    undelivered_points_per_heartbeat: int = 10
    """A slow link owes many bodies at once, and brings them all a little later: its score must not fall faster than
    they come."""
    in_flight_cut: int = 8
    """For each point that missing bodies have cost, so many bodies fewer are asked of a peer at a time."""
    in_flight_min: int = 16
    delivery_repair: int = 5
    """What any body that was asked for gives back of a score below zero: on a link that loses a third of everything
    more pulls fail than succeed."""
    silence_cost: int = 5
    """Once for a link on which nothing comes while bodies are owed: a partition, or a peer that stalls on purpose."""
    unasked_cost: int = 2
    useless_cost: int = 2
    rule_broken_cost: int = 5
    mute_below: int = -50
    """Announcements of peers below this score are not listened to."""
    ban_below: int = -75
    ban_ms: int = 60_000
    decay_shift: int = 6
    """At each heartbeat a score moves towards zero by a 64th, and by at least one point."""
