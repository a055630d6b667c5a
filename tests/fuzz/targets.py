"""The table of targets: what is handed an input, which errors it may answer with, and good inputs to start from.

Law: a target's errors say whose fault it was (the peer's, the file's, the worker's); memory and time of one input are
bounded. Kinds of messages come from the protocol's own tables, so that a new kind is covered without an edit here.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from tests.fuzz import documents, peers

Seeds = Callable[[], list[bytes]]


class Target(NamedTuple):
    """``run`` raises one of ``errors`` or nothing; anything else is a finding."""

    run: Callable[[bytes], None]
    errors: tuple[type[Exception], ...]
    seeds: Seeds
    share: int
    """Its part of a run's inputs, in thousandths: cheap targets take more."""
    bytes_max: int = 4096


TARGETS: dict[str, Target] = {
    "frame": Target(peers.split_any_frame, peers.ERRORS, peers.frames, 124),
    "piece_message": Target(peers.decode_any_piece_message, peers.ERRORS, peers.piece_messages, 16),
    "envelope": Target(peers.open_any_envelope, peers.ERRORS, peers.envelopes, 136),
    "payload": Target(peers.decode_any_payload, peers.ERRORS, peers.payloads, 140),
    "greeting": Target(peers.greet_anybody, peers.ERRORS, peers.greetings, 40),
    "handshake": Target(peers.shake_hands, peers.HANDSHAKE_ERRORS, peers.handshakes, 20),
    "key_certificate": Target(peers.read_key_certificate, peers.ERRORS, peers.key_certificates, 40),
    "engine": Target(peers.besiege, (), peers.no_seeds, 36),
    "block": Target(peers.execute_any_blocks, (), peers.no_seeds, 16),
    "block_bytes": Target(peers.execute_block_bytes, peers.BLOCK_ERRORS, peers.block_bytes, 60),
    "certificate": Target(peers.check_any_certificate, peers.ERRORS, peers.no_seeds, 60),
    "receipt_file": Target(documents.verify_receipt_file, documents.ERRORS, documents.receipt_files, 60),
    "genesis_file": Target(documents.read_genesis_file, documents.ERRORS, documents.genesis_files, 60),
    "config_file": Target(documents.read_config_file, documents.ERRORS, documents.config_files, 16),
    "key_file": Target(documents.read_stored_key, documents.ERRORS, documents.key_files, 30),
    "peer_cache": Target(documents.read_peer_cache, (), documents.peer_caches, 30),
    "worker_frame": Target(documents.read_worker_frame, documents.WORKER_ERRORS, documents.worker_frames, 40),
    "manifest": Target(documents.parse_any_manifest, documents.DESCRIPTION_ERRORS, documents.manifests, 40),
    "description": Target(documents.read_description, documents.DESCRIPTION_ERRORS, documents.descriptions, 20),
    "control_request": Target(documents.ask_control, (), documents.control_requests, 16),
}


def attempt(target: Target, content: bytes) -> None:
    """Run one input; whatever the target may not raise comes through."""
    with contextlib.suppress(*target.errors):
        target.run(content)
