"""From what a user asked for to what the market takes: which model is meant, how large and dear it may get.

Law: what can be told at once (no such model, no offer that would do, no money) is told before anything is signed.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from node.clock import read_clock
from node.runtime.control import ControlError, RunRequest
from node.runtime.ledger_views import account_argument, account_text
from node.runtime.requests import request_name
from protocol.market.agreement import JobRequest
from protocol.market.catalogue import Listing
from protocol.market.matching import NO_FREE_SLOTS, Match, Want, match_offer
from protocol.market.offer_search import Ranking, best_offer, quote
from protocol.messages.effects import Now
from protocol.messages.market import JobPayload, OutputForm
from protocol.primitives.addresses import AddressInvalid, AddressKind, parse_address
from protocol.primitives.codec import encode
from protocol.primitives.limits import (
    CHUNK_UNITS_MAX,
    GRAMMAR_BYTES_MAX,
    JOB_INPUT_BYTES_MAX,
    LOGPROBS_MAX,
    SCHEMA_BYTES_MAX,
)
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    DurationMs,
    Hash,
    ModelId,
    Salt,
    WorkUnits,
    format_credits,
)

if TYPE_CHECKING:
    from node.runtime.node import Node

_TEXT_RUNTIMES = ("gguf", "upstream")
"""Runtimes that write: their units are tokens, and their output comes piece by piece."""

_TEMPLATE_UNITS = 64
"""Input tokens that a chat template may add; a token is at least one byte of the input otherwise."""

_REASONS_TOLD_MAX = 64
"""Refusals in one error message."""


class Wish:
    """One ``RunRequest`` beside what its node knows. Raises ``ControlError`` for what could never be."""

    def __init__(self, node: "Node", asked: RunRequest) -> None:
        self._node = node
        self.asked = asked
        self.request = request_name(asked.request) if asked.request else Hash(os.urandom(32))
        if not 0 <= asked.price_max <= AMOUNT_MAX or not 0 <= asked.seed < 2**63:
            raise ControlError("bad_request", "price or seed out of range", 2)
        if (
            asked.wait_ms < 0
            or asked.output_units_max < 1
            or asked.timeout_ms < 1
            or not 0 <= asked.temperature_milli <= 10_000
        ):
            raise ControlError("bad_request", "temperature out of range", 2)
        if len(asked.body) > JOB_INPUT_BYTES_MAX - 4096:
            raise ControlError("input_too_large", f"the input has {len(asked.body)} bytes; the limit is 1 MiB", 2)

    def served(self) -> Listing:
        """The asked model as it is offered, by name, address or hash."""
        catalogue, addressed = self._node.engine.book.catalogue, _addressed(self.asked.model)
        found = catalogue.find(self.asked.model) if addressed is None else (addressed,)
        if len(found) > 1:
            listed = ", ".join(model.hex()[:16] for model in found)
            raise ControlError("model_ambiguous", f"{self.asked.model!r} names several models; use one of {listed}", 2)
        listing = catalogue.listing(found[0]) if found else None
        if listing is None:
            raise ControlError(
                "model_not_found", f"nobody offers a model {self.asked.model!r} now; see `mercat models`", 5
            )
        return listing

    def limits(self, served: Listing) -> tuple[WorkUnits, WorkUnits]:
        """Input and output units at most. A chat token is at least one byte, so bytes bound tokens."""
        if served.runtime == "onnx":  # one run, or the tokens of a text, which its offer tells apart by their limit
            return WorkUnits(min(len(self.asked.body) + _TEMPLATE_UNITS, served.input_units_max)), WorkUnits(1)
        if served.runtime == "wasm":
            return WorkUnits(1), WorkUnits(min(self.asked.output_units_max, served.output_units_max))
        input_units = len(self.asked.body) + (_TEMPLATE_UNITS if served.runtime in _TEXT_RUNTIMES else 0)
        output_units = self.asked.output_units_max if served.runtime in _TEXT_RUNTIMES else max(1, len(self.asked.body))
        if served.runtime in _TEXT_RUNTIMES:
            input_units = min(input_units, served.input_units_max)
        return WorkUnits(max(1, input_units)), WorkUnits(output_units)

    def ceiling(self) -> Amount:
        """What the job may cost at most."""
        return Amount(self.asked.price_max or self._node.config.buyer.price_max)

    def want(self, served: Listing) -> Want:
        """The wish as the order book is asked for it."""
        input_units, output_units = self.limits(served)
        policy = self._node.engine.buyer.policy
        return Want(
            buyer=self._node.keys.account_id,
            model=ModelId(served.model),
            input_units_max=input_units,
            output_units_max=output_units,
            input_units_expected=input_units,
            output_units_expected=output_units,
            price_ceiling=self.ceiling(),
            unique=self.request,
            region=self.asked.region,
            isolation=self.asked.isolation,
            provider=self._provider(),
            demoted=self._node.engine.buyer.demoted(read_clock()),
            weights=policy.weights,
            region_preferred=policy.region_preferred,
        )

    def quote(self, served: Listing, ranked_max: int) -> Ranking:
        """Everybody's answer, that of the best described."""
        return quote(self._node.engine.book, self.want(served), read_clock(), ranked_max=ranked_max)

    def job(self) -> JobRequest:
        """The request that the market takes, with fresh random bytes."""
        asked, served = self.asked, self.served()
        self._check_somebody(served)
        input_units, output_units = self.limits(served)
        buyer = self._node.config.buyer
        return JobRequest(
            request=self.request,
            model=ModelId(served.model),
            payload=encode(_payload(asked)),
            salt=Salt(os.urandom(32)),
            unique=Hash(os.urandom(32)),
            input_units_max=input_units,
            output_units_max=output_units,
            price_ceiling=self.ceiling(),
            chunk_units=self._chunk_units(served),
            region=asked.region,
            isolation=asked.isolation,
            provider=self._provider(),
            model_name=served.name,
            seed=asked.seed,
            temperature_milli=asked.temperature_milli,
            choose_ms=DurationMs(min(asked.wait_ms, asked.timeout_ms)),
            accept_ms=DurationMs(buyer.accept_ms),
            first_output_ms=DurationMs(buyer.first_output_ms),
            stall_ms=DurationMs(buyer.stall_ms),
            total_ms=DurationMs(min(buyer.total_ms, asked.timeout_ms)),
            auction_ms=DurationMs(self._auction_ms()),
            auction_addresses=self._node.addresses,
            replication=asked.replicas,
            replicas_min=asked.replicas_min,
        )

    def _auction_ms(self) -> int:
        """Replicas go by posted prices: each has a provider of its own from the start."""
        if self.asked.replicas > 1:
            return 0
        return self._node.config.buyer.auction_ms if self.asked.auction_ms is None else self.asked.auction_ms

    def _provider(self) -> AccountId | None:
        return account_argument(self.asked.provider) if self.asked.provider else None

    def _check_somebody(self, served: Listing) -> None:
        """Somebody would do it and it can be paid, or it is worth waiting for somebody."""
        want, book, now = self.want(served), self._node.engine.book, read_clock()
        if any(match.price_at_limits <= sum(self._funds()) for match in self._tried(want, now)):
            return
        best = best_offer(book, want, now)
        if best is None and not self.asked.wait_ms:
            refused = quote(book, want, now, whole_book=False).refused
            if self._waits_for_room() and any(refusal.reason == NO_FREE_SLOTS for refusal in refused):
                return
            reasons = "; ".join(
                f"{account_text(refusal.account)[:14]}…: {refusal.reason}" for refusal in refused[:_REASONS_TOLD_MAX]
            )
            raise ControlError("no_provider", f"nobody takes this job: {reasons}", 5)
        if best is not None:
            self._check_funds(best.price_at_limits)

    def _tried(self, want: Want, now: Now) -> Iterator[Match]:
        """Providers that have done such jobs for this node and would do this one, in no order: mostly the first one
        shows that somebody would, and the market looks through the whole book for the best right afterwards."""
        book = self._node.engine.book
        book.expire(now)
        for account in book.paces.of(want.model):
            live = book.offer_of(account)
            match = match_offer(live, want) if live is not None else None
            if isinstance(match, Match):
                yield match

    def _waits_for_room(self) -> bool:
        """Replicas are chosen together, at once or not at all."""
        return self.asked.replicas == 1 and self._node.engine.buyer.policy.patience_ms > 0

    def _check_funds(self, price: Amount) -> None:
        """An empty wallet is told at once; whether a channel's rest suffices, the market finds out."""
        balance, held = self._funds()
        if balance + held < price:
            raise ControlError(
                "no_funds",
                f"the job may cost {format_credits(price)} credits; this account has {format_credits(balance)}"
                f" and {format_credits(held)} in channels",
                4,
            )

    def _funds(self) -> tuple[Amount, Amount]:
        """What this account has, and what all channels that it has opened hold."""
        state, own = self._node.engine.replica.state, self._node.keys.account_id
        held = sum(channel.held for _, channel in state.channels_paid_by(own))
        return state.account(own).balance, Amount(held)

    def _chunk_units(self, served: Listing) -> int:
        match served.runtime:
            case "gguf" | "upstream":
                return self._node.config.buyer.chunk_units
            case "onnx":
                return 1
            case _:
                return CHUNK_UNITS_MAX


