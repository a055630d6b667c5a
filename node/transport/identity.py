"""A node's key as TLS sees it: the node id and the two cached contexts.

Law: the private key reaches OpenSSL through an anonymous memory file, never through a file on disk. Chain building is
required on both sides only so that each side must show a certificate; who the peer is, ``proved_node`` decides.
"""

import os
import ssl
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from node.transport.certificates import leaf_certificate, root_certificate
from protocol.primitives.units import NodeId


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class NodeIdentity:
    """A node's Ed25519 key, from its 32-byte seed. Needs Linux (memory files)."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.node_id = NodeId(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @cached_property
    def server_context(self) -> ssl.SSLContext:
        """For accepted connections: TLS 1.3 alone, client certificate required, no session tickets."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0
        return context

    @cached_property
    def client_context(self) -> ssl.SSLContext:
        """For dialed connections: TLS 1.3 alone, both certificates required."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=root_certificate().decode())
        self._load_key(context)
        return context

    def _load_key(self, context: ssl.SSLContext) -> None:
        """ssl takes a path only: the one of a memory file that is gone once this returns."""
        secret = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        descriptor = os.memfd_create("mercat-link-key", os.MFD_CLOEXEC)
        try:
            _write_all(descriptor, leaf_certificate(self.node_id) + secret)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
