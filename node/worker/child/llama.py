"""llama.cpp through its C interface: one loaded model and its context, sequences in, logits out.

Two packages meet here: the shared object of one and the declarations of another, of neighbouring builds. Nothing
guards that binary interface, so `self_test` compares the structures' defaults before they are trusted, `llama_proof`
asks for a known answer, and the first decode after loading must give finite logits; otherwise the worker refuses to
serve.

Law: flash attention on, batches of 32 rows, one thread. With these, logits are the same bits however a prompt is cut
and whatever else is in the batch (measured for Q4_0, Q4_1, Q5_0 and Q8_0 weights), which is what makes an output
checkable.
"""

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from node.worker.child.runtime import LoadFailed

BATCH_ROWS = 32
THREADS = 1
FLASH_ATTENTION = 1
LOAD_BY_MMAP = 1
TOKEN_BYTES_MAX = 1024
SYMBOLS = (
    "llama_backend_init", "llama_model_default_params", "llama_context_default_params", "llama_model_load_from_file",
    "llama_init_from_model", "llama_model_get_vocab", "llama_vocab_n_tokens", "llama_vocab_is_eog", "llama_vocab_bos",
    "llama_vocab_get_add_bos", "llama_tokenize", "llama_token_to_piece", "llama_batch_init", "llama_decode",
    "llama_get_logits_ith", "llama_get_memory", "llama_memory_seq_rm", "llama_n_ctx_seq", "llama_print_system_info",
    "llama_free", "llama_model_free", "llama_batch_free",
)  # fmt: skip
# Defaults that this build is known to have; a shifted field would show another number.
MODEL_DEFAULTS: dict[str, int | float] = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0, "vocab_only": 0,
    "check_tensors": 0, "use_extra_bufts": 1, "no_host": 0, "no_alloc": 0, "load_mtp": 0,
}  # fmt: skip
CONTEXT_DEFAULTS: dict[str, int | float] = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_rs_seq": 0, "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1, "n_threads": 4, "n_threads_batch": 4, "ctx_type": 0, "rope_scaling_type": -1,
    "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1, "rope_freq_base": 0.0, "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0, "yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0, "defrag_thold": -1.0, "type_k": 1, "type_v": 1, "moe_cache_size": 0, "embeddings": 0,
    "offload_kqv": 1, "no_perf": 1, "op_offload": 1, "swa_full": 1, "kv_unified": 0, "n_samplers": 0,
}  # fmt: skip

Logits = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]


class DecodeFailed(Exception):
    """llama.cpp did not evaluate a batch."""


@dataclass(frozen=True, slots=True)
class Row:
    """One token to evaluate: its sequence, its position there, and whether its logits are wanted."""

    sequence: int
    token: int
    position: int
    wanted: bool


def _folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise LoadFailed(f"the package {package} is not installed")
    return Path(found.origin).parent


