"""One process at a time writes into a run's folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from trt_qat import distributed
from trt_qat.artifacts import remove_abandoned, writable_folder
from trt_qat.errors import ArtifactError

_HELD: set[Path] = set()  # by this process, which the kernel would let in again


@contextlib.contextmanager
def locked(folder: Path, file: str = "") -> Iterator[None]:
    """Within: no other process writes into this folder, which is made if it is not there, or this file in it.

    The kernel lets go of a lock when its process ends, however it ends, so that a dead process's lock is simply taken.
    It is a lock of the process (POSIX), not of the open file (flock), which workers that outlive it would still hold.
    In a job of several processes the main one holds it for all.

    Raises:
        ArtifactError: another process holds the lock, or the folder cannot be written.
    """
    if not distributed.is_main():
        yield
        return
    is_new = not folder.exists()
    if (folder / file).absolute() in _HELD:
        raise _in_use(folder / file, str(os.getpid()))
    lock = writable_folder(folder) / f".{file}.lock".replace("..", ".")
    descriptor = _taken(lock, folder / file)
    _HELD.add((folder / file).absolute())
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        if not file:
            remove_abandoned(folder)
        yield
    finally:
        _HELD.discard((folder / file).absolute())
        lock.unlink(missing_ok=True)  # before it is let go: who waits for the old file finds it gone and asks again
        os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # it holds what was made in it
                folder.rmdir()


def _taken(lock: Path, wanted: Path) -> int:
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise ArtifactError(f"Cannot write '{lock}': {exc.strerror}. Choose another place.") from exc
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            os.close(descriptor)  # its holder has just removed it
        except OSError as exc:
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
            os.close(descriptor)
            if exc.errno not in (errno.EACCES, errno.EAGAIN):
                raise ArtifactError(f"Cannot lock '{lock}': {exc.strerror}. Choose another place.") from exc
            raise _in_use(wanted, holder or "unknown") from exc


def _in_use(wanted: Path, holder: str) -> ArtifactError:
    return ArtifactError(
        f"'{wanted}' is in use by another process ({holder}). Wait until it is done, stop it, or choose another --out."
    )
