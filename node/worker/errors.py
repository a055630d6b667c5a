"""Errors of the worker room. Each says whose fault it is: the buyer's (`user`) or ours (`provider`)."""

from typing import Literal

Fault = Literal["user", "provider"]
DeathReason = Literal[
    "start", "crashed", "memory", "time", "deadline", "output_cap", "malformed_frame", "stalled", "closed", "cancelled"
]


class WorkerError(Exception):
    """Root of every error of this room."""

    fault: Fault = "provider"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JobRefused(WorkerError):
    """The job's own fault: malformed, too large, or not what this model takes. Never retried."""

    fault: Fault = "user"


class CapacityExceeded(WorkerError):
    """More jobs are open or waiting than this worker takes; definite, try later or elsewhere."""


class ModelQuarantined(CapacityExceeded):
    """The model crashed its workers too often; it is tried again in ``seconds``."""

    def __init__(self, reason: str, seconds: int) -> None:
        super().__init__(f"the model is in quarantine for another {seconds} s: it {reason}")
        self.seconds = seconds


class WorkerDied(WorkerError):
    """The worker process is gone (`death` says why it went); the job did not finish. Another attempt may work."""

    def __init__(self, reason: str, death: DeathReason) -> None:
        super().__init__(reason)
        self.death = death


class JobTimedOut(WorkerError):
    """The job did not deliver before its deadline; nothing more will come."""


class JobCancelled(WorkerError):
    """The job was cancelled by this node while a call was waiting for it."""

    fault: Fault = "user"


class JobFailed(WorkerError):
    """The job failed while it ran, through no fault of its input; the worker goes on."""


class JobEnded(WorkerError):
    """A piece was asked for after the last one."""


class IsolationUnavailable(WorkerError):
    """The sandbox can't be had on this machine; `reason` says what is missing and how to get it."""


class ModelError(WorkerError):
    """Root of what can be wrong with a stored or described model."""


class UnknownModel(ModelError):
    """No manifest with this id is in the store."""


class CorruptModel(ModelError):
    """A stored file is missing, or its bytes are not those that the manifest names."""


class BadDescription(ModelError):
    """A model description or manifest says something that is not allowed."""


class DownloadFailed(ModelError):
    """A package could not be fetched, or was not the pinned one."""


class StoreFull(ModelError):
    """The disk is full, or the quota is used up by models that may not go."""


class ModelInUse(ModelError):
    """A node on this machine holds the model: it can't be removed now."""


class RuntimeUnavailable(WorkerError):
    """The packages that a runtime needs are not installed here, or not in the pinned version."""


class BadUpstream(WorkerError):
    """An upstream server that can't be used as it is configured."""


class UpstreamUnavailable(WorkerError):
    """An upstream server can't be reached, or does not have the model. Another attempt may work."""
