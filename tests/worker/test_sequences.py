"""What is kept of a finished job: for its own tenant's next job, for nobody else, and within the memory that is there.

Also how many rows a step may hold.
"""

from node.worker.child.gguf_pace import ROWS_FIRST, ROWS_FIXED, STEP_LAST_S, STEP_S, WRITERS_WAIT_S, Pace
from node.worker.child.gguf_sequences import WORTH_KEEPING, Sequences
from node.worker.child.llama import BATCH_ROWS

LONG = list(range(100))


class Memory:
    """Counts what each sequence holds, as the model's memory does."""

    def __init__(self, *, partly: bool = True) -> None:
        self.held: dict[int, int] = {}
        self._partly = partly

    def keep(self, sequence: int, tokens: int) -> bool:
        if tokens and not self._partly:
            return False
        self.held[sequence] = tokens
        return True


def sequences(count: int, memory: Memory | None = None, *, remember: bool = True) -> Sequences:
    return Sequences(count, (memory or Memory()).keep, remember=remember)


def test_a_tenants_next_job_goes_on_from_what_both_begin_with() -> None:
    memory = Memory()
    kept = sequences(2, memory)
    first, held = kept.take("ann", LONG)
    assert held == 0
    kept.give_back(first, "ann", [*LONG, 7, 8])
    assert kept.take("ann", [*LONG[:50], 3]) == (first, 50)
    assert memory.held[first] == 50


def test_the_last_token_of_a_prompt_is_always_evaluated() -> None:
    kept = sequences(1)
    sequence, _ = kept.take("ann", LONG)
    kept.give_back(sequence, "ann", LONG)
    assert kept.take("ann", LONG) == (sequence, len(LONG) - 1)


def test_another_tenant_finds_the_sequence_empty() -> None:
    memory = Memory()
    kept = sequences(1, memory)
    sequence, _ = kept.take("ann", LONG)
    kept.give_back(sequence, "ann", LONG)
    assert kept.take("bob", LONG) == (sequence, 0)
    assert memory.held[sequence] == 0
    kept.give_back(sequence, "bob", LONG[:10])
    assert kept.take("ann", LONG) == (sequence, 0), "nor does the first get it back"


def test_a_job_without_a_tenant_leaves_and_finds_nothing() -> None:
    memory = Memory()
    kept = sequences(1, memory)
    sequence, _ = kept.take("", LONG)
    memory.held[sequence] = len(LONG)
    kept.give_back(sequence, "", LONG)
    assert memory.held[sequence] == 0
    assert kept.take("", LONG) == (sequence, 0)


def test_where_nothing_may_be_remembered_nothing_is() -> None:
    memory = Memory()
    kept = sequences(1, memory, remember=False)
    sequence, _ = kept.take("ann", LONG)
    memory.held[sequence] = len(LONG)
    kept.give_back(sequence, "ann", LONG)
    assert memory.held[sequence] == 0
    assert kept.take("ann", LONG) == (sequence, 0)


def test_too_little_in_common_is_not_worth_another_conversations_memory() -> None:
    kept = sequences(2)
    first, _ = kept.take("ann", LONG)
    kept.give_back(first, "ann", LONG)
    other, held = kept.take("ann", [*LONG[: WORTH_KEEPING - 1], *range(500, 600)])
    assert (other, held) == (1 - first, 0)


def test_the_sequence_that_was_idle_longest_is_emptied_first() -> None:
    kept = sequences(3)
    taken = [kept.take(name, LONG)[0] for name in ("ann", "bob", "cid")]
    for sequence, name in zip(taken, ("bob", "ann", "cid"), strict=True):
        kept.give_back(sequence, name, LONG)
    assert kept.take("dan", LONG) == (taken[0], 0)
    assert kept.take("bob", LONG) == (taken[1], 0), "what bob had is gone"
    assert kept.take("cid", LONG) == (taken[2], len(LONG) - 1)
    assert not kept.any_idle()


