"""Which models run in canonical mode: same request, same bits, whatever else the worker does.

With the settings that the gguf runtime always runs with, logits don't depend on how a prompt was cut, on what is kept
of an earlier job, or on the other jobs of a batch, if all weights are stored in forms whose products don't depend on
the size of a batch. Whether they are is read from the model's own file: a manifest may call its quantisation what it
likes. The word goes to the worker, which keeps prompts between jobs of such models only, and into receipts, because
later audits replay such outputs bit for bit.

Source: measured over llama.cpp with flash attention, batches of 32 rows and one thread.
"""

import functools
from pathlib import Path

from node.worker.gguf_header import has_invariant_weights
from node.worker.models import Manifest, ModelStore

FILES_REMEMBERED = 64
_judged = functools.lru_cache(FILES_REMEMBERED)(has_invariant_weights)  # stored files are named by their content


def canonical_settings(store: ModelStore, manifest: Manifest) -> dict[str, int]:
    """`{"canonical": 1}` for a model that runs in canonical mode, nothing for others."""
    name = manifest.settings.get("model_file")
    if manifest.runtime != "gguf":
        return {}
    paths: list[Path] = [store.file_path(file).resolve() for file in manifest.files if file.path == name]
    return {"canonical": 1} if paths and all(map(_judged, paths)) else {}