def _addressed(wanted: str) -> ModelId | None:
    """The model whose address this is; ``None`` for a name or a hash."""
    if not wanted.startswith(AddressKind.MODEL.value + "1"):
        return None
    try:
        return ModelId(parse_address(AddressKind.MODEL, wanted))
    except AddressInvalid as error:
        raise ControlError("bad_address", str(error), 2) from None


def _payload(asked: RunRequest) -> JobPayload:
    """What goes to the provider's runtime. Raises ``ControlError`` for what no provider would take."""
    if not 0 <= asked.logprobs <= LOGPROBS_MAX or (asked.logprobs and asked.output != "tokens"):
        raise ControlError("bad_request", f"logprobs are 0 to {LOGPROBS_MAX}, and for output 'tokens' only", 2)
    if len(asked.schema) > SCHEMA_BYTES_MAX:
        raise ControlError("bad_request", f"a schema has at most {SCHEMA_BYTES_MAX} characters", 2)
    if len(asked.grammar) > GRAMMAR_BYTES_MAX:
        raise ControlError("bad_request", f"a grammar has at most {GRAMMAR_BYTES_MAX} characters", 2)
    if asked.schema and asked.grammar:
        raise ControlError("bad_request", "an answer is held to a schema or to a grammar, not to both", 2)
    output = OutputForm.TOKENS if asked.output == "tokens" else OutputForm.TEXT
    return JobPayload(
        asked.format,
        asked.body,
        asked.stop,
        output=output,
        schema=asked.schema,
        logprobs=asked.logprobs,
        grammar=asked.grammar,
    )