def test_of_empty_sequences_the_lowest_is_taken_so_that_jobs_stand_side_by_side() -> None:
    kept = sequences(4)
    taken = [kept.take("", LONG)[0] for _ in range(4)]
    assert taken == [0, 1, 2, 3]
    for sequence in (2, 0, 1):
        kept.give_back(sequence, "", LONG)
    assert [kept.take("", LONG)[0] for _ in range(3)] == [0, 1, 2]


def test_a_model_that_cannot_go_back_begins_anew() -> None:
    memory = Memory(partly=False)
    kept = sequences(1, memory)
    sequence, _ = kept.take("ann", LONG)
    kept.give_back(sequence, "ann", LONG)
    assert kept.take("ann", LONG) == (sequence, 0)
    assert memory.held[sequence] == 0


def test_what_nobody_knows_of_is_dropped() -> None:
    memory = Memory()
    kept = sequences(1, memory)
    sequence, _ = kept.take("ann", LONG)
    memory.held[sequence] = 5
    kept.forget(sequence)
    assert memory.held[sequence] == 0
    assert kept.take("ann", LONG) == (sequence, 0)


def test_steps_shrink_until_each_ends_in_time_and_grow_while_there_is_time() -> None:
    pace = Pace(follows_the_clock=True)
    row_s = STEP_S / 5.5
    for _ in range(10):
        pace.took(pace.rows, pace.rows * row_s)
    assert pace.rows in (4, 5)
    for _ in range(20):
        pace.took(pace.rows, pace.rows * STEP_S / 100)
    assert pace.rows == BATCH_ROWS
    pace.took(1, 1000 * STEP_S)
    assert pace.rows == 1
    small = pace.rows
    pace.took(0, 0.0)
    assert pace.rows == small, "a step that was not full says nothing about a fuller one"


def test_where_bits_depend_on_the_cut_it_never_follows_the_clock() -> None:
    pace = Pace(follows_the_clock=False)
    for seconds in (0.0, 100.0):
        pace.took(pace.rows, seconds)
        assert pace.rows == pace.room(1) == pace.room(BATCH_ROWS) == ROWS_FIXED


def test_a_step_that_leaves_nothing_to_read_may_be_longer_as_long_as_a_cancel_is_in_time() -> None:
    pace = Pace(follows_the_clock=True)
    row_s = STEP_S / 15.5
    for _ in range(10):
        pace.took(pace.rows, pace.rows * row_s)
    most = int(STEP_LAST_S / row_s)
    assert STEP_LAST_S < 0.1
    assert pace.rows < most
    assert pace.room(most) == most
    assert pace.room(most + 1) == pace.rows
    assert pace.room(1) == pace.rows
    pace.took(1, 5 * row_s)
    assert pace.room(most) == most, "a step of one row says nothing about what a row costs in a larger one"
    pace.took(pace.rows, pace.rows * 2 * row_s)
    assert pace.room(most) == pace.rows < ROWS_FIRST


def test_a_step_never_holds_more_rows_than_a_batch_however_fast_the_machine() -> None:
    pace = Pace(follows_the_clock=True)
    for _ in range(20):
        pace.took(pace.rows, 1e-6)
    assert pace.room(BATCH_ROWS + 1) == BATCH_ROWS


def test_writers_wait_for_readers_until_their_time_is_up_and_then_have_one_step() -> None:
    pace = Pace(follows_the_clock=True)
    steps = []
    for _ in range(9):
        steps.append(pace.reads(unread=100, writers=1))
        pace.took(8, WRITERS_WAIT_S * 0.6)
    assert steps == [True, True, False] * 3
    assert not pace.reads(unread=0, writers=1)


def test_reading_that_nobody_waits_for_does_not_count() -> None:
    pace = Pace(follows_the_clock=False)
    for _ in range(5):
        assert pace.reads(unread=100, writers=0)
        pace.took(8, WRITERS_WAIT_S * 0.6)
    assert pace.reads(unread=100, writers=1)
    assert not pace.reads(unread=0, writers=0)
