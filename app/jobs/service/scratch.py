"""Folders for files in the making. Those of a process that was killed are found again, because they hold data of
people: a lock tells whether a folder is in use, which the system takes off when its process ends, however it ends.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from time import time

_PREFIX = "onehop-export-"
_LOCK = "in-use"
# Between the making of a folder and of its lock.
_YOUNG_SECONDS = 10.0


class ScratchFolder:
    """A folder at `path`, until `discard`."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.path / _LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def delete_abandoned_folders() -> int:
    """Deletes the folders whose processes have ended; answers how many."""
    return sum(map(_delete_if_abandoned, Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")))


def _delete_if_abandoned(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if found.st_uid != os.geteuid() or found.st_mtime > time() - _YOUNG_SECONDS:
            return False
        # Made where its process ended before it had one.
        with (folder / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Does not follow a link.
            shutil.rmtree(folder)
    except OSError:
        # It is in use, or another process deletes it.
        return False
    return True
