"""``mercat genesis``: what a whole network must share, made from what each member made public."""

import time
from pathlib import Path

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import GENESIS_VARIABLE, with_output
from node.cli.output import Output, credits_text, fields, table
from protocol.messages.genesis import Allocation, AuthorityRecord, Genesis, Parameters
from protocol.primitives.units import CREDIT, AccountId, Amount, AuthorityId, DurationMs, NodeId, parse_credits

DAY_MS = 24 * 3600 * 1000
PRODUCTION_PARAMETERS = Parameters(
    heartbeat_ms=DurationMs(15_000),
    delta_ms=DurationMs(1_000),
    delta_cap_ms=DurationMs(60_000),
    clock_precision_ms=DurationMs(500),
    challenge_ms=DurationMs(3600 * 1000),
    unbonding_ms=DurationMs(7 * DAY_MS),
    provider_bond_min=Amount(10 * CREDIT),
    fee_min=Amount(100),
    redeem_fee_min=Amount(1_000),
    redeem_fee_share_ppm=1_000,
    epoch_blocks=1_000,
    evidence_blocks=100_000,
    evidence_ms=DurationMs(7 * DAY_MS),
    motion_ms=DurationMs(7 * DAY_MS),
    motion_timelock_ms=DurationMs(DAY_MS),
    motion_fee_min=Amount(CREDIT // 10),
    issuance_cap=Amount(10_000 * CREDIT),
    issuance_period_ms=DurationMs(30 * DAY_MS),
)
"""Between machines: an hour to challenge a close, a week to take a bond back and to vote, a day's timelock."""


@click.group()
def genesis() -> None:
    """Make and show a network's genesis."""


def _parse_grants(texts: tuple[str, ...], option: str) -> dict[AccountId, Amount]:
    from protocol.primitives.addresses import AddressKind, parse_address

    grants: dict[AccountId, Amount] = {}
    for text in texts:
        address, separator, amount = text.partition("=")
        try:
            if not separator:
                raise ValueError("expected ADDRESS=CREDITS")
            account = AccountId(parse_address(AddressKind.ACCOUNT, address))
            if account in grants:
                raise ValueError("named twice")
            grants[account] = parse_credits(amount)
        except ValueError as error:
            raise CommandFailed(f"{option} {text}: {error}", ExitCode.USAGE, "usage") from None
    return grants


def authority_record(path: Path) -> AuthorityRecord:
    """An authority from the public record that its operator sent. Raises ``CommandFailed`` if it is not one."""
    from node.keystore.records import read_record
    from protocol.primitives.addresses import AddressKind, parse_address

    record = read_record(path)
    if record.authority is None:
        raise CommandFailed(
            f"{path} has no authority key; its owner makes one with: mercat key new --role authority", ExitCode.USAGE
        )
    return AuthorityRecord(
        AuthorityId(parse_address(AddressKind.AUTHORITY, record.authority)),
        AccountId(parse_address(AddressKind.ACCOUNT, record.account)),
        NodeId(parse_address(AddressKind.NODE, record.node)),
        record.name,
    )


def _parameters(texts: tuple[str, ...]) -> Parameters:
    import msgspec

    changes: dict[str, int] = {}
    for text in texts:
        name, separator, number = text.partition("=")
        if not separator or name not in Parameters.__struct_fields__ or not number.isascii() or not number.isdigit():
            raise CommandFailed(
                f"--parameter {text}: expected NAME=NUMBER with NAME one of {', '.join(Parameters.__struct_fields__)}",
                ExitCode.USAGE,
            )
        changes[name] = int(number)
    return msgspec.structs.replace(PRODUCTION_PARAMETERS, **changes)


def _parameters_text() -> str:
    """Every parameter with its default, for the help."""
    defaults = [f"{name}={getattr(PRODUCTION_PARAMETERS, name)}" for name in Parameters.__struct_fields__]
    return "Parameters and their defaults, in ms and base units: " + ", ".join(defaults) + "."


@genesis.command(epilog=_parameters_text())
@click.option(
    "--authority",
    "authorities",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    required=True,
    help="Public record of an authority (repeatable).",
)
@click.option("--allocate", multiple=True, metavar="ADDRESS=CREDITS", help="Credits from the start (repeatable).")
@click.option("--bond", multiple=True, metavar="ADDRESS=CREDITS", help="Bonded credits from the start (repeatable).")
@click.option("--network", required=True, help="Name of the network.")
@click.option("--parameter", multiple=True, metavar="NAME=NUMBER", help="Change a parameter (repeatable).")
@click.option("--development", is_flag=True, help="Its nodes stay on loopback.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@with_output
def new(
    output: Output,
    authorities: tuple[Path, ...],
    allocate: tuple[str, ...],
    bond: tuple[str, ...],
    network: str,
    parameter: tuple[str, ...],
    development: bool,
    out: Path,
) -> None:
    """Make a genesis from the public records of its authorities.

    Each operator makes keys on a machine of their own (`mercat key new --role authority`) and sends the printed record;
    no secret leaves its machine. Everybody then runs with the same file; compare its hash with `mercat genesis show`.
    """
    from node.config.genesis_file import genesis_to_json, make_genesis
    from protocol.primitives.units import TimestampMs

    balances, bonds = _parse_grants(allocate, "--allocate"), _parse_grants(bond, "--bond")
    accounts = dict.fromkeys([*balances, *bonds])
    made = make_genesis(
        network=network,
        development=development,
        created_at=TimestampMs(time.time_ns() // 1_000_000),
        parameters=_parameters(parameter),
        authorities=tuple(authority_record(path) for path in authorities),
        allocations=tuple(
            Allocation(account, balances.get(account, Amount(0)), bonds.get(account, Amount(0))) for account in accounts
        ),
    )
    if len(made.authorities) < 4:
        output.note(f"{len(made.authorities)} authorities survive no faulty one; four survive one")
    try:
        with out.open("xb") as file:
            file.write(genesis_to_json(made))
    except FileExistsError:
        raise CommandFailed(f"{out} exists and is not overwritten", ExitCode.USAGE, "file_exists") from None
    _show(output, made)


def _show(output: Output, shown: Genesis) -> None:
    import msgspec

    from node.config.genesis_file import genesis_to_json
    from protocol.messages.genesis import genesis_hash
    from protocol.primitives.addresses import AddressKind, format_address

    identity = genesis_hash(shown).hex()
    total = sum(entry.balance + entry.bond for entry in shown.allocations)
    head = fields(
        [
            ("network", f"{shown.network}{' (development)' if shown.development else ''}"),
            ("hash", identity),
            ("supply", credits_text(total)),
            *((name, str(getattr(shown.parameters, name))) for name in Parameters.__struct_fields__),
        ]
    )
    authorities = table(
        ("AUTHORITY", "KEY"),
        [(record.name, format_address(AddressKind.AUTHORITY, record.authority)) for record in shown.authorities],
    )
    allocations = table(
        ("ACCOUNT", "BALANCE", "BOND"),
        [
            (
                format_address(AddressKind.ACCOUNT, entry.account),
                credits_text(entry.balance),
                credits_text(entry.bond),
            )
            for entry in shown.allocations
        ],
    )
    view = {"hash": identity, "genesis": msgspec.Raw(genesis_to_json(shown))}
    output.show(view, "\n\n".join([head, authorities, allocations]), [identity])


@genesis.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False), envvar=GENESIS_VARIABLE)
@with_output
def show(output: Output, file: Path) -> None:
    """What FILE says, and its hash: the network's identity."""
    from node.config.genesis_file import load_genesis

    _show(output, load_genesis(file))
