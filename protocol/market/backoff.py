"""Which providers rank last for a while, and for how long.

Law: only what a provider answers for counts against it: a job that it failed, a link that it lost, a node that can't be
reached. Each failure in a row doubles its time in the last ranks, up to a cap; one good job ends it. Want of capacity
is no failure: it costs a moment, until the provider's next offer shows its slots. Failures and dropped claims outlive a
restart: one row that the disk has at most a second later, and that no job waits for.
"""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from protocol.market.policies import BuyerPolicy
from protocol.market.records import BACKOFF_KEY
from protocol.market.requests import MarketEffect
from protocol.messages.effects import Now, Put, Table
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import (
    AccountId,
    AccountIdField,
    LedgerTimeField,
    LedgerTimeMs,
    MonotonicMs,
    TimestampField,
    TimestampMs,
)

PROVIDERS_MAX = 1024
"""Providers remembered; beyond it those whose time ends first are forgotten: 100 bytes each."""


OWING_MS = 30 * 24 * 3_600_000
"""Ledger time for which a debt counts that can't be worked off any more, because its channel has ended."""


class _Kept(Message, frozen=True):
    """One provider's ``_Failures``, by the wall clock."""

    provider: AccountIdField
    count: Annotated[int, Meta(ge=1, le=2**32)]
    until: TimestampField


class _Owing(Message, frozen=True):
    """Who left a debt behind on a channel that has ended, and until which ledger time that is remembered."""

    provider: AccountIdField
    until: LedgerTimeField


_Providers = Annotated[tuple[_Kept, ...], Meta(max_length=PROVIDERS_MAX)]


class BackoffRow(Message, frozen=True):
    """What a restart takes up: failures in a row, and claims that were dropped."""

    failed: _Providers
    forgiven: _Providers
    owing: Annotated[tuple[_Owing, ...], Meta(max_length=PROVIDERS_MAX)]


class _Failures(Struct, frozen=True):
    """Failures in a row, and until when they make the provider rank last."""

    count: int
    until: MonotonicMs


