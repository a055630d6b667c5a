"""A client of the control API: plain HTTP over the node's unix socket.

Law: only the standard library and msgspec; the command line must start fast. Every failure is ``CommandFailed`` with
the exit code that the command ends with.
"""

import http.client
import socket
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from node.api.requests import AmountBody, ErrorBody, MotionBody, PublishBody, SendBody, SettledView, VoteBody, WaitBody
from node.cli.failures import CommandFailed, ExitCode
from node.runtime.control import (
    JOBS_LISTED,
    QUOTE_ROWS,
    AccountView,
    AuthoritiesView,
    BidView,
    BlockView,
    ChannelView,
    FaultsView,
    JobView,
    LedgerView,
    ModelView,
    MotionView,
    OfferView,
    ParametersView,
    ProviderView,
    QuoteView,
    RegistrationView,
    RequestView,
    RunEvent,
    RunRequest,
    StatusView,
    SupplyView,
    TransactionView,
)
from node.runtime.model_views import PullEvent, PullRequest
from node.runtime.motion_bodies import SubjectBody
from node.runtime.record_bodies import RecordView
from node.runtime.timeline_views import WhyView

ANSWER_SECONDS = 30.0
"""A question about what the node knows is answered at once; a node that takes longer hangs."""
ANSWER_BYTES_MAX = 256 * 1024 * 1024
LINE_BYTES_MAX = 8 * 1024 * 1024
"""One event holds at most one chunk of 1 MiB, in base64."""

