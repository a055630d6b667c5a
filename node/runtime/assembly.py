"""From what is on disk to an engine that can go on where the last life ended.

Law: nothing is assumed about the last life but what was committed; the ledger's rows are checked against the tip's
state root before anything is built on them.
"""

from node.clock import read_clock
from node.config.settings import NodeConfig, Role
from node.keystore.keys import NodeKeys
from node.runtime.recoveries import follow_recoveries
from node.store.database import Store
from node.store.sign_guard import SignGuard
from protocol.engine.engine import Engine
from protocol.engine.ledger_facts import LedgerFacts
from protocol.engine.own_transactions import OwnTransactions
from protocol.engine.replica import Replica
from protocol.engine.restored import RestoredConsensus
from protocol.gossip.router import GossipRouter
from protocol.ledger.mempool import Mempool
from protocol.market.buyer import Buyer
from protocol.market.order_book import OrderBook
from protocol.market.policies import BuyerPolicy, QuotePolicy, SellerPolicy
from protocol.market.ranking import Weights
from protocol.market.seller import Seller
from protocol.messages.effects import Effect, Table
from protocol.messages.genesis import Genesis, Parameters
from protocol.primitives.units import Amount, DurationMs, Height


def assemble(config: NodeConfig, keys: NodeKeys, genesis: Genesis, store: Store, guard: SignGuard | None) -> Engine:
    """The engine over the stored state.

    Raises ``StoreCorrupt`` when the state is not what its tip says, ``RecoveryRefused`` for a recovery document that
    it can't follow.
    """
    state = store.load_state()
    follow_recoveries(config.recovery, state, store)
    mempool = Mempool(genesis)
    own = keys.authority_id if Role.AUTHORITY in config.roles else None
    replica = Replica(
        genesis, state, mempool, own, keys.node_id, restored_consensus(store, state.height, guard), store.tip()
    )
    facts = LedgerFacts(state)
    book = OrderBook()
    return Engine(
        node=keys.node_id,
        account=keys.account_id,
        replica=replica,
        gossip=GossipRouter(keys.node_id, bytes(keys.node)[:16]),
        book=book,
        buyer=Buyer(keys.account_id, keys.node_id, facts, book, buyer_policy(config)),
        seller=Seller(keys.account_id, keys.node_id, facts, seller_policy(config, state.parameters)),
        own=OwnTransactions(keys.account_id),
    )


def restored_consensus(store: Store, tip: Height, guard: SignGuard | None) -> RestoredConsensus:
    """The journal of the open height and what the guard holds."""
    return RestoredConsensus.from_rows(
        tip,
        store.load_table(Table.CONSENSUS_CERTIFICATE),
        store.load_table(Table.CONSENSUS_BODY),
        store.load_table(Table.STANDING),
        guard.held() if guard is not None else (),
        guard.watermark() if guard is not None else Height(0),
        store.load_table(Table.CONSENSUS_PROPOSAL),
    )


def taken_up(engine: Engine, store: Store) -> list[Effect]:
    """What the market and our own transactions want to say after a restart; before the first input."""
    now = read_clock()
    return [
        *engine.restore(
            buyer_lanes=[value for _, value in store.load_table(Table.BUYER_LANE)],
            seller_lanes=[value for _, value in store.load_table(Table.SELLER_LANE)],
            own_transactions=[value for _, value in store.load_table(Table.OWN_TRANSACTION)],
            row=store.get,
            now=now,
            standing=store.load_table(Table.STANDING),
        )
    ]


def buyer_policy(config: NodeConfig) -> BuyerPolicy:
    """The buyer's settings as the market takes them."""
    deposit = Amount(config.buyer.channel_deposit)
    weights = config.buyer.weights
    return BuyerPolicy(
        weights=Weights(weights.price, weights.speed, weights.reputation, weights.region),
        region_preferred=config.buyer.region_preferred,
        channel_deposit=deposit,
        channel_top_up=deposit,
        channel_idle_ms=DurationMs(config.buyer.channel_idle_ms),
        patience_ms=DurationMs(config.buyer.patience_ms),
        report_failures=config.buyer.report_failures,
    )


def seller_policy(config: NodeConfig, parameters: Parameters) -> SellerPolicy:
    """The provider's settings as the market takes them; what costs more than it brings is not redeemed."""
    provider, quotes = config.provider, config.provider.quotes
    return SellerPolicy(
        quotes=QuotePolicy(
            answer=quotes.answer,
            discount_permille=quotes.discount_permille,
            floor_permille=quotes.floor_permille,
            request_floor=Amount(quotes.request_floor),
            input_per_thousand_floor=Amount(quotes.input_per_thousand_floor),
            output_per_thousand_floor=Amount(quotes.output_per_thousand_floor),
            valid_ms=DurationMs(quotes.valid_ms),
            slots_held_permille=quotes.slots_held_permille,
        ),
        slots=provider.slots,
        chunk_units_max=provider.chunk_units,
        trust_permille=provider.trust_permille,
        redeem_amount=Amount(provider.redeem.amount),
        redeem_age_ms=DurationMs(provider.redeem.age_ms),
        redeem_worth_min=Amount(parameters.fee_min + parameters.redeem_fee_min + 1),
    )
