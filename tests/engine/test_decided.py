"""What a decided block leaves for the disk, a change of who decides included."""

from protocol.engine.decided import succession_key, take_over
from protocol.ledger.blocks import execute_block
from protocol.ledger.light_chain import deciding_set, trusted_genesis, verify_decided
from protocol.messages.blocks import Header, Succession
from protocol.messages.consensus import Certificate
from protocol.messages.effects import CommitBlock, Put, Table
from protocol.primitives.codec import decode
from protocol.primitives.units import TimestampMs
from tests.ledger.assembly import Assembly, change


class Recorded(Assembly):
    """An assembly that keeps the successions which a store would keep."""

    def __init__(self) -> None:
        super().__init__()
        self.successions: list[Succession] = []
        self.certificates: list[tuple[Header, Certificate]] = []

    def tick(self, blocks: int = 1) -> None:
        """Empty blocks, taken over as a node does."""
        for _ in range(blocks):
            built = self.build([], TimestampMs(self.state.tip.timestamp_ms + 15_000))
            certificate = self.certify(built.header)
            commit, *others = take_over(self.state, execute_block(self.state, built.block), certificate)
            assert isinstance(commit, CommitBlock)
            assert commit.decided.certificate == certificate
            self.certificates.append((built.header, certificate))
            for put in others:
                assert isinstance(put, Put)
                assert (put.table, put.key) == (Table.SUCCESSION, succession_key(commit.height))
                self.successions.append(decode(put.value, Succession))


def test_every_change_of_members_leaves_a_link_and_the_links_lead_to_who_decides_now() -> None:
    assembly = Recorded()
    for coming in (4, 5, 6, 7):
        assembly.decide(change(remove=(coming - 1,), add=(coming,)))
        assembly.tick(3)
    assert len(assembly.successions) == 4
    header, certificate = assembly.certificates[-1]
    trusted = trusted_genesis(assembly.genesis)
    authorities = deciding_set(trusted, None, tuple(assembly.successions), header)
    assert {record.name for record in authorities.records} == {"auth0", "auth1", "auth2", "auth7"}
    verify_decided(assembly.hash, authorities, header, certificate)
