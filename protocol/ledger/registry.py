"""The register of models: who published a manifest, and since which block.

Law: a model's id is the BLAKE3 hash of its manifest, so an entry fixes every byte of the model. Who comes first is its
publisher for good. An entry holds no credits; it costs several times a transaction's least fee, because every node
keeps it for ever.
"""

from protocol.ledger.errors import ManifestMismatch, ModelRegistered
from protocol.ledger.rows import Registration
from protocol.ledger.view import Context, Overlay
from protocol.messages.genesis import Parameters
from protocol.messages.transactions import MANIFEST_CARRIED_BYTES_MAX, ModelRegister
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import AMOUNT_MAX, AccountId, Amount, ModelId

REGISTER_FEES = 10
"""Least fees that an entry costs: a row and up to 4 KiB in a block that never go."""


def register_fee(parameters: Parameters) -> Amount:
    """The least fee of registering a model, in base units."""
    return Amount(min(parameters.fee_min * REGISTER_FEES, AMOUNT_MAX))


def register(overlay: Overlay, context: Context, sender: AccountId, action: ModelRegister) -> None:
    """Enter a model. Raises ``ManifestMismatch``, ``ModelRegistered``."""
    if action.manifest:
        if ModelId(content_hash(action.manifest)) != action.model:
            raise ManifestMismatch(reason="the manifest has another hash than the model's id")
        if len(action.manifest) != action.manifest_size:
            raise ManifestMismatch(reason=f"the manifest has {len(action.manifest)} bytes, not {action.manifest_size}")
    elif action.manifest_size <= MANIFEST_CARRIED_BYTES_MAX:
        raise ManifestMismatch(reason=f"a manifest of {action.manifest_size} bytes must come with the transaction")
    known = overlay.registration(action.model)
    if known is not None:
        raise ModelRegistered(publisher=known.publisher.hex(), height=known.height)
    overlay.registrations[action.model] = Registration(sender, context.height, action.manifest_size)
