"""Entry point of ``mercat``: the list of commands, loaded only when one is called, and how failures end.

Law: listing the commands imports none of them; ``mercat --help`` must feel instant.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence

import click

from node.cli.failures import EXIT_CODES_TEXT, CommandFailed, ExitCode

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Buy": {
        "run": ("node.cli.run:run", "Run a model on somebody's machine."),
        "batch": ("node.cli.batch:batch", "Run every line of a file, over many providers."),
        "quote": ("node.cli.market:quote", "Who would take a job, at what price, and why others would not."),
        "models": ("node.cli.market:models", "Models that are offered now."),
        "offers": ("node.cli.market:offers", "Every live offer."),
        "bids": ("node.cli.market:bids", "What other nodes' buyers wait for."),
        "job": ("node.cli.jobs:job", "Jobs of this node and their receipts."),
        "why": ("node.cli.why:why", "What happened to a job, who caused it, and what it cost."),
        "verify": ("node.cli.verify:verify", "Check a receipt or a proof offline."),
    },
    "Money": {
        "wallet": ("node.cli.money:wallet", "Balance, and sending credits."),
        "channel": ("node.cli.money:channel", "Payment channels."),
        "ledger": ("node.cli.ledger:ledger", "The ledger: tip, blocks, accounts, supply, proofs, archives."),
    },
    "Govern": {
        "authority": ("node.cli.authority:authority", "Who decides the ledger, and changing that by vote."),
        "params": ("node.cli.params:params", "Numbers and version that the network agrees on; votes on them."),
        "issuance": ("node.cli.motion:issuance", "Make credits by vote, and burn one's own."),
        "motion": ("node.cli.motion:motion", "What is put to vote, and what became of it."),
    },
    "Sell": {
        "provider": ("node.cli.provider:provider", "Bond, unbond and state of a provider."),
        "model": ("node.cli.model:model", "Model files on this machine."),
    },
    "Nodes": {
        "status": ("node.cli.status:status", "The node at a glance."),
        "node": ("node.cli.node:node", "Run a node."),
        "join": ("node.cli.join:join", "Join a network: make keys and a configuration."),
        "key": ("node.cli.keys:key", "Make and show keys."),
        "genesis": ("node.cli.genesis:genesis", "Make and show a network's genesis."),
        "config": ("node.cli.settings:config", "Settings and where each comes from."),
        "cluster": ("node.cli.cluster:cluster", "A whole network on this machine, for development."),
        "doctor": ("node.cli.doctor:doctor", "What this machine lacks, and the remedy."),
    },
    "More": {
        "simulate": ("node.cli.simulate:simulate", "A whole network in one process, with faults, from a seed."),
        "completion": ("node.cli.completion:completion", "Shell completion for bash, zsh and fish."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyCommands(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry[0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, from the table above."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"mercat {version('mercat')}")
        ctx.exit()


@click.group(
    cls=LazyCommands,
    epilog=EXIT_CODES_TEXT,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Version.")
def mercat() -> None:
    """A peer-to-peer market for AI compute: run models on other people's machines and check what they did.

    Start with `mercat cluster up`, then `eval "$(mercat cluster env)"` and `mercat run smollm2-135m "Hello"`.
    """


def _failed(message: str, exit_code: int, code: str, as_json: bool) -> int:
    from node.cli.output import printable

    if as_json:
        error = {"error": {"code": code, "message": message, "exit_code": int(exit_code)}}
        print(json.dumps(error), file=sys.stderr)
    else:
        print(f"mercat: {printable(message, keep=chr(10))}", file=sys.stderr)
    return int(exit_code)


def _exit_code_of(error: Exception) -> tuple[int, str]:
    """The exit code of an error that a room of ours raised on purpose."""
    from node.keystore.errors import KeystoreError
    from protocol.primitives.errors import UserError

    if isinstance(error, KeystoreError):
        return ExitCode.KEYS_OR_FUNDS, "keys"
    if isinstance(error, UserError):
        return ExitCode.USAGE, "usage"
    return ExitCode.FAILED, "failed"


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    from protocol.primitives.errors import MercatError

    as_json = "--json" in arguments
    try:
        result = mercat.main(list(arguments), prog_name="mercat", standalone_mode=False)
    except click.UsageError as error:
        if as_json:
            return _failed(error.format_message(), ExitCode.USAGE, "usage", as_json)
        error.show()
        return ExitCode.USAGE
    except click.ClickException as error:
        return _failed(error.format_message(), ExitCode.FAILED, "failed", as_json)
    except CommandFailed as error:
        return _failed(error.message, error.exit_code, error.code, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", ExitCode.INTERRUPTED, "interrupted", as_json)
    except BrokenPipeError:
        # Whoever read our output has enough; leave nothing for the interpreter to flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except MercatError as error:
        exit_code, code = _exit_code_of(error)
        return _failed(str(error), exit_code, code, as_json)
    except OSError as error:
        return _failed(str(error), ExitCode.FAILED, "os_error", as_json)
    return result if isinstance(result, int) else ExitCode.DONE


def main() -> None:
    """The console script."""
    try:
        exit_code = run_command(sys.argv[1:])
    except KeyboardInterrupt:
        exit_code = ExitCode.INTERRUPTED
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
