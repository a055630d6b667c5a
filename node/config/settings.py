"""The settings of one node, typed and read once.

Law: numbers that a whole network must share live in the genesis; here are those of one process. A key that nobody
reads is refused, so a typing error never means "the default". Paths in a file are relative to that file.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.ledger.checkpoints import CHECKPOINT_INTERVAL
from protocol.market.ranking import WEIGHT_MAX
from protocol.primitives.limits import (
    ADDRESSES_PER_NODE_MAX,
    AUCTION_WINDOW_MS_MAX,
    CHUNK_UNITS_MAX,
    MODELS_PER_OFFER_MAX,
    TEXT_BYTES_MAX,
)
from protocol.primitives.units import AMOUNT_MAX, CREDIT

BaseUnits = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
"""An amount of money; 1,000,000 base units are one credit."""
Milliseconds = Annotated[int, Meta(ge=1, le=2**40)]
Units = Annotated[int, Meta(ge=1, le=2**40)]
Permille = Annotated[int, Meta(ge=0, le=1000)]
Weight = Annotated[int, Meta(ge=0, le=WEIGHT_MAX)]
ChunkUnits = Annotated[int, Meta(ge=1, le=CHUNK_UNITS_MAX)]
Rate = Annotated[int, Meta(ge=1_000, le=2**40)]
"""Bytes a second; below a kilobyte nothing would ever arrive."""
UploadRate = Annotated[int, Meta(ge=0, le=2**40)]
"""Bytes a second; 0: no limit."""
Text = Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every part of the configuration: immutable, no unknown keys."""


class Role(Enum):
    """What a node does beside following the ledger. None of them: a follower."""

    AUTHORITY = "authority"
    PROVIDER = "provider"
    BUYER = "buyer"


class KeystoreConfig(Section, frozen=True):
    """Where the keys are. The passphrase itself is never in a setting or the environment."""

    directory: Path
    passphrase_file: Path | None = None
    """None: asked for at the terminal, or given by ``--passphrase-fd``."""


class LogLevel(Enum):
    """Least severe event that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogConfig(Section, frozen=True):
    """Where structured log events go."""

    file: Path | None = None
    """None: standard error."""
    level: LogLevel = LogLevel.INFO
    json: bool = True
    """One JSON object a line; false: text for people."""


class ProviderModel(Section, frozen=True):
    """One model to sell and its prices in base units: described, or behind a server that the operator runs."""

    description: str = ""
    """A path (it contains ``/`` or ends with ``.toml``), the name of a description that ships with mercat, or the id of
    a model in the store; once loaded, the absolute path of the description file, or the id."""
    upstream: Text = ""
    """Instead of a description: the address of an OpenAI-compatible server, such as ``http://127.0.0.1:8000/v1``. What
    it does is declared, never proved: a buyer who asks for more isolation is not served by it."""
    model: Text = ""
    """What the upstream server calls the model."""
    server: Text = "other"
    """What the upstream server is: ``vllm``, ``llama-server``, ``ollama`` or ``other``."""
    weights: Text = ""
    """The hash of the upstream model's weights, 64 hexadecimal digits, if you state one; empty: unknown."""
    api_key_file: Path | None = None
    """A file of mode 0600 with the key that the upstream server asks for. A key is never a setting."""
    request: BaseUnits = 1_000
    input_per_thousand: BaseUnits = 10_000
    output_per_thousand: BaseUnits = 40_000
    input_units_max: Units | None = None
    """Limits of this model; None: the section's."""
    output_units_max: Units | None = None

    @property
    def label(self) -> str:
        """What people see before the model is known."""
        return self.model if self.upstream else self.description


class RedeemPolicy(Section, frozen=True):
    """When a provider turns vouchers into ledger money: whichever comes first."""

    amount: BaseUnits = CREDIT
    age_ms: Milliseconds = 60_000


class ProviderQuotes(Section, frozen=True):
    """What a provider asks in auctions: by default its posted prices."""

    answer: bool = True
    discount_permille: Permille = 0
    """Taken off the posted prices while all slots are free, less in proportion while some are taken."""
    floor_permille: Permille = 0
    """Never less than this part of the posted prices."""
    request_floor: BaseUnits = 0
    input_per_thousand_floor: BaseUnits = 0
    output_per_thousand_floor: BaseUnits = 0
    """Never less than what the work costs this provider."""
    valid_ms: Milliseconds = 2_000
    """How long a quote binds this provider once it is revealed."""
    slots_held_permille: Permille = 500
    """Part of the slots, one at least, that may wait meanwhile for buyers who were quoted a price. 0: none waits."""


class ProviderConfig(Section, frozen=True):
    """What a provider sells and on which terms."""

    models: Annotated[tuple[ProviderModel, ...], Meta(max_length=MODELS_PER_OFFER_MAX)] = ()
    model_store: Path | None = None
    """Content-addressed store of model files; None: ``models`` inside the state directory."""
    model_store_bytes: Annotated[int, Meta(ge=1, le=2**60)] | None = None
    """What the store may take; models that were not used for longest go before one is added. None: no limit."""
    slots: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Jobs at the same time."""
    region: Text = ""
    isolation: Text = ""
    """The isolation that this provider insists on; it refuses to sell below it. Empty: the strongest that works here
    and is safe for strangers' inputs."""
    chunk_units: ChunkUnits = CHUNK_UNITS_MAX
    """The largest chunk that a buyer may ask for: work released before it is paid is at most one chunk."""
    trust_permille: Annotated[int, Meta(ge=0, le=1000)] = 100
    """A short job goes out as one chunk, output with its input, where all that its lane's buyer has not paid is then at
    most this part of what it has paid there: one round trip less. 0: the input is always paid first."""
    input_units_max: Units = 4_096
    output_units_max: Units = 1_024
    batch_max: Annotated[int, Meta(ge=1, le=64)] = 16
    """Rows that an ONNX worker may run as one for one buyer, where the model's manifest lets it; 1: each alone."""
    offer_ms: Milliseconds = 60_000
    """An offer lives so long; it is renewed before."""
    quotes: ProviderQuotes = ProviderQuotes()
    redeem: RedeemPolicy = RedeemPolicy()


