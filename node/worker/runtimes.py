"""What each runtime needs from this machine: Python packages, their pinned versions, and how a child is started.

Law: only the packages named here are shown to a worker. The pair behind `gguf` is pinned exactly, because its two
halves meet at a binary interface.
"""

import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node.worker.child.runtime import TEXTS_MAX
from node.worker.errors import RuntimeUnavailable
from node.worker.sandbox.launch import interpreter_binds
from node.worker.sandbox.layers import CODE, SITE, Bind

CHILD_FOLDER = Path(__file__).parent / "child"
CHILD_SOURCE = (
    f"import sys; sys.path[:0] = [sys.argv[1] + {CODE!r}, sys.argv[1] + {SITE!r}]"
    "; from node.worker.child.main import main; main()"
)


@dataclass(frozen=True, slots=True)
class RuntimePackages:
    """The distributions a runtime imports, those whose version is part of its build, and exact pins."""

    distributions: tuple[str, ...]
    build: tuple[str, ...]
    pinned: Mapping[str, str]


RUNTIMES: dict[str, RuntimePackages] = {
    "echo": RuntimePackages(("msgpack",), (), {}),
    "onnx": RuntimePackages(("msgpack", "numpy", "onnxruntime", "tokenizers"), ("onnxruntime", "tokenizers"), {}),
    "wasm": RuntimePackages(("msgpack", "wasmtime"), ("wasmtime",), {}),
    "gguf": RuntimePackages(
        ("msgpack", "numpy", "cffi", "pycparser", "xllamacpp", "llama-cpp-py-sync"),
        ("xllamacpp", "llama-cpp-py-sync"),
        {"xllamacpp": "2026.10.11549", "llama-cpp-py-sync": "0.11548"},
    ),
}


def runtime_build(runtime: str) -> str:
    """The runtime's build as it goes into offers and receipts. Raises RuntimeUnavailable when it can't run here."""
    packages = RUNTIMES.get(runtime)
    if packages is None:
        raise RuntimeUnavailable(f"no worker serves the {runtime} runtime: name the server itself in provider.models")
    versions = {}
    for name in packages.distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise RuntimeUnavailable(
                f"the {runtime} runtime needs the package {name}: install this project with its 'provider' extra"
            ) from None
    for name, version in packages.pinned.items():
        if versions[name] != version:
            raise RuntimeUnavailable(f"the {runtime} runtime needs {name} {version}; {versions[name]} is installed")
    return " + ".join(f"{name} {versions[name]}" for name in packages.build) or f"{runtime} 1"


def available_runtimes() -> tuple[str, ...]:
    """The runtimes whose packages are installed here."""
    found = []
    for runtime in RUNTIMES:
        try:
            runtime_build(runtime)
        except RuntimeUnavailable:
            continue
        found.append(runtime)
    return tuple(found)


NODE_DECIDES = ("batch_max", "canonical")
"""Settings that no manifest may name: receipts would not show what was decided."""


def node_settings(runtime: str, settings: Mapping[str, int | str], batch_max: int) -> dict[str, int]:
    """What the node decides for a model and output bits may depend on: it goes to the worker and into receipts.

    A manifest's ``batch_rows`` says how many rows of its model may be run as one; ``batch_max`` is the operator's
    limit.
    """
    if runtime != "onnx":
        return {}
    rows = settings.get("batch_rows", 1)
    return {"batch_max": max(1, min(rows, batch_max)) if isinstance(rows, int) else 1}


def input_units_max(runtime: str, settings: Mapping[str, int | str]) -> int:
    """The most input units that one job of this model can have; 0 where the model itself sets no limit."""
    if runtime == "onnx":
        tokens = settings.get("tokens_max")
        if settings.get("pipeline") in ("embedding", "classification") and isinstance(tokens, int):
            return max(1, tokens) * TEXTS_MAX
        return 1
    return 1 if runtime == "wasm" else 0


@functools.cache
def _package_binds(name: str) -> tuple[Bind, ...]:
    """The top-level folders and files of one installed distribution, without its metadata and scripts.

    Looked up once: a distribution's list of files takes tens of milliseconds to read, at every start of a worker.
    """
    distribution = importlib.metadata.distribution(name)
    tops: dict[str, Path] = {}
    for file in distribution.files or ():
        top = file.parts[0]
        if top in ("..", "__pycache__") or top.endswith((".dist-info", ".pth", ".egg-info")):
            continue
        tops[top] = Path(str(distribution.locate_file(top))).resolve()
    if not tops:
        raise RuntimeUnavailable(f"the installed package {name} doesn't list its files")
    return tuple(Bind(path, f"{SITE}/{top}") for top, path in sorted(tops.items()))


def child_binds(runtime: str) -> tuple[Bind, ...]:
    """Everything a child of this runtime sees besides the system's libraries and its model."""
    binds = [*interpreter_binds(), Bind(CHILD_FOLDER, f"{CODE}/node/worker/child")]
    for name in RUNTIMES[runtime].distributions:
        binds += _package_binds(name)
    return tuple(binds)
