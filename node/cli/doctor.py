"""``mercat doctor``: what this machine lacks to take part, and the remedy for each lack.

Law: a check tries the real thing (opens a port, starts the sandbox and attacks it) instead of guessing from versions.
"""

import importlib.util
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node.cli.cluster_layout import default_model_store
from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import default_node_directory, directory_option, with_output
from node.cli.output import Output, table

if TYPE_CHECKING:
    from node.worker.sandbox.probe import IsolationReport

NEEDED_MODULES = ("aiohttp", "blake3", "cryptography", "msgpack", "msgspec", "nacl", "platformdirs", "structlog")
SELLING_MODULES = ("cffi", "numpy", "onnxruntime", "wasmtime", "xllamacpp")
DISK_BYTES_MIN = 1024**3
"""A ledger of a million blocks, and logs; model files need more."""
OPEN_FILES_MIN = 1024


class Finding(msgspec.Struct, frozen=True):
    """One check: whether it holds, what was seen, and what to do if not."""

    name: str
    holds: bool
    needed: bool
    detail: str
    remedy: str = ""


def _python(_folder: Path, _sell: bool) -> Iterator[Finding]:
    version = sys.version.split()[0]
    yield Finding("Python", sys.version_info >= (3, 11), True, version, "install Python 3.11 or newer")
    missing = [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]
    remedy = "run ./scripts/setup in the checkout, or reinstall mercat"
    yield Finding("libraries", not missing, True, f"missing: {', '.join(missing)}" if missing else "all found", remedy)


def _selling_libraries(_folder: Path, sell: bool) -> Iterator[Finding]:
    missing = [name for name in SELLING_MODULES if importlib.util.find_spec(name) is None]
    remedy = "install the provider's part: pip install 'mercat[provider]'"
    detail = f"missing: {', '.join(missing)}" if missing else "all found"
    yield Finding("model runtimes", not missing, sell, detail, remedy)


def _system(_folder: Path, _sell: bool) -> Iterator[Finding]:
    import resource

    linux = sys.platform == "linux"
    yield Finding("system", linux, False, sys.platform, "selling and `mercat cluster` need Linux; buying does not")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding("open files", soft >= OPEN_FILES_MIN, True, f"up to {soft}", f"ulimit -n {OPEN_FILES_MIN}")


def _loopback(_folder: Path, _sell: bool) -> Iterator[Finding]:
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=2),
        ):
            pass
        yield Finding("loopback ports", True, True, "a connection to 127.0.0.1 works")
    except OSError as error:
        yield Finding("loopback ports", False, True, str(error), "allow connections on the interface lo")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _disk(folder: Path, _sell: bool) -> Iterator[Finding]:
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{free / 1024**3:.1f} GiB free for {folder}"
    yield Finding("disk space", free >= DISK_BYTES_MIN, True, detail, "free at least 1 GiB or choose another --dir")


def _keystore(folder: Path, _sell: bool) -> Iterator[Finding]:
    from node.keystore.errors import KeystoreError
    from node.keystore.files import list_keys, refuse_exposed

    keys = folder / "keys"
    if not keys.exists():
        yield Finding("keystore", True, False, f"none yet in {keys}; `mercat join` makes one")
        return
    try:
        refuse_exposed(keys)
        found = ", ".join(record.purpose.value for record in list_keys(keys)) or "no keys"
        yield Finding("keystore", True, True, f"{found} in {keys}")
    except KeystoreError as error:
        yield Finding("keystore", False, True, str(error), "see the detail")


def _configuration(folder: Path, _sell: bool) -> Iterator[Finding]:
    import os

    from node.config.genesis_file import load_genesis
    from node.config.loading import check_exposure, load_config
    from protocol.primitives.errors import UserError

    path = folder / "config.toml"
    if not path.exists():
        yield Finding("configuration", True, False, f"none yet in {path}; `mercat join` makes one")
        return
    try:
        config = load_config(path, os.environ).config
        check_exposure(config, load_genesis(config.genesis))
        yield Finding("configuration", True, True, str(path))
    except UserError as error:
        yield Finding("configuration", False, True, str(error), f"edit {path}")