class BuyerWeights(Section, frozen=True):
    """How much each factor counts when offers are ranked; only the proportions matter."""

    price: Weight = 800
    """Expected price against the cheapest offer that would do."""
    speed: Weight = 80
    """Expected time as this node has measured it, and free slots."""
    reputation: Weight = 100
    """What the ledger has seen the provider settle and fail."""
    region: Weight = 20
    """Whether the offer is of the preferred region."""


class BuyerConfig(Section, frozen=True):
    """How a buyer's node pays and how long it waits."""

    channel_deposit: BaseUnits = 10 * CREDIT
    """Locked for a provider when a channel opens; it is filled up by as much once three quarters of it are spent."""
    channel_idle_ms: Annotated[int, Meta(ge=0, le=2**40)] = 86_400_000
    """A channel that nobody used for so long is closed, and what is left of its deposit comes back. 0: never."""
    price_max: BaseUnits = CREDIT
    """Ceiling of a job that names none."""
    weights: BuyerWeights = BuyerWeights()
    region_preferred: Text = ""
    """Ranked higher by ``weights.region``; providers of other regions are taken too. Empty: none."""
    patience_ms: Annotated[int, Meta(ge=0, le=2**40)] = 10_000
    """How long a job waits for a free slot when nothing else is missing; 0: it fails at once."""
    auction_ms: Annotated[int, Meta(ge=0, le=2 * AUCTION_WINDOW_MS_MAX)] = 0
    """How long to collect sealed quotes before a provider is chosen; 0: jobs go by posted prices."""
    chunk_units: ChunkUnits = 32
    accept_ms: Milliseconds = 5_000
    first_output_ms: Milliseconds = 60_000
    stall_ms: Milliseconds = 20_000
    total_ms: Milliseconds = 600_000
    report_failures: bool = True
    """Put a provider's signed failure on the ledger, where others see it, if the attempt cost as much as the report."""


class Sharing(Enum):
    """Which stored models a node gives to peers that ask for them."""

    SERVED = "served"
    """Those that it serves, those that its account published, and those that it pulled from peers."""
    ALL = "all"
    NONE = "none"


class ModelsConfig(Section, frozen=True):
    """How models travel between this node and its peers."""

    share: Sharing = Sharing.SERVED
    upload_bytes_per_second: UploadRate | None = None
    """To all peers together; 0: as much as they take. None: 10,000,000, which leaves most of a line to jobs; in a
    development network, which has no line, no limit."""
    upload_per_peer_bytes_per_second: UploadRate | None = None
    """To one peer; 0: its share of the whole alone bounds it. None: 5,000,000, so that one peer leaves half to others;
    in a development network no limit."""
    download_bytes_per_second: Rate | None = None
    """Of one pull from all its sources; None: as much as they give."""


class LedgerConfig(Section, frozen=True):
    """How much of the ledger's past this node keeps, and what it serves to nodes that come later."""

    keep_blocks: Annotated[int, Meta(ge=0, le=2**40)] = 0
    """At least so many blocks; older ones go once a snapshot covers them. 0: all of them, for ever (an archive)."""
    snapshot_blocks: Annotated[int, Meta(ge=0, le=2**40, multiple_of=CHECKPOINT_INTERVAL)] = 4096
    """A snapshot of the state is made every so many blocks; the newest two are kept. 0: never."""


class NodeConfig(Section, frozen=True, kw_only=True):
    """All settings of one node. All paths are absolute once loaded."""

    genesis: Path
    state: Path
    """Directory of ledger, journals and the control socket."""
    keystore: KeystoreConfig
    roles: tuple[Role, ...] = ()
    listen: str = "127.0.0.1:0"
    """``HOST:PORT``; port 0 takes a free one."""
    advertise: Annotated[tuple[str, ...], Meta(max_length=ADDRESSES_PER_NODE_MAX)] = ()
    """``HOST:PORT`` that peers can dial; empty: the address listened on."""
    seeds: tuple[str, ...] = ()
    dial_private: bool | None = None
    """Dial addresses of private networks and of this machine though strangers name them, in bids, offers and records of
    peers. None: if a seed or an address to advertise is one, because then the network lives inside a private one. Seeds
    and authorities are dialed wherever they are."""
    recovery: tuple[Path, ...] = ()
    """Recovery documents that this node follows; see ``mercat ledger recover``."""
    control: Path | None = None
    """Unix socket of the control API; None: ``control.sock`` inside the state directory."""
    log: LogConfig = LogConfig()
    provider: ProviderConfig = ProviderConfig()
    buyer: BuyerConfig = BuyerConfig()
    ledger: LedgerConfig = LedgerConfig()
    models: ModelsConfig = ModelsConfig()

    @property
    def control_socket(self) -> Path:
        """Path of the control API's socket."""
        return self.control or self.state / "control.sock"

    @property
    def model_store(self) -> Path:
        """Directory of the content-addressed model store."""
        return self.provider.model_store or self.state / "models"
