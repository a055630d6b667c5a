"""The roots of all errors: an error's class says whose fault it was.

Source of the idea: h11's split into local and remote protocol errors.
"""


class MercatError(Exception):
    """Root of every error that we raise on purpose."""


class LocalProtocolError(MercatError):
    """We were about to break a rule ourselves: a defect in this node or a misuse by its operator."""


class RemoteProtocolError(MercatError):
    """The peer broke a rule. Any bytes from a peer give a message or this error, never another one."""


class UserError(MercatError):
    """The person or program that asked us for something asked wrongly; asking again unchanged won't help."""


class MalformedMessage(RemoteProtocolError):
    """Bytes that are no message: wrong type, wrong length, unknown field, or a second spelling."""


class SignatureInvalid(RemoteProtocolError):
    """A signature that does not hold over the bytes received."""


class AmountOutOfRange(MercatError):
    """A sum of money left 0…2^63−1."""

    def __init__(self, amount: int) -> None:
        super().__init__(f"amount out of range: {amount}")
        self.amount = amount
