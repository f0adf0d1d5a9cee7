"""The one exception that means "the user can mend this"."""

import errno
import os
from typing import TypeGuard

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)


class CoraxError(Exception):
    """A user's mistake or a broken input.

    Its text is one line that names the file, the key or row, what was found and what is allowed.
    `corax.cli.run` prints that line without a traceback and exits with `cli.USER_ERROR`.
    """


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or one that led to it, says that the disk or the quota is full.

    Libraries wrap the system's error: h5py and safetensors keep no errno, only its text.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in _FULL or any(os.strerror(code) in str(error) for code in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_no_place(error: BaseException) -> TypeGuard[OSError]:
    """Whether `error` says of a named file that it may not be read or written, or cannot exist."""
    return isinstance(error, OSError) and error.errno in _NO_PLACE and error.filename is not None
