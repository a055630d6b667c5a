"""Whom a lagging node asks, and how often anybody is answered."""

from protocol.engine.catch_up import ANSWER_TIMEOUT_MS, ANSWERS_BURST, GRACE_MS, AnswerLimits, CatchUp
from protocol.primitives.units import Height, MonotonicMs, NodeId

BOASTER, HONEST = NodeId(b"b" * 32), NodeId(b"h" * 32)
TIP = Height(5)


def _at(milliseconds: int) -> MonotonicMs:
    return MonotonicMs(milliseconds)


def test_nobody_is_asked_while_nobody_knows_more() -> None:
    catch_up = CatchUp()
    catch_up.hint(HONEST, TIP)
    assert catch_up.next_peer(TIP, _at(0)) is None


def test_one_request_at_a_time_until_it_is_answered_or_its_time_is_up() -> None:
    catch_up = CatchUp()
    catch_up.hint(HONEST, Height(9))
    assert catch_up.next_peer(TIP, _at(0)) == HONEST
    assert catch_up.next_peer(TIP, _at(ANSWER_TIMEOUT_MS - 1)) is None
    catch_up.answered(HONEST, Height(9))
    assert catch_up.next_peer(Height(7), _at(10)) == HONEST


def test_a_peer_that_boasts_and_never_answers_is_asked_last_from_then_on() -> None:
    catch_up = CatchUp()
    catch_up.hint(BOASTER, Height(10**9))
    catch_up.hint(HONEST, Height(9))
    assert catch_up.next_peer(TIP, _at(0)) == BOASTER
    assert catch_up.next_peer(TIP, _at(ANSWER_TIMEOUT_MS)) == HONEST
    catch_up.hint(BOASTER, Height(10**9))
    catch_up.answered(HONEST, Height(9))
    assert catch_up.next_peer(Height(6), _at(ANSWER_TIMEOUT_MS + 1)) == HONEST


def test_an_answer_of_no_use_costs_a_peer_its_hint() -> None:
    catch_up = CatchUp()
    catch_up.hint(BOASTER, Height(9))
    assert catch_up.next_peer(TIP, _at(0)) == BOASTER
    catch_up.answered(BOASTER, None)
    assert catch_up.next_peer(TIP, _at(1)) is None


def test_a_lost_link_frees_the_request_for_another_peer() -> None:
    catch_up = CatchUp()
    catch_up.hint(BOASTER, Height(10))
    catch_up.hint(HONEST, Height(9))
    assert catch_up.next_peer(TIP, _at(0)) == BOASTER
    catch_up.forget(BOASTER)
    assert catch_up.next_peer(TIP, _at(1)) == HONEST


def test_answers_are_capped_for_each_peer_and_the_cap_refills() -> None:
    limits = AnswerLimits()
    assert all(limits.allow(HONEST, _at(0)) for _ in range(ANSWERS_BURST))
    assert not limits.allow(HONEST, _at(0))
    assert limits.allow(BOASTER, _at(0))
    assert limits.allow(HONEST, _at(100))


def test_a_message_may_cross_our_decision_for_a_moment_only() -> None:
    limits = AnswerLimits()
    limits.committed(TIP, _at(1_000))
    assert limits.recently_committed(TIP, _at(1_000 + GRACE_MS - 1))
    assert not limits.recently_committed(TIP, _at(1_000 + GRACE_MS))
    assert not limits.recently_committed(Height(4), _at(1_000))


def test_strangers_that_boast_under_ever_new_names_hold_an_authority_s_blocks_up_for_one_turn_at_most() -> None:
    catch_up = CatchUp({HONEST: None})
    asked: list[NodeId] = []
    for number in range(20):
        catch_up.hint(NodeId(number.to_bytes(32, "big")), Height(10**9))
        catch_up.hint(HONEST, Height(9))
        peer = catch_up.next_peer(TIP, _at(number * ANSWER_TIMEOUT_MS))
        assert peer is not None
        asked.append(peer)
        if peer != HONEST:
            catch_up.forget(peer)
    assert asked.count(HONEST) >= 10


def test_an_authority_that_answers_is_asked_again_whatever_strangers_boast() -> None:
    catch_up = CatchUp({HONEST: None})
    catch_up.hint(BOASTER, Height(10**9))
    for number in range(5):
        catch_up.hint(HONEST, Height(10 + number))
        assert catch_up.next_peer(Height(TIP + number), _at(number)) == HONEST
        catch_up.answered(HONEST, Height(10 + number))


def test_an_authority_that_gives_a_block_at_a_time_is_not_the_only_one_asked() -> None:
    other = NodeId(b"o" * 32)
    catch_up = CatchUp({HONEST: None, other: None})
    asked: list[NodeId | None] = []
    for number in range(6):
        catch_up.hint(HONEST, Height(50))
        catch_up.hint(other, Height(10**9))
        peer = catch_up.next_peer(Height(TIP + number), _at(number))
        assert peer is not None
        asked.append(peer)
        catch_up.answered(peer, Height(10**9))
    assert asked.count(HONEST) == 3
