"""One process at a time writes to a folder.

The lock is ``flock`` on an open file: the kernel lets go of it when its holder ends, however that
ends, so that no lock is ever stale. The file's text is for people. On network file systems it holds
between machines where the server supports it: NFS with a lock service, Lustre mounted with
``flock``, not with ``localflock`` or ``nolock``.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from dreamprm.errors import UserError
from dreamprm.writing import writing

log = logging.getLogger("dreamprm")

LOCK_FILE = ".lock"
# What a file system answers that knows no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock(NamedTuple):
    """A folder's lock that this process holds.

    Attributes:
        folder: that is locked.
        file: the descriptor of the lock file.
    """

    folder: Path
    file: int

    def holds(self) -> bool:
        """Whether the folder is still the one that was locked."""
        try:
            return os.path.samestat(os.stat(self.folder / LOCK_FILE), os.fstat(self.file))
        except FileNotFoundError:
            return False


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Within it, no other process of this project writes to the folder, which must be there.

    Raises:
        UserError: another one does; the message says which. Or the folder cannot be written to.
    """
    lock = Lock(folder, _acquire(folder))
    try:
        yield lock
    finally:
        if lock.holds():
            with suppress(OSError):  # in a folder that became read-only; a file left there is none
                (folder / LOCK_FILE).unlink()
        os.close(lock.file)


def _acquire(folder: Path) -> int:
    path = folder / LOCK_FILE
    while True:
        with writing(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise UserError(
                f"{folder} is being written to by {holder}: wait until it has ended, or give "
                "another out="
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise UserError(f"cannot lock {path}: {error.strerror}") from error
            log.warning("%s: its file system has no locks: start no second run in it", folder)
        if Lock(folder, file).holds():
            break
        os.close(file)  # its holder has ended and removed it between opening and locking
    try:
        with writing(path):
            since = datetime.now().isoformat(" ", "seconds")
            os.ftruncate(file, 0)
            holder = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
            os.write(file, holder.encode())
    except UserError:
        path.unlink(missing_ok=True)
        os.close(file)
        raise
    return file
