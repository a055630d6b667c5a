"""A ledger whose authorities have funded accounts: they put things to vote, vote, and are caught signing twice."""

from protocol.ledger.charter import Motion
from protocol.ledger.execution import Execution
from protocol.messages.consensus import FinalBody, ProposalBody, VoteBody
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.governance import AuthorityChange, MotionNumber, ParameterChange, ParameterValue, Subject
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import MotionOpen, MotionVote
from protocol.primitives.units import AuthorityId, BlockHash, Height, NodeId, View
from tests.ledger.world import NAMES, Ledger, account_of, make_genesis, sealed

KINDS = {ProposalBody: MessageKind.PROPOSAL, VoteBody: MessageKind.VOTE, FinalBody: MessageKind.FINAL}
X, Y = BlockHash(b"x" * 32), BlockHash(b"y" * 32)


def authority(index: int) -> AuthorityId:
    """The key of an authority."""
    return AuthorityId(account_of(f"auth{index}"))


def record(index: int) -> AuthorityRecord:
    """The record of an authority, whether it is a member or not."""
    name = f"auth{index}"
    return AuthorityRecord(authority(index), account_of(f"{name}-account"), NodeId(account_of(f"{name}-node")), name)


def change(remove: tuple[int, ...] = (), add: tuple[int, ...] = ()) -> AuthorityChange:
    """A change of members by their numbers."""
    return AuthorityChange(tuple(authority(index) for index in remove), tuple(record(index) for index in add))


def settings(**values: int) -> ParameterChange:
    """A change of parameters."""
    return ParameterChange(tuple(ParameterValue(name, value) for name, value in values.items()))


def proposal(height: int, view: int, block_hash: BlockHash = X, voted_view: int = 0) -> ProposalBody:
    """A PROPOSAL's body."""
    return ProposalBody(Height(height), View(view), block_hash, View(voted_view))


def ballot(height: int, view: int, block_hash: BlockHash = X) -> VoteBody:
    """A VOTE's body."""
    return VoteBody(Height(height), View(view), block_hash)


def final(height: int, view: int, block_hash: BlockHash | None = X) -> FinalBody:
    """A FINAL's body."""
    return FinalBody(Height(height), View(view), block_hash)


class Assembly(Ledger):
    """Authorities auth0, auth1, … with accounts that hold money like everybody else."""

    def __init__(self, authorities: int = 4, development: bool = True, **parameters: int) -> None:
        names = (*NAMES, *(f"auth{index}-account" for index in range(12)))
        genesis = make_genesis(names=names, authorities=authorities, **parameters)
        if not development:
            genesis = type(genesis)("test", False, *(getattr(genesis, name) for name in genesis.__struct_fields__[2:]))
        super().__init__(genesis)

    def open(self, index: int, subject: Subject) -> MotionNumber:
        """Authority ``index`` puts a subject to vote in a block of its own."""
        number = self.state.charter.agenda.next_number
        self.act(f"auth{index}-account", MotionOpen(authority(index), subject))
        return number

    def vote(self, index: int, number: int, approve: bool = True) -> Execution:
        """Authority ``index`` votes in a block of its own."""
        return self.act(f"auth{index}-account", MotionVote(MotionNumber(number), authority(index), approve))

    def decide(self, subject: Subject, voters: int = 3) -> Motion:
        """Put to vote by auth0, approved by the first ``voters`` authorities; the next block has been opened."""
        number = self.open(0, subject)
        for index in range(1, voters):
            self.vote(index, number)
        self.tick()
        return self.motion(number)

    def motion(self, number: int) -> Motion:
        """A motion that the state still tells of."""
        found = self.state.motion(MotionNumber(number))
        assert found is not None
        return found

    def tick(self, blocks: int = 1) -> None:
        """Blocks that do nothing but be there."""
        for _ in range(blocks):
            self.include(after_ms=self.state.parameters.heartbeat_ms)

    def members(self) -> list[str]:
        """Names of who decides two heights above the tip."""
        return sorted(entry.name for entry in self.state.schedule.following.records)

    def said(self, index: int, body: ProposalBody | VoteBody | FinalBody) -> bytes:
        """A statement of authority ``index``."""
        return sealed(self.hash, f"auth{index}", KINDS[type(body)], body)
