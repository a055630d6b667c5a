"""A network that has given up its old blocks, and a node that comes later."""

from pathlib import Path

from node.cli.client import NodeClient
from node.cli.cluster_layout import ClusterRecord
from node.config.genesis_file import load_genesis
from node.store.database import Store
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import Height
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.population import BALANCE, Founder, copy_store, stranger, treasury
from tests.e2e.network import run_command, wait_until
from tests.e2e.people import Person

BLOCKS = 31
"""The next block is one after which a snapshot is due."""
SETTINGS = "\n[ledger]\nkeep_blocks = 8\nsnapshot_blocks = 32\n"


def _prepare(record: ClusterRecord) -> None:
    directories = [Path(node.directory) / "state" for node in record.nodes if node.role == "authority"]
    genesis = load_genesis(Path(record.genesis))
    directories[0].mkdir(parents=True)
    store = Store.open(directories[0] / "ledger.sqlite", genesis)
    founder = Founder(genesis, store)
    for number in range(BLOCKS):
        founder.give([stranger(number)])
    store.close()
    copy_store(directories, Height(BLOCKS))
    for node in record.nodes:
        if node.role == "authority":
            node.config.write_text(node.config.read_text() + SETTINGS)


def _client(network: Network, name: str) -> NodeClient:
    return NodeClient(network.control(name))


def test_new_node_takes_the_state_of_a_pruned_network_and_follows_it(place: Path) -> None:
    with development_network(providers=0, models=(), accounts=[treasury()], buyer=False, prepare=_prepare) as network:
        names = [f"authority-{number}" for number in range(1, 5)]
        sender = {"MERCAT_CONTROL": str(network.control(names[0])), "MERCAT_GENESIS": network.record.genesis}
        account = network.record.named(names[1]).account

        def send() -> None:
            run_command("wallet", "send", account, "0.5", "-y", home=place, variables=sender)

        send()
        wait_until(
            lambda: all(_client(network, name).ledger().blocks_from == BLOCKS + 2 - 8 for name in names),
            "the authorities have given up their old blocks",
        )
        person = Person.settle(place / "late")
        seeds = [network.record.named(name).address for name in names[:2]]
        person.join(Path(network.record.genesis), seeds, "--role", "follower")
        with person.running():
            wait_until(lambda: person.client.ledger().height > BLOCKS, "the newcomer has the state")
            assert person.client.ledger().blocks_from == BLOCKS + 1
            assert person.client.account(_text(0)).balance == BALANCE
            send()
            wait_until(lambda: person.client.ledger().height > BLOCKS + 1, "the newcomer follows by blocks")
            ours, theirs = person.client.ledger(), _client(network, names[0]).ledger()
            assert (ours.block_hash, ours.state_root) == (theirs.block_hash, theirs.state_root)
            supply = person.client.supply()
            assert supply.total == supply.genesis_total
        with person.running():
            assert person.client.ledger().height > BLOCKS


def _text(number: int) -> str:
    return format_address(AddressKind.ACCOUNT, stranger(number))
