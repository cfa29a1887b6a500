"""Files of a run on any fsspec URI: small JSON documents, whole directories, and their commits.

Everything is written under another name and then committed. A local rename is atomic, and so is the upload of one
object to an object store, which outlives a power cut as it is; locally `sync` sees to that.
"""

import errno
import io
import json
import os
import posixpath
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem


def open_filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of ``uri`` and the path on it."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def join(uri: str, *names: str) -> str:
    """Return ``uri`` extended by path components."""
    return posixpath.join(uri.rstrip("/"), *names)


def exists(uri: str) -> bool:
    """Return whether there is a file or directory at ``uri``."""
    fs, path = open_filesystem(uri)
    return bool(fs.exists(path))


def write_text(uri: str, text: str) -> None:
    """Replace the file at ``uri`` as a whole; a reader sees the old text or the new, also after a power cut."""
    fs, path = open_filesystem(uri)
    fs.makedirs(posixpath.dirname(path), exist_ok=True)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, text.encode())
        return
    handle, partial = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".partial-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(partial, 0o644)  # mkstemp's 0600 would hide the run from its other readers
    sync(partial)
    os.replace(partial, path)
    sync(os.path.dirname(path))


def sync(*uris: str) -> None:
    """Return when what was written to these files, and the names in these directories, would outlive a power cut."""
    for uri in uris:
        fs, path = open_filesystem(uri)
        if isinstance(fs, LocalFileSystem):
            _sync_local(path)


def _sync_local(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of mounts that have no such thing, mostly for directories
            raise
    finally:
        os.close(handle)


def read_json(uri: str) -> Any | None:
    """Return the JSON document at ``uri``, or None when there is no such file."""
    fs, path = open_filesystem(uri)
    try:
        return json.loads(fs.cat_file(path))
    except FileNotFoundError:
        return None


def read_lines(uri: str) -> list[str]:
    """Return the complete lines of the file at ``uri``; none when it does not exist. A line cut off is left out."""
    fs, path = open_filesystem(uri)
    try:
        text = fs.cat_file(path).decode()
    except FileNotFoundError:
        return []
    return [str(line) for line in text.split("\n")[:-1]]


def append_line(uri: str, line: str) -> bool:
    """Append to the file at ``uri`` and return True; return False where the file system cannot append."""
    fs, path = open_filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        return False
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    return True


def list_names(uri: str) -> list[str]:
    """Return the sorted names in the directory ``uri``; none when it does not exist."""
    fs, path = open_filesystem(uri)
    fs.invalidate_cache()
    try:
        return sorted(posixpath.basename(entry.rstrip("/")) for entry in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def remove_tree(uri: str) -> None:
    """Remove the directory ``uri`` with all it holds; nothing happens when it does not exist."""
    fs, path = open_filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextmanager
def replaced_directory(uri: str) -> Iterator[Path]:
    """Yield an empty local directory whose content stands at ``uri`` when the block ends well.

    Locally it is renamed into place, with bytes that outlive a power cut; elsewhere it is uploaded, large files before
    the end by `hand_over`, and the caller commits by a document written after.
    """
    fs, path = open_filesystem(uri)
    is_local = isinstance(fs, LocalFileSystem)
    parent = os.path.dirname(path) if is_local else None
    if parent:
        os.makedirs(parent, exist_ok=True)
    if not is_local:
        remove_tree(uri)
    partial = Path(tempfile.mkdtemp(dir=parent, prefix=".partial-"))
    try:
        partial.chmod(0o755)
        yield partial
        if is_local:
            sync(*map(str, partial.rglob("*")), str(partial))
            remove_tree(uri)
            partial.rename(path)
            sync(os.path.dirname(path))
        elif any(partial.iterdir()):
            fs.put(f"{partial}/", f"{path}/", recursive=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replaced_file(uri: str) -> Iterator[Path]:
    """Yield a local path whose content stands at ``uri`` when the block ends well, and outlives a power cut there."""
    fs, path = open_filesystem(uri)
    is_local = isinstance(fs, LocalFileSystem)
    directory = posixpath.dirname(path)
    fs.makedirs(directory, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory if is_local else None, prefix=".partial-") as partial:
        file = Path(partial, posixpath.basename(path))
        yield file
        if is_local:
            sync(str(file))
            file.replace(path)
            sync(directory)
        else:
            fs.put_file(str(file), path)


def hand_over(file: Path, uri: str) -> None:
    """Upload a finished file of a `replaced_directory` of ``uri`` and free its room, where that is elsewhere."""
    fs, path = open_filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        fs.put_file(str(file), posixpath.join(path, file.name))
        file.unlink()


class GrowingFile:
    """A file that is written to its end: appended to locally, elsewhere sent again as a whole now and then."""

    def __init__(self, uri: str, upload_seconds: float) -> None:
        fs, self._path = open_filesystem(uri)
        fs.makedirs(posixpath.dirname(self._path), exist_ok=True)
        self._upload_seconds, self._uploaded = upload_seconds, time.monotonic()
        self._fs = fs
        # Kept open until `close`.
        self._local: BinaryIO | None = open(self._path, "wb") if isinstance(fs, LocalFileSystem) else None  # noqa: SIM115
        self._sent_whole = io.BytesIO()

    def write(self, data: bytes) -> int:
        """Add ``data``."""
        return (self._local or self._sent_whole).write(data)

    def flush(self) -> None:
        """Make what was written visible to readers, elsewhere at the latest ``upload_seconds`` after it."""
        if self._local is not None:
            self._local.flush()
        elif time.monotonic() - self._uploaded >= self._upload_seconds:
            self._upload()

    def close(self) -> None:
        """Make everything visible."""
        if self._local is not None:
            self._local.close()
        else:
            self._upload()

    def _upload(self) -> None:
        self._fs.pipe_file(self._path, self._sent_whole.getvalue())
        self._uploaded = time.monotonic()
