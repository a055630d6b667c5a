"""Texts through ONNX models: tokens counted, embeddings and labels, and what is refused and why."""

import asyncio
import json
import math
from pathlib import Path

import pytest

from node.worker.child.frames import Value
from node.worker.child.onnx import OnnxRuntime
from node.worker.child.runtime import TEXTS_MAX, LoadFailed, Piece, Prefilled, Refused, Rejected, Request
from node.worker.errors import JobRefused
from node.worker.memory import need_of
from node.worker.models import ModelId, ModelStore
from node.worker.runtimes import input_units_max
from node.worker.supervisor import JobRequest, PooledJob, WorkerChunk, WorkerSupervisor
from tests.worker import onnx_models
from tests.worker.conftest import added, pull, run

LABELS = json.dumps({"id2label": {"0": "negative", "1": "positive", "2": "polite"}}).encode()
CLASSIFIER: dict[str, Value] = {
    "pipeline": "classification", "model_file": "model.onnx", "tokenizer_file": "tokenizer.json",
    "labels_file": "labels.json", "tokens_max": 4, "batch_max": 8,
}  # fmt: skip
EMBEDDER: dict[str, Value] = {**CLASSIFIER, "pipeline": "embedding", "pooling": "mean", "batch_max": 8}


@pytest.fixture(scope="session")
def minilm(store: ModelStore) -> ModelId:
    return added(store, "minilm")


def loaded(
    folder: Path, settings: dict[str, Value], model: bytes = b"", tokenizer: bytes = b"", labels: bytes = LABELS
) -> OnnxRuntime:
    graph = model or (onnx_models.word_scores() if settings["pipeline"] == "classification" else word_vectors())
    paths = onnx_models.written(folder, model=graph, tokenizer=tokenizer or onnx_models.word_tokenizer(), labels=labels)
    runtime = OnnxRuntime()
    runtime.prepare()
    runtime.load({name: str(path) for name, path in paths.items()}, settings, 8)
    return runtime


def word_vectors() -> bytes:
    return onnx_models.word_vectors()


def asked(runtime: OnnxRuntime, *texts: str, input_format: str = "texts") -> tuple[dict[str, list[object]], int]:
    """The answer to these texts, and the input units counted."""
    payload = json.dumps(texts).encode() if input_format == "texts" else texts[0].encode()
    runtime.open(1, Request(input_format, payload, 1, 1, 0, 0, ()))
    runtime.grant(1)
    units, answer = 0, b""
    while runtime.busy():
        for event in runtime.step():
            assert not isinstance(event, Rejected), event.reason
            if isinstance(event, Prefilled):
                units = event.input_units
            if isinstance(event, Piece):
                answer += event.payload
    read: dict[str, list[object]] = json.loads(answer)
    return read, units


def test_labels_come_with_scores_that_add_up_best_first_and_tokens_are_counted(tmp_path: Path) -> None:
    answer, units = asked(loaded(tmp_path, CLASSIFIER), "good film", "bad")
    assert answer["tokens"] == [2, 1]
    assert units == 3
    first, second = answer["labels"]
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert [entry["label"] for entry in first] == ["positive", "polite", "negative"]
    assert [entry["label"] for entry in second] == ["negative", "polite", "positive"]
    assert math.isclose(sum(entry["score"] for entry in first), 1, abs_tol=2e-6)
    assert math.isclose(first[0]["score"], math.exp(2) / (math.exp(2) + math.exp(0.5) + math.exp(-2)), abs_tol=2e-6)


def test_labels_that_do_not_exclude_each_other_are_scored_one_by_one(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, {**CLASSIFIER, "scores": "sigmoid", "labels": "negative, positive, polite"})
    answer, _ = asked(runtime, "film", input_format="text")
    (scores,) = answer["labels"]
    assert isinstance(scores, list)
    assert [(entry["label"], entry["score"]) for entry in scores] == [
        ("polite", round(1 / (1 + math.exp(-0.5)), 6)), ("negative", 0.5), ("positive", 0.5),
    ]  # fmt: skip


