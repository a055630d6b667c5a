"""Hashes with domain separation: BLAKE2b-256 for messages, BLAKE3 for bulk content.

Law: the same bytes hashed for two purposes give two digests, because each purpose has a ``Domain`` of its own.
BLAKE2b's person field is not used for it: a visible prefix is easier to re-implement elsewhere.
"""

from enum import Enum
from hashlib import blake2b

from blake3 import blake3

from protocol.primitives.units import Hash, Salt


class Domain(bytes, Enum):
    """What a hash or a signature is for. The value is the prefix, ended by a zero byte so that none extends another."""

    ENVELOPE = b"mercat/envelope/1\0"
    MESSAGE_ID = b"mercat/message-id/1\0"
    ENVELOPE_BYTES = b"mercat/envelope-bytes/1\0"
    GENESIS = b"mercat/genesis/1\0"
    BLOCK_HEADER = b"mercat/block-header/1\0"
    CERTIFICATE = b"mercat/certificate/1\0"
    AUTHORITY_SET = b"mercat/authority-set/1\0"
    STANDING_NONCE = b"mercat/standing-nonce/1\0"
    TRANSACTION_LEAF = b"mercat/transaction-leaf/1\0"
    TRANSACTION_NODE = b"mercat/transaction-node/1\0"
    STATE_ROW = b"mercat/state-row/1\0"
    STATE_ROOT = b"mercat/state-root/1\0"
    STATE_PLACE = b"mercat/state-place/1\0"
    STATE_LEAF = b"mercat/state-leaf/1\0"
    STATE_PAGE = b"mercat/state-page/1\0"
    STATE_BRANCH = b"mercat/state-branch/1\0"
    CHANNEL_ID = b"mercat/channel-id/1\0"
    RECEIPT_LEAF = b"mercat/receipt-leaf/1\0"
    RECEIPT_NODE = b"mercat/receipt-node/1\0"
    RECEIPTS_ROOT = b"mercat/receipts-root/1\0"
    INPUT_COMMITMENT = b"mercat/input-commitment/1\0"
    EVIDENCE_WISH = b"mercat/evidence-wish/1\0"
    MARKET_WISH = b"mercat/market-wish/1\0"
    OUTPUT_COMMITMENT = b"mercat/output-commitment/1\0"
    CHUNK = b"mercat/chunk/1\0"
    JOB_ID = b"mercat/job-id/1\0"
    MATCH_TIE = b"mercat/match-tie/1\0"
    REPLICA = b"mercat/replica/1\0"
    QUOTE_SEAL = b"mercat/quote-seal/1\0"
    QUOTE_NONCE = b"mercat/quote-nonce/1\0"
    GOSSIP_DRAW = b"mercat/gossip-draw/1\0"


def digest(domain: Domain, *parts: bytes) -> Hash:
    """BLAKE2b-256 over the domain and the parts.

    Parts are concatenated without lengths: at most one of them may vary in size, or the caller frames them itself.
    """
    state = blake2b(domain, digest_size=32)
    for part in parts:
        state.update(part)
    return Hash(state.digest())


def content_hash(content: bytes) -> Hash:
    """BLAKE3 of bulk content: model files, manifests, data sets."""
    return Hash(blake3(content).digest())


def commitment(domain: Domain, salt: Salt, content: bytes) -> Hash:
    """Salted commitment to an input or output: binding, and hiding as long as the 32-byte salt is kept back."""
    return digest(domain, salt, content)
