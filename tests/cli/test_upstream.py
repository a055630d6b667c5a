"""An upstream server on the command line: sold in one line, asked by the doctor."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import click
import pytest
from msgspec.structs import replace

from node.cli.doctor import Finding, _upstreams
from node.cli.failures import CommandFailed
from node.cli.provider import as_provider, upstream_models
from node.config.settings import ProviderConfig, ProviderModel, Role
from tests.cli.test_provider import CONFIG

URL = "http://127.0.0.1:8000/v1"


def test_a_buyers_node_becomes_a_provider_of_a_server_and_keeps_prices_that_it_names() -> None:
    sold = upstream_models(URL, ("big", "small"), "vllm", None)
    assert [(model.upstream, model.model, model.server) for model in sold] == [
        (URL, "big", "vllm"),
        (URL, "small", "vllm"),
    ]
    priced = ProviderModel(upstream=URL, model="small", request=77)
    described = ProviderModel(description="echo")
    config = replace(CONFIG, provider=ProviderConfig(models=(described, priced)))
    adjusted = as_provider(config, (), sold)
    assert adjusted.provider.models == (sold[0], priced)
    assert Role.PROVIDER in adjusted.roles


def test_a_server_without_a_model_is_wrong_usage() -> None:
    with pytest.raises(click.UsageError, match="--model NAME"):
        upstream_models(URL, (), "other", None)


def test_an_address_or_a_key_that_can_not_be_used_is_told_before_the_node_starts(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="not an address"):
        upstream_models("127.0.0.1:8000", ("big",), "other", None)
    key = tmp_path / "key"
    key.write_text("sk-abc")
    key.chmod(0o644)
    with pytest.raises(CommandFailed, match="can be read by others"):
        upstream_models(URL, ("big",), "other", key)
    with pytest.raises(CommandFailed, match="over https or to this machine"):
        upstream_models("http://192.0.2.1/v1", ("big",), "other", key)


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = b'{"data":[{"id":"tiny"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Models) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()
        thread.join()


def findings(folder: Path, *models: tuple[str, str]) -> list[Finding]:
    text = 'genesis = "g"\nstate = "s"\n[keystore]\ndirectory = "keys"\n'
    for url, model in models:
        text += f'[[provider.models]]\nupstream = "{url}"\nmodel = "{model}"\n'
    (folder / "config.toml").write_text(text)
    return list(_upstreams(folder, True))


def test_the_doctor_asks_each_server_for_its_model(server: str, tmp_path: Path) -> None:
    good, other, gone = findings(tmp_path, (server, "tiny"), (server, "huge"), ("http://127.0.0.1:9/v1", "tiny"))
    assert (good.name, good.holds) == ("upstream tiny", True)
    assert "never proved" in good.detail
    assert (other.holds, other.needed) == (False, True)
    assert "it has: tiny" in other.detail
    assert "can't be reached" in gone.detail
    assert "start the server" in gone.remedy


def test_the_doctor_says_nothing_of_servers_where_there_are_none(tmp_path: Path) -> None:
    assert findings(tmp_path) == []
    assert list(_upstreams(tmp_path / "nowhere", True)) == []
