"""``mercat motion`` and ``mercat issuance``: what is put to vote, and credits made or burned by vote."""

import click

from node.cli.options import CREDITS, Session, confirm, timeout_option, with_node, yes_option
from node.cli.output import credits_text, fields, short, table
from node.runtime.control import MotionView
from node.runtime.motion_bodies import IssuanceBody, RedemptionBody, SubjectBody
from protocol.primitives.units import Amount

LEDGER_WAIT = "Seconds to wait for the block."
MOTION_NUMBER = click.IntRange(min=1, max=2**48)


def _when(view: MotionView) -> str:
    if view.concluded_height is not None:
        return f"in block {view.concluded_height}"
    seconds = max(0, view.due_at_ledger_ms - view.ledger_time_ms) / 1000
    return f"{'expires' if view.status == 'open' else 'takes effect'} in {seconds:.0f} s of ledger time"


def motion_text(view: MotionView) -> str:
    """A motion for people."""
    said = {True: "for", False: "against", None: "has not voted"}
    head = [
        ("motion", str(view.motion)),
        ("subject", view.detail),
        ("status", f"{view.status}, {_when(view)}"),
        *((("because", view.outcome),) if view.outcome else ()),
        ("votes", f"{view.approvals} for, {view.rejections} against, {view.needed} needed"),
        ("opened by", f"{view.opener} in block {view.opened_height}"),
    ]
    votes = table(("AUTHORITY", "VOTE"), [(vote.name, said[vote.approve]) for vote in view.votes])
    return f"{fields(head)}\n\n{votes}"


def show_motion(session: Session, view: MotionView) -> None:
    """A motion, or its number alone."""
    session.output.show(view, motion_text(view), (str(view.motion),))


def propose(session: Session, subject: SubjectBody, question: str, yes: bool, timeout: float) -> None:
    """Put a subject to vote and show the motion."""
    confirm(question, yes)
    show_motion(session, session.client.open_motion(subject, round(timeout * 1000)))


def cast_vote(session: Session, number: int, reject: bool, yes: bool, timeout: float) -> None:
    """Vote and show the motion; a vote can't be taken back, so a person is asked."""
    view = session.client.motion(number)
    confirm(f"Vote {'against' if reject else 'for'} motion {number} ({view.detail})?", yes)
    show_motion(session, session.client.vote(number, not reject, round(timeout * 1000)))


def add_vote(group: click.Group) -> None:
    """Adds ``vote`` to a group: motions have one sequence of numbers, whatever they are about."""

    @group.command()
    @click.argument("number", type=MOTION_NUMBER)
    @click.option("--reject", is_flag=True, help="Vote against it.")
    @yes_option
    @timeout_option(60, LEDGER_WAIT)
    @with_node
    def vote(session: Session, number: int, reject: bool, yes: bool, timeout: float) -> None:
        """Vote for motion NUMBER, or against it, as this node's authority. A vote can't be taken back."""
        cast_vote(session, number, reject, yes, timeout)


@click.group()
def motion() -> None:
    """What is put to vote, and what became of it."""


@motion.command("list")
@with_node
def list_motions(session: Session) -> None:
    """Open motions and the last outcomes, oldest first."""
    views = session.client.motions()
    rows = [
        (
            str(view.motion),
            view.status,
            f"{view.approvals}/{view.needed}",
            str(view.rejections),
            _when(view),
            short(view.detail, 70),
        )
        for view in views
    ]
    text = table(("MOTION", "STATUS", "FOR", "AGAINST", "WHEN", "SUBJECT"), rows)
    session.output.show(views, text, (str(view.motion) for view in views))


@motion.command("show")
@click.argument("number", type=MOTION_NUMBER)
@with_node
def show_one(session: Session, number: int) -> None:
    """Motion NUMBER and who has voted what."""
    show_motion(session, session.client.motion(number))


@click.group()
def issuance() -> None:
    """Make credits by vote, and burn one's own."""


@issuance.command("propose")
@click.argument("recipient")
@click.argument("amount", type=CREDITS)
@click.option("--reason", default="", help="What it is for; everybody can read it for ever.")
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def propose_issuance(session: Session, recipient: str, amount: Amount, reason: str, yes: bool, timeout: float) -> None:
    """Put to vote that AMOUNT new credits are made for the account RECIPIENT (mc1…)."""
    question = f"Put to vote to issue {credits_text(amount)} to {recipient}?"
    propose(session, IssuanceBody(recipient, amount, reason), question, yes, timeout)


@issuance.command("redeem")
@click.argument("amount", type=CREDITS)
@click.option("--reason", default="", help="What it is for; everybody can read it for ever.")
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def propose_redemption(session: Session, amount: Amount, reason: str, yes: bool, timeout: float) -> None:
    """Put to vote that AMOUNT credits of this node's own account are burned. Anybody may ask."""
    question = f"Put to vote to burn {credits_text(amount)} of this node's account?"
    propose(session, RedemptionBody(amount, reason), question, yes, timeout)


add_vote(motion)
add_vote(issuance)