def _upstreams(folder: Path, sell: bool) -> Iterator[Finding]:
    import asyncio
    import os

    from node.config.loading import load_config
    from node.worker.errors import WorkerError
    from node.worker.upstream import UpstreamAddress, UpstreamServer
    from protocol.primitives.errors import UserError

    async def probe(address: UpstreamAddress) -> None:
        async with UpstreamServer(address, 1) as server:
            await server.probe()

    try:
        models = load_config(folder / "config.toml", os.environ).config.provider.models
    except UserError:
        return  # told already, or there is none
    for model in models:
        if not model.upstream:
            continue
        address = UpstreamAddress(model.upstream, model.model, model.server, model.weights, model.api_key_file)
        name = f"upstream {model.model}"
        try:
            asyncio.run(probe(address))
            yield Finding(name, True, sell, f"{model.upstream} answers; isolation is declared, never proved")
        except WorkerError as error:
            remedy = "start the server, or correct its entry in provider.models"
            yield Finding(name, False, sell, error.reason, remedy)


def _model_store(_folder: Path, sell: bool) -> Iterator[Finding]:
    from node.worker.models import ModelStore

    store = default_model_store()
    if not store.exists():
        yield Finding("model store", True, False, f"none yet in {store}; a provider fills it at its first start")
        return
    try:
        names = ", ".join(manifest.name for _, manifest in ModelStore(store).models())
        yield Finding("model store", True, sell, f"{names or 'empty'} in {store}")
    except OSError as error:
        yield Finding("model store", False, sell, str(error), f"make {store} writable, or delete it to start afresh")


def _sandbox(_folder: Path, sell: bool) -> Iterator[Finding]:
    import asyncio

    from node.worker.limits import DEFAULT_LIMITS
    from node.worker.sandbox.probe import probe

    report = asyncio.run(probe(DEFAULT_LIMITS))
    yield Finding("isolation", report.level != "none", sell, _level_text(report), "see the sandbox lines below")
    attacks = [check for check in report.checks if check.attack]
    for check in report.checks:
        if not check.attack or not check.passed:
            # What `fallback` lacks is told, and is no reason not to sell what it is enough for.
            needed = sell and check.needed and report.level == "none"
            yield Finding(f"sandbox: {check.name}", check.passed, needed, check.detail, check.remedy)
    if attacks:
        stopped = sum(check.passed for check in attacks)
        detail = f"{stopped} of {len(attacks)} were stopped"
        yield Finding("sandbox: attacks from inside", stopped == len(attacks), False, detail, "see those that were not")


def _level_text(report: "IsolationReport") -> str:
    match report.level:
        case "strong":
            return "strong: every kind of model can be sold"
        case "fallback":
            return "fallback: sells WASM only, unless provider.isolation is 'fallback'"
        case "none":
            return "none: this machine can't sell"


CHECKS: tuple[Callable[[Path, bool], Iterator[Finding]], ...] = (
    _python,
    _system,
    _loopback,
    _disk,
    _keystore,
    _configuration,
    _selling_libraries,
    _upstreams,
    _model_store,
    _sandbox,
)


def examine(folder: Path, sell: bool) -> list[Finding]:
    """All checks, in order. ``sell``: what only a provider needs counts as needed."""
    return [finding for check in CHECKS for finding in check(folder, sell)]


@click.command()
@click.option("--sell", is_flag=True, help="Also insist on what only a provider needs.")
@directory_option("the default node's")
@with_output
def doctor(output: Output, sell: bool, directory: Path | None) -> None:
    """Check this machine: what is missing, and the remedy. Exit code 1 if something needed is missing."""
    findings = examine((directory or default_node_directory()).absolute(), sell)

    def verdict(finding: Finding) -> str:
        return "ok" if finding.holds else "MISSING" if finding.needed else "lacks" if sell else "to sell only"

    rows = [
        (verdict(finding), finding.name, finding.detail if finding.holds else f"{finding.detail}. {finding.remedy}")
        for finding in findings
    ]
    failed = [finding.name for finding in findings if finding.needed and not finding.holds]
    output.show(findings, table(("", "CHECK", "DETAIL AND REMEDY"), rows), failed)
    if failed:
        raise CommandFailed(f"missing: {', '.join(failed)}", ExitCode.FAILED, "missing")
