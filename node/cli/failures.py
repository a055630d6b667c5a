"""How a command ends: the exit codes that scripts rely on, and the error that carries one."""

from enum import IntEnum

from protocol.primitives.errors import MercatError


class ExitCode(IntEnum):
    """Documented in ``mercat --help``; a code never changes its meaning."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    JOB_FAILED = 3
    KEYS_OR_FUNDS = 4
    UNREACHABLE = 5
    TIMEOUT = 124
    INTERRUPTED = 130


EXIT_CODES_TEXT = """\b
Exit codes:
  0    done
  1    failed
  2    usage: the command, a setting or an address is wrong
  3    the job failed
  4    keys or funds: wrong passphrase, missing key, not enough money
  5    no provider, or the node is unreachable
  124  timeout
  130  interrupted"""


class CommandFailed(MercatError):
    """Ends the command with a message on standard error and an exit code."""

    def __init__(self, message: str, exit_code: int = ExitCode.FAILED, code: str = "failed") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code
