"""Writing a file whole or not at all: beside its place, to the disk, then renamed over it.

A killed process leaves at most a temporary file, whose name says which process on which machine wrote it; the next write into that
folder sweeps those whose process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import secrets
import shutil
import time
from pathlib import Path

from vis_accel.errors import OutputError

SUFFIX = ".vis-accel-tmp"
STALE_SECONDS = 24 * 3600  # for temporary files of other machines, whose processes cannot be asked for


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Writes `content` to `path`, making its folder if need be; readers see the old file or the new one, never a part.

    Args:
        path: where to; a link is followed, an existing file keeps its permissions.
        content: text is written as UTF-8.

    Raises:
        OutputError: if it could not be written; the old file is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{place.name[:80]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
        try:
            _write_through(temporary, data)
            if place.exists():
                os.chmod(temporary, place.stat().st_mode & 0o7777)
            os.replace(temporary, place)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise write_error(path, error, needed=len(data)) from error
    _sync_folder(place.parent)


def write_error(path: str | Path, error: OSError, *, needed: int = 0) -> OutputError:
    """The error for a file that could not be written: its name, the reason, and the space free and needed (bytes)."""
    reason = error.strerror or str(error)
    message = f"Cannot write {path}: {reason}. {_space(Path(path))}{needed:,} bytes were to be written; what was there before is unchanged."
    hints = {
        errno.ENOSPC: "free some space, or choose a folder on another disk",
        errno.EDQUOT: "free some space, or choose a folder on another disk",
        errno.EROFS: "the disk is read-only: choose another folder",
        errno.EACCES: "you may not write there: choose another folder",
        errno.EPERM: "you may not write there: choose another folder",
        errno.EISDIR: "a folder has that name: choose another",
        errno.ENOTDIR: "a part of that path is a file: choose another folder",
        errno.EEXIST: "a part of that path is a file: choose another folder",
    }
    return OutputError(message, hint=hints.get(error.errno or 0))


def sweep(folder: Path) -> None:
    """Deletes the temporary files that writers now dead have left in `folder`; a file that cannot be deleted stays."""
    for stray in folder.glob(f".*{SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            host, pid, _ = stray.name.removesuffix(SUFFIX).rsplit(".", 1)[1].split("-")
            old = time.time() - stray.stat().st_mtime > STALE_SECONDS
            if old or (host == _host() and not _alive(int(pid))):
                stray.unlink()


def _write_through(path: Path, data: bytes) -> None:
    # os.open, not tempfile: the file gets the permissions any new file of this user gets.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Brings the renaming itself to the disk. Not every system can; the file is complete either way."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _space(path: Path) -> str:
    folder = next((parent for parent in Path(os.path.abspath(path)).parents if parent.is_dir()), None)
    if folder is None:
        return ""
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there; "
    except OSError:
        return ""


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere os.kill(pid, 0) is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def user_folder() -> Path:
    """Where what was searched for this user's models is kept: $VIS_ACCEL_CACHE, else vis-accel in the user's cache."""
    chosen = os.environ.get("VIS_ACCEL_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vis-accel"