class Backoff:
    """One buyer's memory of failures."""

    def __init__(self, policy: BuyerPolicy) -> None:
        self._policy = policy
        self._failed: dict[AccountId, _Failures] = {}
        self._full: dict[AccountId, MonotonicMs] = {}
        self._forgiven: dict[AccountId, _Failures] = {}
        self._owing: dict[AccountId, LedgerTimeMs] = {}
        self._saved = True

    def failed(self, provider: AccountId, now: Now) -> None:
        """The provider failed a job or could not be reached."""
        policy, self._saved = self._policy, False
        before = self._failed.pop(provider, None)
        # As long a good while as the longest bad one makes earlier failures forgotten.
        in_a_row = before is not None and now.monotonic_ms < before.until + policy.demoted_ms_max
        count = before.count + 1 if before is not None and in_a_row else 1
        lasts = min(policy.demoted_ms << min(count - 1, 32), policy.demoted_ms_max)
        self._failed[provider] = _Failures(count, MonotonicMs(now.monotonic_ms + lasts))
        if len(self._failed) > PROVIDERS_MAX:
            del self._failed[min(self._failed, key=lambda each: self._failed[each].until)]

    def full(self, provider: AccountId, now: Now) -> None:
        """The provider has no room now."""
        self._full.pop(provider, None)
        self._full[provider] = MonotonicMs(now.monotonic_ms + self._policy.full_ms)
        if len(self._full) > PROVIDERS_MAX:
            del self._full[next(iter(self._full))]

    def forgive(self, provider: AccountId, now: Now) -> bool:
        """Whether a claim that the provider disputes may be dropped now; if so, the next one not for twice as long.

        Honest books differ at times: a link was lost at the wrong moment. Who always disputes gets one chunk 0 for
        nothing, then another after a while that doubles without an end.
        """
        before = self._forgiven.get(provider)
        if before is not None and now.monotonic_ms < before.until:
            return False
        count = before.count + 1 if before is not None else 1
        lasts = self._forgiven_ms(count)
        self._saved = False
        self._forgiven[provider] = _Failures(count, MonotonicMs(now.monotonic_ms + lasts))
        if len(self._forgiven) > PROVIDERS_MAX:
            del self._forgiven[min(self._forgiven, key=lambda each: self._forgiven[each].until)]
        return True

    def succeeded(self, provider: AccountId, *, disputed: bool = False) -> None:
        """The provider finished a job: its failures are forgotten, and one claim that was dropped; not by a job for
        which books were brought together, be it the claim's."""
        failed = self._failed.pop(provider, None)
        self._full.pop(provider, None)
        if disputed:
            self._saved = self._saved and failed is None
            return
        self._saved = self._saved and failed is None and provider not in self._forgiven
        forgiven = self._forgiven.pop(provider, None)
        if forgiven is not None and forgiven.count > 1:
            self._forgiven[provider] = _Failures(forgiven.count - 1, forgiven.until)

    def left_owing(self, provider: AccountId, ledger_now: LedgerTimeMs) -> None:
        """A channel has ended on which the provider owed something."""
        self._saved = False
        self._owing.pop(provider, None)
        self._owing[provider] = LedgerTimeMs(ledger_now + OWING_MS)
        if len(self._owing) > PROVIDERS_MAX:
            del self._owing[next(iter(self._owing))]

    def owing(self, ledger_now: LedgerTimeMs) -> tuple[AccountId, ...]:
        """Providers that left a debt behind lately."""
        if self._owing and min(self._owing.values()) <= ledger_now:
            self._owing = {account: until for account, until in self._owing.items() if until > ledger_now}
            self._saved = False
        return tuple(self._owing)

    def unsaved(self, now: Now) -> list[MarketEffect]:
        """The row as it should be on the disk, if it changed since it was asked for last."""
        if self._saved:
            return []
        self._saved = True
        owing = tuple(_Owing(account, until) for account, until in self._owing.items())
        row = BackoffRow(_kept(self._failed, now), _kept(self._forgiven, now), owing)
        return [Put(Table.STANDING, BACKOFF_KEY, encode(row))]

    def restore(self, value: bytes, now: Now) -> None:
        """Take up the row. Whatever the clock did meanwhile, nobody ranks last for longer than a failure makes it."""
        row, policy = decode(value, BackoffRow), self._policy
        self._failed = {each.provider: _taken_up(each, policy.demoted_ms_max, now) for each in row.failed}
        self._forgiven = {each.provider: _taken_up(each, self._forgiven_ms(each.count), now) for each in row.forgiven}

        self._owing = {each.provider: each.until for each in row.owing}

    def _forgiven_ms(self, count: int) -> int:
        return self._policy.demoted_ms << min(count - 1, 32)

    def demoted(self, now: Now) -> tuple[AccountId, ...]:
        """Providers that failed lately."""
        return tuple(account for account, failures in self._failed.items() if failures.until > now.monotonic_ms)

    def crowded(self, now: Now) -> tuple[AccountId, ...]:
        """Providers that had no room a moment ago."""
        if self._full:
            self._full = {account: until for account, until in self._full.items() if until > now.monotonic_ms}
        return tuple(self._full)


def _kept(failures: Mapping[AccountId, _Failures], now: Now) -> tuple[_Kept, ...]:
    ahead_ms = now.wall_ms - now.monotonic_ms
    return tuple(
        _Kept(account, min(each.count, 2**32), TimestampMs(max(0, each.until + ahead_ms)))
        for account, each in failures.items()
    )


def _taken_up(kept: _Kept, lasts_ms: int, now: Now) -> _Failures:
    left_ms = min(kept.until - now.wall_ms, lasts_ms)
    return _Failures(kept.count, MonotonicMs(now.monotonic_ms + left_ms))
