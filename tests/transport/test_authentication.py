"""Who is at the other end: every way of not being the node that one claims to be is refused before a byte counts."""

import asyncio
import os
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from node.transport import certificates
from node.transport.certificates import WrongPeerKey, leaf_certificate, proved_node, root_certificate
from node.transport.identity import NodeIdentity
from tests.transport.network import RecordingNode, identity_of, record_of, seed_of


def _client_context(*, certificate: bytes | None = None, scratch: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=root_certificate().decode())
    if certificate is not None and scratch is not None:
        path = scratch / "certificate.pem"
        path.write_bytes(certificate)
        context.load_cert_chain(path)
    return context


async def _dial_raw(node: RecordingNode, context: ssl.SSLContext) -> None:
    url = f"wss://{node.endpoint}/"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=context) as socket:
        await socket.receive()


def test_leaf_certificate_is_a_pure_function_of_the_key() -> None:
    node = identity_of("a").node_id
    assert leaf_certificate(node) == leaf_certificate(node)
    assert leaf_certificate(node) != leaf_certificate(identity_of("b").node_id)


def test_key_leaves_no_open_descriptor_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert identity_of("a").server_context is not identity_of("a").client_context
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


async def test_dial_that_expects_another_key_is_refused_before_any_message() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        expected = identity_of("somebody else").node_id
        a.transport.dial(expected, (b.endpoint,), keep=False)
        await a.until(lambda: any("another node answers" in reason for reason in a.reasons("link.refused")))
        await b.until(lambda: any("another node answers" in reason for reason in b.reasons("link.refused")))
        assert a.log == b.log == []
        assert all(reason.startswith("peer said goodbye") for reason in b.reasons("link.refused")), "b was not greeted"


async def test_name_in_the_certificate_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = identity_of("victim")

    def names_the_victim(node: bytes) -> bytes:
        key = Ed25519PrivateKey.from_private_bytes(seed_of("mallory")).public_key()
        template = x509.load_pem_x509_certificate(leaf_certificate(victim.node_id))
        builder = x509.CertificateBuilder(
            issuer_name=template.issuer,
            subject_name=template.subject,
            public_key=key,
            serial_number=template.serial_number,
            not_valid_before=template.not_valid_before_utc,
            not_valid_after=template.not_valid_after_utc,
            extensions=[e for e in template.extensions if not isinstance(e.value, x509.SubjectKeyIdentifier)],
        )
        signed = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return signed.sign(certificates._public_signing_key(), None).public_bytes(Encoding.PEM)

    monkeypatch.setattr("node.transport.identity.leaf_certificate", names_the_victim)
    mallory = RecordingNode("mallory")
    assert mallory.identity.server_context is not None
    monkeypatch.undo()
    async with RecordingNode("a") as a, mallory:
        a.transport.dial(victim.node_id, (mallory.endpoint,), keep=False)
        await a.until(lambda: any("another node answers" in reason for reason in a.reasons("link.refused")))
        assert a.log == []


async def test_client_without_certificate_is_refused() -> None:
    async with RecordingNode("a") as a:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await _dial_raw(a, _client_context())
        assert a.log == []


async def test_client_with_certificate_of_another_issuer_is_refused(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    template = x509.load_pem_x509_certificate(leaf_certificate(identity_of("x").node_id))
    builder = x509.CertificateBuilder(
        issuer_name=template.subject,
        subject_name=template.subject,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=template.not_valid_before_utc,
        not_valid_after=template.not_valid_after_utc,
    )
    certificate = builder.sign(key, None).public_bytes(Encoding.PEM)
    certificate += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    async with RecordingNode("a") as a:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await _dial_raw(a, _client_context(certificate=certificate, scratch=tmp_path))
        assert a.log == []


async def test_older_tls_is_refused() -> None:
    context = identity_of("old")._context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with RecordingNode("a") as a:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await _dial_raw(a, context)


async def test_greeting_with_the_record_of_another_node_is_refused() -> None:
    async with RecordingNode("mallory", record=record_of("victim")) as mallory, RecordingNode("b") as b:
        mallory.transport.dial(b.node_id, (b.endpoint,), keep=False)
        await b.until(lambda: any("record of another node" in reason for reason in b.reasons("link.refused")))
        assert b.log == []
        assert b.store.record(identity_of("victim").node_id) is None


async def test_greeting_with_a_forged_record_is_refused() -> None:
    forged = record_of("mallory")[:-1] + bytes((record_of("mallory")[-1] ^ 1,))
    async with RecordingNode("mallory", record=forged) as mallory, RecordingNode("b") as b:
        mallory.transport.dial(b.node_id, (b.endpoint,), keep=False)
        await b.until(lambda: any("signature does not hold" in reason for reason in b.reasons("link.refused")))
        assert b.log == []
        assert len(b.store) == 0


def test_contexts_demand_certificates_on_both_sides_without_tickets() -> None:
    identity: NodeIdentity = identity_of("a")
    for context in (identity.server_context, identity.client_context):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_flags & ssl.VerifyFlags.VERIFY_X509_STRICT
    assert identity.server_context.num_tickets == 0
    assert identity.server_context is identity.server_context


def test_plain_connection_proves_no_node() -> None:
    with pytest.raises(WrongPeerKey):
        proved_node(None)


async def test_peer_that_redirects_a_dial_is_not_followed() -> None:
    requests: list[str] = []

    async def redirect(request: web.BaseRequest) -> web.StreamResponse:
        requests.append(request.path)
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    mallory = identity_of("mallory")
    server = web.Server(redirect, access_log=None)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server, "127.0.0.1", 0, ssl=mallory.server_context)
    host, port = listener.sockets[0].getsockname()
    async with RecordingNode("a") as a:
        a.transport.dial(mallory.node_id, (f"{host}:{port}",), keep=True)
        await a.until(lambda: "HTTP status 302 instead of a WebSocket" in a.reasons("dial.failed"))
    listener.close()
    await server.shutdown(1)
    assert {*requests} == {"/"}
