"""One process at a time in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corax.errors import CoraxError

BUSY = "another process is working on this run; wait for it or stop it"


@contextmanager
def lock(folder: Path, name: str = "lock", busy: str = BUSY) -> Iterator[None]:
    """Keep a second process from working in `folder`, which is told `busy`; the lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CoraxError(f"{folder}: {busy}") from None
        yield