def _declarations() -> Any:
    """The declarations alone: the package around them would load its own, different library."""
    path = _folder_of("llama_cpp_py_sync") / "_cffi_bindings.py"
    spec = importlib.util.spec_from_file_location("_llama_declarations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.get_ffi()


def self_test(library: Any, model_defaults: dict[str, int | float], context_defaults: dict[str, int | float]) -> None:
    """Refuse a library whose structures aren't those that were declared. Raises LoadFailed."""
    for symbol in SYMBOLS:
        if not hasattr(library, symbol):
            raise LoadFailed(f"the library lacks {symbol}: not the pinned build")
    cases = (
        ("model", library.llama_model_default_params(), model_defaults),
        ("context", library.llama_context_default_params(), context_defaults),
    )
    for name, structure, expected in cases:
        for field, value in expected.items():
            seen = getattr(structure, field)
            if seen != value:
                raise LoadFailed(
                    f"the library's {name} defaults differ from the declarations: {field} is {seen}, not {value}"
                )


class Llama:
    """The library, then a model, then its context."""

    def __init__(self) -> None:
        """Load the library and test it; no model byte is read. Raises LoadFailed."""
        self._ffi = _declarations()
        candidates = sorted(_folder_of("xllamacpp").glob("xllamacpp*.so"))
        if not candidates:
            raise LoadFailed("the package xllamacpp has no shared object")
        self._library = self._ffi.dlopen(str(candidates[0]))
        self_test(self._library, MODEL_DEFAULTS, CONTEXT_DEFAULTS)
        self._library.llama_backend_init()
        self.processor: str = self._ffi.string(self._library.llama_print_system_info()).decode("ascii", "replace")
        self.context_tokens = 0
        self._ends: frozenset[int] = frozenset()

    def load(self, path: str, context_tokens: int, sequences: int) -> None:
        """Load a model file and make room for so many sequences of so many tokens. Raises LoadFailed."""
        library = self._library
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.load_mode = LOAD_BY_MMAP
        self._model = library.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise LoadFailed("not a usable GGUF model")
        self._vocabulary = library.llama_model_get_vocab(self._model)
        self.tokens = int(library.llama_vocab_n_tokens(self._vocabulary))
        wanted = library.llama_context_default_params()
        wanted.n_ctx = context_tokens * sequences
        wanted.n_batch = wanted.n_ubatch = BATCH_ROWS
        wanted.n_seq_max = sequences
        wanted.n_outputs_max = max(BATCH_ROWS, sequences)
        wanted.n_threads = wanted.n_threads_batch = THREADS
        wanted.flash_attn_type = FLASH_ATTENTION
        self._context = library.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise LoadFailed("no context of this size could be made for the model")
        self._memory = library.llama_get_memory(self._context)
        self._batch = library.llama_batch_init(BATCH_ROWS, 0, 1)
        self.context_tokens = min(context_tokens, int(library.llama_n_ctx_seq(self._context)))
        self._text_buffer = self._ffi.new("char[]", TOKEN_BYTES_MAX)
        self._first_answer()

    def unload(self) -> None:
        """Give the model and its context back."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def _first_answer(self) -> None:
        """One token through the model must give one finite number for each token of the vocabulary."""
        (logits,) = self.evaluate([Row(0, 0, 0, True)])
        if len(logits) != self.tokens or not math.isfinite(float(numpy.abs(logits).max())):
            raise LoadFailed("the model's first answer is not finite")
        self.keep(0, 0)

    def evaluate(self, rows: list[Row]) -> list[Logits]:
        """Run one batch of at most 32 rows; logits of the wanted rows, in order. Raises DecodeFailed.

        The library gets the rows by sequence: it computes together only sequences whose numbers follow each other in
        the batch, and reads the whole model anew for each such run.
        """
        assert 0 < len(rows) <= BATCH_ROWS
        batch = self._batch
        order = sorted(range(len(rows)), key=lambda number: rows[number].sequence)  # stable: positions keep rising
        for number, row in enumerate(rows[which] for which in order):
            batch.token[number] = row.token
            batch.pos[number] = row.position
            batch.n_seq_id[number] = 1
            batch.seq_id[number][0] = row.sequence
            batch.logits[number] = row.wanted
        batch.n_tokens = len(rows)
        status = self._library.llama_decode(self._context, batch)
        if status != 0:
            raise DecodeFailed(f"llama_decode returned {status}")
        places = {which: number for number, which in enumerate(order)}
        return [self._logits(places[which]) for which, row in enumerate(rows) if row.wanted]

    def _logits(self, number: int) -> Logits:
        pointer = self._library.llama_get_logits_ith(self._context, number)
        if not pointer:
            raise DecodeFailed("no logits for a wanted row")
        buffer = self._ffi.buffer(pointer, self.tokens * 4)
        return numpy.frombuffer(buffer, dtype=numpy.float32).copy()

    def keep(self, sequence: int, tokens: int) -> bool:
        """Drop all that is remembered of a sequence but its first tokens; False if the model can't do that."""
        return bool(self._library.llama_memory_seq_rm(self._memory, sequence, tokens or -1, -1))

    def tokenize(self, text: str, *, markers: bool, limit: int) -> list[int]:
        """Tokens of a text; `markers` lets the text hold control tokens. At most `limit` + 1 are returned."""
        encoded = text.encode("utf-8")
        room = len(encoded) + 2
        buffer = self._ffi.new("int32_t[]", room)
        count = self._library.llama_tokenize(self._vocabulary, encoded, len(encoded), buffer, room, False, markers)
        if count < 0:
            raise DecodeFailed("the text could not be tokenised")
        return [int(token) for token in buffer[0 : min(count, limit + 1)]]

    def begin(self) -> list[int]:
        """The token that the vocabulary wants before every prompt, if any."""
        if self._library.llama_vocab_get_add_bos(self._vocabulary):
            return [int(self._library.llama_vocab_bos(self._vocabulary))]
        return []

    def text_of(self, token: int) -> bytes:
        """The bytes of a token; nothing for control tokens."""
        count = self._library.llama_token_to_piece(
            self._vocabulary, token, self._text_buffer, TOKEN_BYTES_MAX, 0, False
        )
        return bytes(self._ffi.buffer(self._text_buffer, count)) if count > 0 else b""

    def ends(self, token: int) -> bool:
        """Whether this token ends the output."""
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, token))
