"""Where attempts are made: the real launcher, with what a node has around it.

Law: the layers in force come from one place, so that the gate can take one away without touching a test.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

from node.worker.limits import DEFAULT_LIMITS
from node.worker.runtimes import CHILD_SOURCE
from node.worker.sandbox import probe
from node.worker.sandbox.layers import FALLBACK_LAYERS, STRONG_LAYERS, Bind, Layers

WITHOUT = "MERCAT_TEST_WITHOUT_LAYER"
"""Environment variable that names a field of ``Layers`` to switch off: the gate's."""
ENDED = "the worker ended"
BOUND_KEY = "/model/key"


def weakened(layers: Layers) -> Layers:
    """The layers less the one that the gate takes away."""
    field = os.environ.get(WITHOUT)
    return dataclasses.replace(layers, **{field: False}) if field else layers


SERVING = weakened(STRONG_LAYERS)
"""While a stranger's bytes are read."""
STARTING = weakened(dataclasses.replace(STRONG_LAYERS, filter_after_imports=False))
"""Before that: what a runtime's package could do while it is imported."""
FALLBACK = weakened(FALLBACK_LAYERS)


def source(parameters: dict[str, str]) -> str:
    """The worker's program with the attempts of this folder beside its own."""
    imports, _, start = CHILD_SOURCE.partition("; from node")
    attempts = Path(__file__).with_name("attempts.py").read_text(encoding="utf-8")
    joined = "canaries.ATTACKS.update(ATTEMPTS)\ncanaries.LETHAL.update(LETHAL)"
    added = f"PARAMETERS.update({json.dumps(parameters)})\n{joined}"
    return f"{imports}\n{attempts}\n{added}\nfrom node{start}"


async def attempt(names: tuple[str, ...], layers: Layers) -> tuple[dict[str, str], int]:
    """What came of each attempt: the error that stopped it, or what it got; and the launcher's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        keys = {"closed_key": 0o600, "open_key": 0o644, "bound_key": 0o600}
        parameters = {"node": str(os.getpid())}
        for name, mode in keys.items():
            path = Path(folder) / name
            path.write_bytes(b"secret")
            path.chmod(mode)
            parameters[name] = str(path)
        bind = Bind(Path(parameters["bound_key"]), BOUND_KEY)
        parameters["bound_key"] = BOUND_KEY
        done, _, status = await probe.canaries(names, DEFAULT_LIMITS, layers, source(parameters), (bind,))
    seen = {canary.name: canary.seen if canary.stopped else f"GOT THROUGH: {canary.seen}" for canary in done}
    return {name: seen.get(name, ENDED) for name in names}, status
