"""The base of every answer that a node gives to the programs of its own user."""

import msgspec


class View(msgspec.Struct, frozen=True, omit_defaults=False):
    """Base of every answer."""
