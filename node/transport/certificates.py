"""Certificates that carry a node's Ed25519 key into TLS.

Law: the chain proves nothing. Its signing key is public, so that anybody can make the certificate of any node; what
counts is that TLS 1.3 proves possession of the leaf's key and that we compare this key with a node id. The leaf is a
pure function of the node's public key: fixed dates, serial number from the key's hash, deterministic signature.

Source: RFC 5280 (profile), RFC 8410 (Ed25519 in X.509), RFC 8446 §4.4.3 (proof of possession).
"""

import ssl
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import NodeId

_PUBLIC_SIGNING_SEED = blake2b(
    b"mercat/link-certificates: this key is public and proves nothing", digest_size=32
).digest()
_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280 §4.1.2.5: the value for "no well-defined expiration"."""


class WrongPeerKey(RemoteProtocolError):
    """The other end of a connection did not prove the node id that it should have."""


def _public_signing_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_PUBLIC_SIGNING_SEED)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _serial_number(key: bytes) -> int:
    """Positive and below 2^159, as RFC 5280 asks."""
    return int.from_bytes(blake2b(key, digest_size=19).digest(), "big") | 1


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@lru_cache(maxsize=1)
def root_certificate() -> bytes:
    """PEM of the certificate that every node trusts as issuer, and that proves nothing."""
    key = _public_signing_key()
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name("mercat links"))
        .issuer_name(_name("mercat links"))
        .public_key(public)
        .serial_number(_serial_number(public.public_bytes(Encoding.Raw, PublicFormat.Raw)))
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(key, None).public_bytes(Encoding.PEM)


def leaf_certificate(node: NodeId) -> bytes:
    """PEM of the one certificate that belongs to a node id."""
    issuer = _public_signing_key()
    public = Ed25519PublicKey.from_public_bytes(node)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(node.hex()))
        .issuer_name(_name("mercat links"))
        .public_key(public)
        .serial_number(_serial_number(node))
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    return builder.sign(issuer, None).public_bytes(Encoding.PEM)


def proved_node(tls: object) -> NodeId:
    """The node id whose key the other end of a finished TLS handshake has proved to hold.

    ``tls`` is asyncio's extra info ``ssl_object``, or a blocking socket. Raises ``WrongPeerKey`` when it is no TLS 1.3
    connection, when the peer showed no certificate, or when the certificate's key is not Ed25519.
    """
    if not isinstance(tls, ssl.SSLObject | ssl.SSLSocket) or tls.version() != "TLSv1.3":
        raise WrongPeerKey("not a TLS 1.3 connection")
    certificate = tls.getpeercert(binary_form=True)
    if certificate is None:
        raise WrongPeerKey("peer showed no certificate")
    return certified_node(certificate)


def certified_node(certificate: bytes) -> NodeId:
    """The node id in a certificate (DER). Raises ``WrongPeerKey`` on any bytes that carry none.

    What OpenSSL takes for a certificate need not be one to the library that reads its key: versions that don't exist
    and kinds of key that it does not know are errors of their own there.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise WrongPeerKey(f"peer's certificate does not parse: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise WrongPeerKey("peer's certificate does not carry an Ed25519 key")
    return NodeId(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
