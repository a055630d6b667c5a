"""What fuzzing has found, once each: inputs that escaped as errors of our own before they were handled."""

import json

import pytest

from tests.fuzz import documents, peers
from tests.fuzz.targets import TARGETS, attempt

DEEP = b"[" * 5_000 + b"]" * 5_000
FINDINGS: dict[str, tuple[str, bytes]] = {
    "a certificate of a version that does not exist": ("key_certificate", peers.key_certificates()[1]),
    "a certificate with an unknown kind of key": ("key_certificate", peers.key_certificates()[2]),
    "a count of failures without end": (
        "peer_cache",
        json.dumps({"version": 1, "peers": [{"record": "", "failures": float("inf")}]}).encode(),
    ),
    "settings nested too deeply": ("config_file", b"seeds = " + DEEP),
    "a number with too many digits": ("config_file", b"listen = " + b"9" * 5_000),
    "a description nested too deeply": ("description", b"name = " + DEEP),
    "a path in the home of nobody": ("config_file", b'state = "~nobody-of-this-name/state"'),
    "a description in the home of nobody": (
        "config_file",
        b'roles = ["provider"]\n[[provider.models]]\ndescription = "~nobody-of-this-name/a.toml"\n',
    ),
    "a parameter beyond every integer": (
        "genesis_file",
        documents.genesis_files()[0].replace(b'"heartbeat_ms": ', b'"heartbeat_ms": 1' + b"0" * 25),
    ),
    "a request whose text is not UTF-8": ("control_request", b'POST /v1/send\n{"recipient": "\xff"}'),
    "a request with a field whose name is not UTF-8": (
        "control_request",
        b'POST /v1/provider/bond\n{"am\xdd": 1, "timeout_ms": 1}',
    ),
}


@pytest.mark.parametrize(("name", "content"), FINDINGS.values(), ids=FINDINGS)
def test_input_that_once_escaped_is_somebodys_fault(name: str, content: bytes) -> None:
    attempt(TARGETS[name], content)


def test_seeds_are_inputs_that_their_targets_accept() -> None:
    for content in (peers.key_certificates()[0], *documents.genesis_files(), *documents.manifests()):
        assert any(_accepted(name, content) for name in ("key_certificate", "genesis_file", "manifest"))


def _accepted(name: str, content: bytes) -> bool:
    try:
        TARGETS[name].run(content)
    except TARGETS[name].errors:
        return False
    return True
