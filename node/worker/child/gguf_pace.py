"""What one step does, and how many rows it may hold, so that it soon ends: cancels and new jobs are seen between steps.

Law: never more rows than a batch and never fewer than one; neither readers nor writers wait for ever. Only where bits
don't depend on how a prompt is cut does the number follow the clock; elsewhere it is fixed, so that a job that runs
alone gives the same output every time.
"""

from node.worker.child.llama import BATCH_ROWS

STEP_S = 0.085  # of processor time: a cancel waits for one step and must take effect within 0.1 s
STEP_LAST_S = 0.098  # of one that reads all there is to read: another step for a few rows would cost some ms more
WRITERS_WAIT_S = 0.1  # of processor time, and the step in which it ends: then those who write have a step of their own
ROWS_FIXED = 16  # costs a few percent of a whole batch's speed in reading
ROWS_FIRST = 8
ROWS_MORE = 2


class Pace:
    """Learns from each step how many rows the next may hold."""

    def __init__(self, *, follows_the_clock: bool) -> None:
        self._follows = follows_the_clock
        self.rows = ROWS_FIRST if follows_the_clock else ROWS_FIXED
        self._row_s = STEP_S / ROWS_FIRST
        self._reading = False
        self._waited_s = 0.0

    def reads(self, *, unread: int, writers: int) -> bool:
        """Whether the next step reads prompts rather than writes: writers wait for readers, but not for long."""
        if not writers:
            self._waited_s = 0.0
        self._reading = unread > 0 and self._waited_s < WRITERS_WAIT_S
        if not self._reading:
            self._waited_s = 0.0
        return self._reading

    def room(self, wanted: int) -> int:
        """How many rows the next step may hold where so many would leave nothing to read."""
        if self._follows and wanted <= BATCH_ROWS and wanted * self._row_s <= STEP_LAST_S:
            return max(wanted, self.rows)
        return self.rows

    def took(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if self._reading:
            self._waited_s += seconds
        if not self._follows:
            return
        if rows >= ROWS_FIRST:  # a row of a smaller step costs more
            self._row_s = seconds / rows
        if seconds > STEP_S:
            self.rows = max(1, min(self.rows, int(rows * STEP_S / seconds)))
        elif rows >= self.rows and seconds * (rows + ROWS_MORE) < STEP_S * rows:
            self.rows = min(BATCH_ROWS, self.rows + ROWS_MORE)