def test_padding_beside_longer_texts_changes_no_result_and_costs_nothing(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, CLASSIFIER)
    together, units = asked(runtime, "bad", "good fine film film", "film")
    alone = [asked(runtime, text)[0] for text in ("bad", "good fine film film", "film")]
    assert together["labels"] == [answer["labels"][0] for answer in alone]
    assert units == 6


def test_embeddings_are_pooled_and_have_length_one_unless_the_manifest_says_otherwise(tmp_path: Path) -> None:
    good, film, fine = onnx_models.WEIGHTS["good"], onnx_models.WEIGHTS["film"], onnx_models.WEIGHTS["fine"]
    mean = [(one + other) / 2 for one, other in zip(good, film, strict=True)]
    length = math.sqrt(sum(number * number for number in mean))
    answer, _ = asked(loaded(tmp_path, EMBEDDER), "good film")
    assert answer["embeddings"] == [[pytest.approx(number / length, abs=1e-6) for number in mean]]
    answer, _ = asked(loaded(tmp_path, {**EMBEDDER, "normalize": 0}), "good film")
    assert answer["embeddings"] == [mean]
    answer, _ = asked(loaded(tmp_path, {**EMBEDDER, "normalize": 0, "pooling": "cls"}), "fine film")
    assert answer["embeddings"] == [[*fine]]


def test_without_a_mask_only_texts_of_the_same_length_share_a_run(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, {**EMBEDDER, "normalize": 0, "pooling": "none"}, model=onnx_models.word_sums())
    answer, _ = asked(runtime, "good", "good film", "film")
    assert answer["embeddings"] == [[-2.0, 2.0, 0.0], [-2.0, 2.0, 0.5], [0.0, 0.0, 0.5]]


def test_a_text_over_the_limit_is_refused_and_cut_only_where_the_manifest_says_so(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, CLASSIFIER)
    assert asked(runtime, "good good good good")[1] == 4  # the tokenizer's file says 2, and is not asked
    with pytest.raises(Refused, match="text 2 is too long: it has 5 tokens, and this model takes 4"):
        asked(runtime, "good", "good good good good good")
    cutting = loaded(tmp_path, {**CLASSIFIER, "over_length": "truncate"})
    answer, units = asked(cutting, "good good good good bad bad")
    assert (answer["labels"], units) == (asked(cutting, "good good good good")[0]["labels"], 4)


@pytest.mark.parametrize(
    ("input_format", "payload", "reason"),
    [
        ("text", b"\xff\xfe", "not UTF-8"),
        ("text", b"", "no tokens"),
        ("text", b"x" * 257, "257 bytes can't fit the 4 tokens"),
        ("texts", b"good", "JSON list of 1 to"),
        ("texts", b"[]", "JSON list of 1 to"),
        ("texts", b'{"good": 1}', "JSON list of 1 to"),
        ("texts", b"[" * 100_000, "JSON list of 1 to"),
        ("texts", json.dumps(["good"] * (TEXTS_MAX + 1)).encode(), "JSON list of 1 to"),
        ("texts", b'["good", 7]', "text 2 of the list is not a Unicode text"),
        ("texts", b'["\\ud800"]', "text 1 of the list is not a Unicode text"),
        ("tensors", b"", "takes input_format 'text'"),
        ("chat", b"", "takes input_format 'text'"),
    ],
)
def test_an_input_that_is_no_text_is_refused_before_anything_runs(
    tmp_path: Path, input_format: str, payload: bytes, reason: str
) -> None:
    runtime = loaded(tmp_path, CLASSIFIER)
    with pytest.raises(Refused, match=reason):
        runtime.open(1, Request(input_format, payload, 1, 1, 0, 0, ()))
    assert not runtime.busy()


