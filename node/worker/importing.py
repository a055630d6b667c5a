"""Models out of files on this machine: a file, or a folder with all that is in it.

Law: only regular files are read, and never through a link: what is added is what whoever named the path sees there.
Names that begin with a dot are left out. The bytes that are hashed are the bytes that are stored.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from node.worker.errors import BadDescription
from node.worker.limits import MODEL_BYTES_MAX
from node.worker.manifest_fields import Fact, check_path
from node.worker.models import FILES_MAX, ModelDescription, ModelId, ModelStore, Progress
from node.worker.quota import make_room

LOCAL = "local"
RUNTIME_OF_SUFFIX = {".gguf": "gguf", ".onnx": "onnx", ".wasm": "wasm"}
MAIN_FILE = {"gguf": "model_file", "onnx": "model_file", "wasm": "module_file"}
CONTEXT_TOKENS_DEFAULT = 2048
USUAL_SETTINGS: dict[str, dict[str, Fact]] = {
    "gguf": {"context_tokens": CONTEXT_TOKENS_DEFAULT},
    "onnx": {"pipeline": "tensors"},
}
"""What a runtime needs to be told; a description or the command line may say otherwise."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to add: where it is, and its size in bytes when it was listed."""

    path: Path
    size: int


def listed(path: Path) -> dict[str, LocalFile]:
    """The files that adding `path` would add, by their names in the manifest. Raises BadDescription."""
    try:
        kind = path.lstat()
    except OSError as error:
        raise BadDescription(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(kind.st_mode):
        return {check_path(path.name): _regular(path, kind)}
    found: dict[str, LocalFile] = {}
    for place, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for folder in folders:
            if (Path(place) / folder).is_symlink():
                raise BadDescription(f"{Path(place) / folder} is a link; only files and folders are added")
        for name in sorted(names):
            if name.startswith("."):
                continue
            file = Path(place) / name
            found[check_path(file.relative_to(path).as_posix())] = _regular(file, file.lstat())
            if len(found) > FILES_MAX:
                raise BadDescription(f"{path} holds more than the {FILES_MAX} files that a model may have")
    if not found:
        raise BadDescription(f"{path} holds no files")
    return found


def _refuse(error: OSError) -> None:
    raise BadDescription(f"{error.filename}: {error.strerror}") from None


def _regular(path: Path, kind: os.stat_result) -> LocalFile:
    if stat.S_ISLNK(kind.st_mode):
        raise BadDescription(f"{path} is a link; name the file itself")
    if not stat.S_ISREG(kind.st_mode):
        raise BadDescription(f"{path} is not a regular file")
    if kind.st_size > MODEL_BYTES_MAX:
        raise BadDescription(f"{path} has {kind.st_size} bytes; a file of a model has at most {MODEL_BYTES_MAX}")
    return LocalFile(path, kind.st_size)


def _opened(file: LocalFile) -> IO[bytes]:
    """The file as it was listed: not a link or a pipe that took its place meanwhile."""
    try:
        stream = os.fdopen(os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise BadDescription(f"{file.path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise BadDescription(f"{file.path} is not a regular file")
    return stream


def guessed_identity(path: Path, files: Mapping[str, LocalFile]) -> tuple[str, str]:
    """A name from the path and a runtime from the files' endings; empty where they tell none."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.name.lower())
    for suffix in RUNTIME_OF_SUFFIX:
        name = name.removesuffix(suffix)
    runtimes = {RUNTIME_OF_SUFFIX[Path(file).suffix] for file in files if Path(file).suffix in RUNTIME_OF_SUFFIX}
    return name.strip("._-")[:64], runtimes.pop() if len(runtimes) == 1 else ""


def guessed_settings(runtime: str, files: Mapping[str, LocalFile]) -> dict[str, Fact]:
    """What the runtime must be told: its usual settings, and the main file where there is but one of its ending."""
    settings = dict(USUAL_SETTINGS.get(runtime, {}))
    mains = [name for name in sorted(files) if RUNTIME_OF_SUFFIX.get(Path(name).suffix) == runtime]
    if runtime in MAIN_FILE and len(mains) == 1:
        settings[MAIN_FILE[runtime]] = mains[0]
    return settings


def check_roles(runtime: str, settings: Mapping[str, Fact], files: Mapping[str, LocalFile]) -> None:
    """Refuse a model whose runtime would not find its main file. Raises BadDescription."""
    role = MAIN_FILE.get(runtime)
    if role is not None and settings.get(role) not in files:
        raise BadDescription(f"the setting {role} must name one of the files: " + ", ".join(sorted(files)))


def add_local_files(
    store: ModelStore, description: ModelDescription, files: Mapping[str, LocalFile], source: str, progress: Progress
) -> ModelId:
    """Copy listed files into the store and write their manifest. Raises BadDescription, StoreFull.

    `progress` is told what happens, with bytes done and in all.
    """
    check_roles(description.runtime, description.settings, files)
    total, done, added = sum(file.size for file in files.values()), 0, []
    with store.changing():
        make_room(store, total)
        for name, file in sorted(files.items()):
            progress(f"copying {name}", done, total)
            with _opened(file) as stream:
                added.append(store.add_stream(name, stream, MODEL_BYTES_MAX))
            done += added[-1].size
        progress("copied", done, total)
        return store.add_files(description, added, source)
