"""Gossip routers, alone and as whole networks in one process."""