WRONG_MODELS: dict[str, tuple[dict[str, Value], dict[str, bytes], str]] = {
    "no tokenizer named": ({"tokenizer_file": "other.json"}, {}, "must name one of the model's files"),
    "no tokenizer": ({}, {"tokenizer": b"{}"}, "not a usable tokenizer"),
    "junk for a tokenizer": ({}, {"tokenizer": b"\x00\xff" * 500}, "not a usable tokenizer"),
    "no limit": ({"tokens_max": 0}, {}, "tokens_max must be"),
    "huge limit": ({"tokens_max": 1 << 30}, {}, "tokens_max must be"),
    "unknown pooling": ({"pipeline": "embedding", "pooling": "max"}, {}, "pooling must be one of"),
    "pooling of what has no tokens": (
        {"pipeline": "embedding", "pooling": "mean"}, {"model": onnx_models.word_scores()}, "must have 3 dimensions",
    ),
    "unknown rule for long texts": ({"over_length": "ignore"}, {}, "over_length must be one of"),
    "unknown output": ({"output": "other"}, {}, "no output 'other'"),
    "labels with half a character": ({}, {"labels": b'["good","\\ud800"]'}, "labels file must be"),
    "labels that are no list": ({}, {"labels": b'"good"'}, "labels file must be"),
    "too few labels": ({}, {"labels": b'["good", "bad"]'}, "scores 3 labels, and 2"),
    "labels twice": ({}, {"labels": b'["good", "bad", "bad"]'}, "each once"),
    "a graph that takes no tokens": ({}, {"model": onnx_models.doubling()}, "inputs are input_ids"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_a_package_that_can_not_work_fails_at_load_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    settings, files, reason = WRONG_MODELS[name]
    with pytest.raises(LoadFailed, match=reason):
        loaded(tmp_path, {**CLASSIFIER, **settings}, **files)


def test_the_most_units_of_a_job_follow_from_the_manifest() -> None:
    assert input_units_max("onnx", {"pipeline": "embedding", "tokens_max": 256}) == 256 * TEXTS_MAX
    assert input_units_max("onnx", {"pipeline": "tensors", "tokens_max": 256}) == 1
    assert input_units_max("gguf", {"context_tokens": 2048}) == 0


def embeddings(pieces: list[WorkerChunk]) -> list[list[float]]:
    found: list[list[float]] = json.loads(b"".join(piece.payload for piece in pieces))["embeddings"]
    return found


async def test_real_sentences_are_near_each_other_by_meaning_and_the_same_alone_and_together(
    store: ModelStore, minilm: ModelId
) -> None:
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today."]
    async with WorkerSupervisor(store) as supervisor:
        together = await run(supervisor, minilm, JobRequest("texts", json.dumps(texts).encode(), 1, 1))
        alone = [await run(supervisor, minilm, JobRequest("text", text.encode(), 1, 1)) for text in texts]
    vectors = embeddings(together)
    assert vectors == [embeddings(pieces)[0] for pieces in alone]

    def near(one: int, other: int) -> float:
        return sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True))

    assert len(vectors[0]) == 384
    assert math.isclose(near(0, 0), 1, abs_tol=1e-5)
    assert near(0, 1) > 0.6
    assert abs(near(0, 2)) < 0.15


async def test_a_text_model_takes_no_more_memory_than_was_asked_for(store: ModelStore, minilm: ModelId) -> None:
    need = need_of(store, store.manifest(minilm), 4)
    async with WorkerSupervisor(store) as supervisor:
        await run(supervisor, minilm, JobRequest("texts", json.dumps(["word " * 250] * 4).encode(), 1, 1))
        assert 0 < supervisor.usage(minilm).memory_bytes < need.total_bytes + need.shared_bytes


async def test_many_real_jobs_at_once_each_get_what_they_get_alone(store: ModelStore, minilm: ModelId) -> None:
    texts = [f"Sentence number {number} is about {'ships' * (number % 5)}." for number in range(24)]

    def request(text: str) -> JobRequest:
        return JobRequest("text", text.encode(), 1, 1)

    async with WorkerSupervisor(store, slots=12) as supervisor:
        alone = [embeddings(await run(supervisor, minilm, request(text))) for text in texts]

        async def one(number: int) -> list[list[float]]:
            job: PooledJob = await supervisor.open_job(
                minilm, bytes([number]), request(texts[number]), deadline_s=30, tenant=f"buyer {number % 2}"
            )
            return embeddings(await pull(job))

        async with asyncio.TaskGroup() as tasks:
            jobs = [tasks.create_task(one(number)) for number in range(len(texts))]
        assert [job.result() for job in jobs] == alone
        with pytest.raises(JobRefused, match="it has 302 tokens, and this model takes 256"):
            await run(supervisor, minilm, request("word " * 300))
