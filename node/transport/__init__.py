"""Links to other nodes: listener and dialer, TLS pinned to node ids, greeting, queues, peer exchange, peer cache.

Law: nothing that arrives on a link is believed before the peer's TLS key has been compared with its node id; nothing
a peer does makes this room hold more than its caps, raise an error of its own, or keep a task alive.
"""
