"""The one error of a checker."""


class Violation(Exception):
    """A rule of the protocol was broken."""
