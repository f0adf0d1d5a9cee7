"""One process at a time in a folder."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from corax.errors import CoraxError

BUSY = "another process is working on this run; wait for it or stop it"
PATIENCE = 60.0
"""Seconds. A killed process keeps its lock until its last thread has ended and its memory is given back."""
log = logging.getLogger("corax")


@contextmanager
def lock(folder: Path, name: str = "lock", busy: str = BUSY, patience: float = PATIENCE) -> Iterator[None]:
    """Keep a second process from working in `folder`; the lock goes with the process.

    A second one waits `patience` seconds, since the first may just have been killed, and then is told `busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        end = time.monotonic() + patience
        if not _take(file):
            log.info("%s: held by another process, which may be ending; waiting up to %g s", folder, patience)
            while not _take(file):
                if time.monotonic() > end:
                    raise CoraxError(f"{folder}: {busy}")
                time.sleep(0.05)
        yield


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # Lustre mounted without flock, say
        reason = f"cannot be locked ({error.strerror}), a file system with locks is needed"
        raise CoraxError(f"{file.name}: {reason}") from None
    return True
