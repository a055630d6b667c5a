"""Models: descriptions, manifests, and the content-addressed store.

Law: a model's id is the BLAKE3 hash of its manifest's bytes, and the manifest names every file by its hash, so an id
fixes every byte that a worker will read. The manifest is sorted, compact JSON of integers, texts, lists and maps; what
it has nothing to say about is absent. A file in the store is read-only and named by its hash; it is hashed again before
every load.
"""

import contextlib
import fcntl
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NewType

from blake3 import blake3

from node.worker.errors import BadDescription, CorruptModel, ModelError, UnknownModel
from node.worker.limits import MODEL_BYTES_MAX
from node.worker.manifest_fields import HASH_PATTERN, check_only, check_path, facts_of, hashes_of, texts
from node.worker.manifest_fields import Fact as Fact
from node.worker.pieces import PIECE_BYTES, copy_stream, disk_room, hash_stream, list_of, piece_root

ModelId = NewType("ModelId", str)
Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all (0: unknown)

MANIFEST_BYTES_MAX = 64 * 1024
FILES_MAX = 64
PACKAGES_MAX = 4  # a model, its tokenizer, its labels
PARENTS_MAX = 16
TRAINING_DATA_MAX = 64  # hashes of data sets; a manifest stays a page that people can read
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ID_PREFIX_MIN = 6  # digits with which a person may name a model; fewer are too often somebody else's
# Names and versions as package indexes have them. Anything more could be an address or an option in pip's eyes, and
# pip runs what it finds in a source archive.
PACKAGE_PATTERN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
PACKAGE_VERSION_PATTERN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.!+_-]*[A-Za-z0-9])?")
REPOSITORY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")
RUNTIMES = ("echo", "gguf", "onnx", "upstream", "wasm")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: the name the worker sees, its size in bytes, BLAKE3 hash and piece root in hexadecimal."""

    path: str
    size: int
    blake3: str
    pieces: str = ""  # empty for a file of at most one piece, whose own hash says as much

    def fields(self) -> dict[str, object]:
        """As the manifest has it."""
        return {"path": self.path, "size": self.size, "blake3": self.blake3} | (
            {"pieces": self.pieces} if self.pieces else {}
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model is. `settings` are the runtime's own (pipeline, chat template, context tokens, file roles)."""

    name: str
    version: str
    runtime: str
    license: str
    source: str  # package and version the files came from, or "local"
    files: tuple[ModelFile, ...]
    settings: Mapping[str, Fact]
    parents: tuple[str, ...] = ()  # ids of the models that this one was made from, sorted
    training_data: tuple[str, ...] = ()  # BLAKE3 hashes that commit to what it was trained on, sorted

    def encode(self) -> bytes:
        """The manifest's only spelling."""
        table: dict[str, object] = {
            "name": self.name,
            "version": self.version,
            "runtime": self.runtime,
            "license": self.license,
            "source": self.source,
            "files": [file.fields() for file in self.files],
            "settings": dict(self.settings),
        }
        if self.parents:
            table["parents"] = list(self.parents)
        if self.training_data:
            table["training_data"] = list(self.training_data)
        return _canonical(table)

    def model_id(self) -> ModelId:
        """The hash that names the model everywhere."""
        return ModelId(blake3(self.encode()).hexdigest())

    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A wheel on the configured package index: exact name, version and SHA-256, and which members are the files."""

    package: str
    version: str
    sha256: str
    members: Mapping[str, str]  # name in the manifest → path inside the wheel


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of a repository: its path there and its SHA-256 in hexadecimal."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """A repository of models on the Hugging Face hub: which commit of it, and which of its files."""

    repository: str  # OWNER/NAME
    commit: str  # 40 hexadecimal digits: a branch or a tag would say something else tomorrow
    files: Mapping[str, PinnedFile]  # by name in the manifest


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """How to come by a model, as shipped in `configs/models`."""

    name: str
    version: str
    runtime: str
    license: str
    settings: Mapping[str, Fact] = field(default_factory=dict)
    packages: tuple[PackageSource, ...] = ()
    parents: tuple[str, ...] = ()
    training_data: tuple[str, ...] = ()
    huggingface: HuggingFaceSource | None = None


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _identity(table: Mapping[str, object]) -> tuple[str, str, str, str]:
    name, version, runtime, license_name = texts(table, "name", "version", "runtime", "license")
    if NAME_PATTERN.fullmatch(name) is None:
        raise BadDescription(f"not a usable model name: {name!r}")
    if runtime not in RUNTIMES:
        raise BadDescription(f"unknown runtime {runtime!r}; known: " + ", ".join(RUNTIMES))
    return name, version, runtime, license_name


_MANIFEST_FIELDS = (
    "name", "version", "runtime", "license", "source", "files", "settings", "parents", "training_data",
)  # fmt: skip


def parse_manifest(content: bytes) -> Manifest:
    """A manifest from its bytes. Raises BadDescription on anything but the canonical spelling of a valid one."""
    if len(content) > MANIFEST_BYTES_MAX:
        raise BadDescription(f"a manifest has at most {MANIFEST_BYTES_MAX} bytes")
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        raise BadDescription("the manifest is not JSON") from None
    if not isinstance(table, dict):
        raise BadDescription("the manifest is not a JSON object")
    check_only(table, _MANIFEST_FIELDS, "the manifest")
    name, version, runtime, license_name = _identity(table)
    (source,) = texts(table, "source")
    listed = table.get("files")
    if not isinstance(listed, list) or len(listed) > FILES_MAX:
        raise BadDescription(f"files must be a list of at most {FILES_MAX}")
    files = tuple(_parse_file(entry) for entry in listed)
    if [file.path for file in files] != sorted({file.path for file in files}):
        raise BadDescription("files must be sorted by path, each once")
    manifest = Manifest(
        name, version, runtime, license_name, source, files, facts_of(table.get("settings")),
        hashes_of(table.get("parents", []), "parents", PARENTS_MAX),
        hashes_of(table.get("training_data", []), "training_data", TRAINING_DATA_MAX),
    )  # fmt: skip
    if manifest.encode() != content:
        raise BadDescription("the manifest is not in its canonical spelling")
    return manifest


def _parse_file(entry: object) -> ModelFile:
    known = ["blake3", "path", "pieces", "size"]
    if not isinstance(entry, dict) or sorted({*entry, "pieces"}) != known:
        raise BadDescription("a file has path, size, blake3 and pieces, and nothing else")
    path, size, digest, root = entry["path"], entry["size"], entry["blake3"], entry.get("pieces", "")
    if isinstance(size, bool) or not isinstance(size, int) or not all(isinstance(t, str) for t in (path, digest, root)):
        raise BadDescription("a file has path, size, blake3 and pieces, and nothing else")
    if not 0 <= size <= MODEL_BYTES_MAX or HASH_PATTERN.fullmatch(digest) is None:
        raise BadDescription(f"file {path[:80]!r} has an impossible size or hash")
    if (size > PIECE_BYTES) != ("pieces" in entry) or ("pieces" in entry and HASH_PATTERN.fullmatch(root) is None):
        raise BadDescription(f"file {path[:80]!r} names its piece root if it is larger than a piece, else not")
    return ModelFile(check_path(path), size, digest, root)


def check_source(source: str) -> str:
    """Where a model came from, as a manifest may say it. Raises BadDescription."""
    (checked,) = texts({"source": source}, "source")
    return checked


def load_description_table(path: Path) -> dict[str, object]:
    """The table that a TOML file holds, not yet judged. Raises BadDescription."""
    try:
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise BadDescription(f"{path.name}: a description has at most {MANIFEST_BYTES_MAX} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadDescription(f"{path.name}: {error}") from None


def load_description(path: Path) -> ModelDescription:
    """A description from a TOML file. Raises BadDescription."""
    table = load_description_table(path)
    try:
        return parse_description(table)
    except BadDescription as error:
        raise BadDescription(f"{path.name}: {error.reason}") from None


_DESCRIPTION_FIELDS = (
    "name", "version", "runtime", "license", "settings", "package", "packages", "parents", "training_data",
    "huggingface",
)  # fmt: skip


def parse_description(table: Mapping[str, object]) -> ModelDescription:
    """A description from its fields. Raises BadDescription."""
    check_only(table, _DESCRIPTION_FIELDS, "the description")
    name, version, runtime, license_name = _identity(table)
    packages, repository = _parse_packages(table), table.get("huggingface")
    if packages and repository is not None:
        raise BadDescription("a model comes from a package or from a repository, not from both")
    return ModelDescription(
        name, version, runtime, license_name, facts_of(table.get("settings", {})),
        packages,
        hashes_of(table.get("parents", []), "parents", PARENTS_MAX),
        hashes_of(table.get("training_data", []), "training_data", TRAINING_DATA_MAX),
        None if repository is None else _parse_repository(repository),
    )  # fmt: skip


def _parse_packages(table: Mapping[str, object]) -> tuple[PackageSource, ...]:
    one, several = table.get("package"), table.get("packages", [])
    if not isinstance(several, list) or len(several) > PACKAGES_MAX or (several and one is not None):
        raise BadDescription(f"a model comes from one [package] or from at most {PACKAGES_MAX} [[packages]]")
    packages = tuple(_parse_package(entry) for entry in ([one] if one is not None else several))
    names = [name for package in packages for name in package.members]
    if len(set(names)) != len(names):
        raise BadDescription("two packages give a file of the same name")
    return packages


def _parse_package(table: object) -> PackageSource:
    if not isinstance(table, dict):
        raise BadDescription("package must be a table")
    check_only(table, ("name", "version", "sha256", "members"), "the package")
    package, version, sha256 = texts(table, "name", "version", "sha256")
    if PACKAGE_PATTERN.fullmatch(package) is None:
        raise BadDescription(f"not a package's name: {package!r}")
    if PACKAGE_VERSION_PATTERN.fullmatch(version) is None:
        raise BadDescription(f"not a package's version: {version!r}")
    members = table.get("members")
    if HASH_PATTERN.fullmatch(sha256) is None:
        raise BadDescription("sha256 must be 64 hexadecimal digits")
    if not isinstance(members, dict) or not 0 < len(members) <= FILES_MAX:
        raise BadDescription(f"members must be a table of 1 to {FILES_MAX} files")
    checked = {}
    for name, member in members.items():
        if not isinstance(member, str):
            raise BadDescription("a member is the path of a file in the wheel")
        checked[check_path(name)] = check_path(member)
    return PackageSource(package, version, sha256, checked)


def _parse_repository(table: object) -> HuggingFaceSource:
    if not isinstance(table, dict):
        raise BadDescription("huggingface must be a table")
    check_only(table, ("repository", "commit", "files"), "huggingface")
    repository, commit = texts(table, "repository", "commit")
    if REPOSITORY_PATTERN.fullmatch(repository) is None:
        raise BadDescription(f"not a repository's name (OWNER/NAME): {repository!r}")
    if COMMIT_PATTERN.fullmatch(commit) is None:
        raise BadDescription("commit must be 40 hexadecimal digits: a branch may say something else tomorrow")
    files = table.get("files")
    if not isinstance(files, dict) or not 0 < len(files) <= FILES_MAX:
        raise BadDescription(f"files must be a table of 1 to {FILES_MAX} files")
    pinned = {}
    for name, entry in files.items():
        if not isinstance(entry, dict):
            raise BadDescription("a file of a repository has a path and a sha256")
        check_only(entry, ("path", "sha256"), f"the file {name}")
        path, sha256 = texts(entry, "path", "sha256")
        if HASH_PATTERN.fullmatch(sha256) is None:
            raise BadDescription("sha256 must be 64 hexadecimal digits")
        pinned[check_path(name)] = PinnedFile(check_path(path), sha256)
    return HuggingFaceSource(repository, commit, pinned)


class ModelStore:
    """Manifests and files of the models on this machine, in one directory.

    `files/<blake3>`, `pieces/<root>` with the file's piece list, and `manifests/<id>.json`, all read-only; `wheels/`
    keeps downloaded packages, so that adding a model twice needs no network.
    """

    def __init__(self, directory: Path, wheels: Path | None = None, bytes_max: int | None = None) -> None:
        """A store in this directory, made if need be; `wheels` may name a cache shared with other stores.

        `bytes_max` is what files and wheels may take together before something is added; None: what the disk holds.
        """
        self.directory = directory
        self.bytes_max = bytes_max
        self.wheels = wheels or directory / "wheels"
        for folder in (*(directory / name for name in ("files", "pieces", "manifests")), self.wheels):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """One change of the store at a time, in whatever process; waits for its turn. Not for nesting."""
        with (self.directory / ".changing").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def models(self) -> tuple[tuple[ModelId, Manifest], ...]:
        """Every model in the store, by name and version; a manifest that is not what its name says is left out."""
        found = []
        for model_id in self.model_ids():
            with contextlib.suppress(ModelError):
                found.append((model_id, self.manifest(model_id)))
        return tuple(sorted(found, key=lambda entry: (entry[1].name, entry[1].version, entry[0])))

    def model_ids(self) -> tuple[ModelId, ...]:
        """Ids of all manifests, damaged ones too."""
        return tuple(sorted(ModelId(path.stem) for path in (self.directory / "manifests").glob("[!.]*.json")))

    def named(self, text: str) -> ModelId:
        """The model that a person means: by its id, by a beginning of it, or by its name. Raises UnknownModel."""
        ids = self.model_ids()
        if text in ids:
            return ModelId(text)
        found = [model_id for model_id, manifest in self.models() if manifest.name == text]
        if not found and len(text) >= ID_PREFIX_MIN:
            found = [model_id for model_id in ids if model_id.startswith(text)]
        if not found:
            raise UnknownModel(f"no model {text[:80]!r} in the store")
        if len(found) > 1:
            raise UnknownModel(f"{text!r} may mean any of these; give the id: " + ", ".join(found))
        return found[0]

    def find(self, description: ModelDescription, source: str) -> ModelId | None:
        """The model that was made from this description and source, if all its files are there and intact."""
        for model_id, kept in self.models():
            if (self.directory / "pulled" / model_id).exists():
                continue  # its maker wrote where it comes from, and nobody has checked that
            asked = (description.name, description.version, description.runtime, description.license, source)
            if (kept.name, kept.version, kept.runtime, kept.license, kept.source) != asked:
                continue
            same_origin = (kept.parents, kept.training_data) == (description.parents, description.training_data)
            if dict(kept.settings) == dict(description.settings) and same_origin:
                with contextlib.suppress(CorruptModel):
                    self.verify(model_id)
                    return model_id
        return None

    def manifest(self, model_id: str) -> Manifest:
        """The manifest behind an id. Raises UnknownModel, CorruptModel."""
        if HASH_PATTERN.fullmatch(model_id) is None:
            raise UnknownModel(f"not a model id: {model_id[:80]!r}")
        try:
            content = (self.directory / "manifests" / f"{model_id}.json").read_bytes()
        except FileNotFoundError:
            raise UnknownModel(f"no model {model_id} in the store") from None
        if blake3(content).hexdigest() != model_id:
            raise CorruptModel(f"the manifest of model {model_id} has other bytes than its id says")
        return parse_manifest(content)

    def file_path(self, file: ModelFile) -> Path:
        """Where a file lies."""
        return self.directory / "files" / file.blake3

    def verify(self, model_id: str) -> Manifest:
        """Hash every file again; nothing is cached. Raises UnknownModel, CorruptModel. Takes 0.1 s for 100 MB."""
        manifest = self.manifest(model_id)
        for file in manifest.files:
            try:
                with self.file_path(file).open("rb") as stream:
                    size, digest = hash_stream(stream, file.size)
            except FileNotFoundError:
                raise CorruptModel(f"{manifest.name}: the file {file.path} is missing from the store") from None
            except BadDescription:
                size, digest = -1, ""
            if (size, digest) != (file.size, file.blake3):
                raise CorruptModel(f"{manifest.name}: the file {file.path} does not have the bytes its hash names")
        return manifest

    def add_stream(self, path: str, stream: IO[bytes], size_max: int = MODEL_BYTES_MAX) -> ModelFile:
        """Copy a file into the store under its hash; in place at once or not at all."""
        check_path(path)
        with tempfile.NamedTemporaryFile(dir=self.directory / "files", prefix=".adding-", delete=False) as copy:
            temporary = Path(copy.name)
            try:
                with disk_room(path):
                    hashed = copy_stream(stream, copy, size_max)
                    copy.flush()
                    os.fsync(copy.fileno())
                os.fchmod(copy.fileno(), 0o444)
                temporary.replace(self.directory / "files" / hashed.hexdigest())
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        root = piece_root(hashed.piece_list()) if hashed.size > PIECE_BYTES else ""
        file = ModelFile(path, hashed.size, hashed.hexdigest(), root)
        self.keep_piece_list(file, hashed.piece_list())
        return file

    def keep_piece_list(self, file: ModelFile, piece_list: bytes) -> None:
        """Write down a file's piece list, so that serving the file does not begin with hashing it."""
        if file.pieces:
            _write_once(self.directory / "pieces" / file.pieces, piece_list, f"the piece list of {file.path}")

    def piece_list(self, file: ModelFile) -> bytes:
        """The hashes of a stored file's pieces: as kept, else from the file. Raises CorruptModel."""
        if not file.pieces:
            return bytes.fromhex(file.blake3) if file.size else b""
        with contextlib.suppress(FileNotFoundError):
            kept = (self.directory / "pieces" / file.pieces).read_bytes()
            if piece_root(kept) == file.pieces:
                return kept
        try:
            with self.file_path(file).open("rb") as stream:
                made = list_of(stream)
        except FileNotFoundError:
            raise CorruptModel(f"the file {file.path} is missing from the store") from None
        if piece_root(made) != file.pieces:
            raise CorruptModel(f"the file {file.path} does not have the pieces that the manifest names")
        self.keep_piece_list(file, made)
        return made

    def add_manifest(self, manifest: Manifest) -> ModelId:
        """Write a manifest whose files are in the store. Raises BadDescription if it isn't valid."""
        content = manifest.encode()
        parse_manifest(content)
        model_id = manifest.model_id()
        target = self.directory / "manifests" / f"{model_id}.json"
        with contextlib.suppress(FileNotFoundError):
            if target.read_bytes() == content:  # whoever holds the model holds this very file
                os.utime(target)
                return model_id
        _write_once(target, content, "the manifest")
        return model_id

    def add_local(self, description: ModelDescription, paths: Mapping[str, Path]) -> ModelId:
        """Add a model from files on this machine (name in the manifest → path)."""
        if not paths:  # nothing that a removal could take away before the manifest names it
            return self.add_files(description, [], "local")
        with self.changing():
            files = []
            for name, path in sorted(paths.items()):
                with path.open("rb") as stream:
                    files.append(self.add_stream(name, stream))
            return self.add_files(description, files, "local")

    def add_files(self, description: ModelDescription, files: list[ModelFile], source: str) -> ModelId:
        """Make and write the manifest of files that are in the store."""
        return self.add_manifest(
            Manifest(
                description.name, description.version, description.runtime, description.license, source,
                tuple(sorted(files, key=lambda file: file.path)), description.settings,
                description.parents, description.training_data,
            )
        )  # fmt: skip


def _write_once(target: Path, content: bytes, what: str) -> None:
    """A small read-only file, in place at once or not at all."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".adding-", delete=False) as copy:
        temporary = Path(copy.name)
        try:
            with disk_room(what):
                copy.write(content)
                copy.flush()
            os.fchmod(copy.fileno(), 0o444)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