T = TypeVar("T")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class NodeClient:
    """Asks one running node."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _unreachable(self, error: OSError) -> CommandFailed:
        return CommandFailed(
            f"no node answers on {self.path} ({error.strerror or error}); start one with `mercat node run` or "
            "`mercat cluster up`, or name one with --control or MERCAT_CONTROL",
            ExitCode.UNREACHABLE,
            "node_unreachable",
        )

    def _send(
        self, method: str, path: str, body: object, seconds: float
    ) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, seconds)
        content = None if body is None else msgspec.json.encode(body)
        try:
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            response = connection.getresponse()
        except TimeoutError:
            connection.close()
            raise CommandFailed(f"no answer within {seconds:.0f} s", ExitCode.TIMEOUT, "timeout") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error if isinstance(error, OSError) else OSError(str(error))) from None
        except BaseException:
            connection.close()
            raise
        if response.status != 200:
            try:
                raise _failure(response)
            finally:
                connection.close()
        return connection, response

    def _ask(self, method: str, path: str, body: object = None, seconds: float = ANSWER_SECONDS) -> bytes:
        connection, response = self._send(method, path, body, seconds)
        try:
            return response.read(ANSWER_BYTES_MAX)
        except TimeoutError:
            raise CommandFailed(f"no answer within {seconds:.0f} s", ExitCode.TIMEOUT, "timeout") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error if isinstance(error, OSError) else OSError(str(error))) from None
        finally:
            connection.close()

    def _get(self, path: str, kind: type[T]) -> T:
        return msgspec.json.decode(self._ask("GET", path), type=kind)

    def _wait(
        self, path: str, body: WaitBody | AmountBody | SendBody | PublishBody | MotionBody | VoteBody, kind: type[T]
    ) -> T:
        return msgspec.json.decode(self._ask("POST", path, body, body.timeout_ms / 1000 + 5), type=kind)

    def status(self, seconds: float = ANSWER_SECONDS) -> StatusView:
        """The node at a glance."""
        return msgspec.json.decode(self._ask("GET", "/v1/status", None, seconds), type=StatusView)

    def models(self) -> tuple[ModelView, ...]:
        """Models that somebody offers now."""
        return self._get("/v1/models", tuple[ModelView, ...])

    def offers(self) -> tuple[OfferView, ...]:
        """Every model of every live offer."""
        return self._get("/v1/offers", tuple[OfferView, ...])

    def bids(self) -> tuple[BidView, ...]:
        """What other nodes' buyers wait for."""
        return self._get("/v1/bids", tuple[BidView, ...])

    def faults(self) -> FaultsView:
        """What the node does wrong on command."""
        return self._get("/v1/faults", FaultsView)

    def have_faults(self, faults: FaultsView) -> FaultsView:
        """Make a development network's node do exactly these things wrong."""
        return msgspec.json.decode(self._ask("POST", "/v1/faults", faults), type=FaultsView)

    def quote(self, request: RunRequest, rows_max: int = QUOTE_ROWS) -> QuoteView:
        """Who would take a job."""
        return msgspec.json.decode(self._ask("POST", f"/v1/quote?rows={rows_max}", request), type=QuoteView)

    def run(self, request: RunRequest, seconds: float) -> Generator[RunEvent, None, None]:
        """Run a job; ``seconds`` is the longest silence. Closing the iterator hangs up, which cancels the job."""
        yield from self._lines("/v1/run", request, RunEvent, "the job", seconds)

    def pull_model(self, request: PullRequest, seconds: float) -> Generator[PullEvent, None, None]:
        """Pull a model from peers; closing the iterator ends the pull, what came stays."""
        yield from self._lines("/v1/pull", request, PullEvent, "the pull", seconds)

    def _lines(self, path: str, body: object, kind: type[T], what: str, seconds: float) -> Generator[T, None, None]:
        connection, response = self._send("POST", path, body, seconds)
        try:
            while line := response.readline(LINE_BYTES_MAX):
                if not line.endswith(b"\n"):
                    break
                yield msgspec.json.decode(line, type=kind)
        except TimeoutError:
            raise CommandFailed(f"no news of {what} within {seconds:.0f} s", ExitCode.TIMEOUT, "timeout") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error if isinstance(error, OSError) else OSError(str(error))) from None
        finally:
            response.close()
            connection.close()

    def jobs(self, count_max: int = JOBS_LISTED) -> tuple[JobView, ...]:
        """The latest jobs that the node knows, from either side, the newest first."""
        return self._get(f"/v1/jobs?count={count_max}", tuple[JobView, ...])

    def job(self, job: str) -> JobView:
        """One job with its timeline."""
        return self._get(f"/v1/jobs/{quote(job, safe='')}", JobView)

    def why(self, job: str) -> WhyView:
        """What this node, the other party and the ledger have recorded of a job."""
        return self._get(f"/v1/jobs/{quote(job, safe='')}/why", WhyView)

    def request(self, request: str) -> RequestView:
        """What became of a request by the id that its program gave it."""
        return self._get(f"/v1/requests/{quote(request, safe='')}", RequestView)

    def receipt(self, job: str) -> bytes:
        """A job's receipt file."""
        return self._ask("GET", f"/v1/jobs/{quote(job, safe='')}/receipt")

    def cancel(self, job: str, seconds: float = ANSWER_SECONDS) -> JobView:
        """Cancel a job."""
        return msgspec.json.decode(
            self._ask("POST", f"/v1/jobs/{quote(job, safe='')}/cancel", None, seconds), type=JobView
        )

    def settle(self, job: str, timeout_ms: int) -> SettledView:
        """Anchor a job's receipt in a block."""
        return self._wait(f"/v1/jobs/{quote(job, safe='')}/settle", WaitBody(timeout_ms), SettledView)

    def account(self, account: str | None = None) -> AccountView:
        """An account on the ledger; None: the node's own."""
        return self._get(f"/v1/account?account={quote(account, safe='')}" if account else "/v1/account", AccountView)

    def send(self, recipient: str, amount: int, timeout_ms: int) -> TransactionView:
        """Send base units."""
        return self._wait("/v1/send", SendBody(recipient, amount, timeout_ms), TransactionView)

    def channels(self) -> tuple[ChannelView, ...]:
        """Payment channels of the node's account."""
        return self._get("/v1/channels", tuple[ChannelView, ...])

    def close_channel(self, channel: str, timeout_ms: int) -> TransactionView:
        """Close a payment channel."""
        return self._wait(f"/v1/channels/{quote(channel, safe='')}/close", WaitBody(timeout_ms), TransactionView)

    def provider(self) -> ProviderView:
        """What a provider's operator wants to see."""
        return self._get("/v1/provider", ProviderView)

    def record(self, who: str) -> RecordView:
        """What is known of an account that deals in the market."""
        return self._get(f"/v1/records/{quote(who, safe='')}", RecordView)

    def bond(self, amount: int, timeout_ms: int) -> TransactionView:
        """Bond base units."""
        return self._wait("/v1/provider/bond", AmountBody(amount, timeout_ms), TransactionView)

    def unbond(self, amount: int, timeout_ms: int) -> TransactionView:
        """Unbond base units."""
        return self._wait("/v1/provider/unbond", AmountBody(amount, timeout_ms), TransactionView)

    def registration(self, model: str) -> RegistrationView:
        """Who published a model."""
        return self._get(f"/v1/registrations/{quote(model, safe='')}", RegistrationView)

    def publish(self, manifest: str, timeout_ms: int) -> TransactionView:
        """Register a model's manifest."""
        return self._wait("/v1/registrations", PublishBody(manifest, timeout_ms), TransactionView)

    def ledger(self) -> LedgerView:
        """The tip of the ledger."""
        return self._get("/v1/ledger", LedgerView)

    def block(self, height: int) -> BlockView:
        """One decided block."""
        return self._get(f"/v1/blocks/{height}", BlockView)

    def supply(self) -> SupplyView:
        """Where all the money is."""
        return self._get("/v1/supply", SupplyView)

    def proof(self, subject: str, identity: str, timeout_ms: int) -> bytes:
        """The proof file of an account or a channel."""
        path = f"/v1/proof/{subject}/{quote(identity, safe='')}?timeout_ms={timeout_ms}"
        return self._ask("GET", path, None, timeout_ms / 1000 + 5)

    def checkpoint(self, timeout_ms: int) -> bytes:
        """A checkpoint file."""
        return self._ask("GET", f"/v1/checkpoint?timeout_ms={timeout_ms}", None, timeout_ms / 1000 + 5)

    def decided(self, height: int) -> bytes:
        """Decided blocks from a height on, as MessagePack."""
        return self._ask("GET", f"/v1/decided/{height}")

    def authorities(self) -> AuthoritiesView:
        """Who decides."""
        return self._get("/v1/authorities", AuthoritiesView)

    def parameters(self) -> ParametersView:
        """What the network has agreed on."""
        return self._get("/v1/parameters", ParametersView)

    def motions(self) -> tuple[MotionView, ...]:
        """Motions on the agenda and the last outcomes."""
        return self._get("/v1/motions", tuple[MotionView, ...])

    def motion(self, number: int) -> MotionView:
        """One motion."""
        return self._get(f"/v1/motions/{number}", MotionView)

    def open_motion(self, subject: SubjectBody, timeout_ms: int) -> MotionView:
        """Put something to vote."""
        return self._wait("/v1/motions", MotionBody(subject, timeout_ms), MotionView)

    def vote(self, number: int, approve: bool, timeout_ms: int) -> MotionView:
        """Vote on a motion."""
        return self._wait(f"/v1/motions/{number}/vote", VoteBody(approve, timeout_ms), MotionView)


def _failure(response: http.client.HTTPResponse) -> CommandFailed:
    content = response.read(ANSWER_BYTES_MAX)
    try:
        error = msgspec.json.decode(content, type=ErrorBody).error
    except msgspec.DecodeError:
        return CommandFailed(f"the node answered {response.status} {response.reason}", ExitCode.FAILED, "bad_answer")
    return CommandFailed(error.message, error.exit_code, error.code)
