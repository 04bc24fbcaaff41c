"""Files that are either whole or absent: atomic writes, locks, the cache and its keys."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import platformdirs


def cache_root() -> Path:
    """The folder of everything that can be made again: ``CLAIR_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("CLAIR_CACHE") or platformdirs.user_cache_dir("clair"))


def silent(progress: bool) -> bool | None:
    """What tqdm's ``disable`` should be: True if nobody asked for bars or TQDM_DISABLE is set, else tqdm's choice.

    (tqdm reads TQDM_DISABLE itself, but not where it draws a widget in a notebook.)
    """
    return True if not progress or os.environ.get("TQDM_DISABLE") else None


def atomic_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one, never a half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock beside ``path``: the second process waits and then finds the file made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        yield


def digest(*parts: Any) -> str:
    """A short key of JSON-able values and bytes; equal values give equal keys on every machine."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of the named distributions."""
    return {package: version(package) for package in packages}
