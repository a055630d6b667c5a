"""One job's request, as a node hands it to a worker; what a worker may believe of it is judged in the child.

Law: a request says everything that its output depends on beside the model and the runtime's own settings.
"""

from dataclasses import dataclass
from typing import Literal

from node.worker.child.frames import Value


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job's input. For text models units are tokens, for echo bytes, for ONNX one run.

    `payload`: a MessagePack list of [role, content] ("chat"), UTF-8 ("text"), bytes ("bytes") or a MessagePack map
    of tensors ("tensors"). `prefix`: output that is there already, which counts as input. `output`, `schema`, `grammar`
    and `logprobs` are for text models; a runtime that can't serve one of them refuses the job.
    """

    input_format: str
    payload: bytes
    max_output_units: int
    chunk_units: int
    seed: int = 0
    temperature_milli: int = 0
    stop: tuple[str, ...] = ()
    prefix: bytes = b""
    output: Literal["text", "tokens"] = "text"
    schema: str = ""
    logprobs: int = 0
    grammar: str = ""
    pull_first: bool = False
    """Pull the first piece with the job: it comes as soon as there is one and waits for `next_chunk` here."""

    def frame(self, tenant: str) -> dict[str, Value]:
        """The request as the child reads it."""
        return {
            "input_format": self.input_format,
            "payload": self.payload,
            "max_output_units": self.max_output_units,
            "chunk_units": self.chunk_units,
            "seed": self.seed,
            "temperature_milli": self.temperature_milli,
            "stop": [*self.stop],
            "prefix": self.prefix,
            "output": self.output,
            "schema": self.schema,
            "logprobs": self.logprobs,
            "tenant": tenant,
            "grammar": self.grammar,
        }
