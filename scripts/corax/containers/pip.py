"""pip as this machine has it, with all of the site's settings: index, proxy, certificates."""

import logging
import os
import subprocess
import sys

from corax.errors import CoraxError

log = logging.getLogger("corax")

LOGGED_LINES = 8


def run(command: str, *arguments: str, what: str, **environment: str) -> None:
    """Run a pip command that takes nothing without its hash; raises CoraxError, with pip's last words in the log.

    `what` is said to be missing then; `environment` is added to this process's.
    """
    words = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--require-hashes", "--no-input", *arguments]
    result = subprocess.run(words, capture_output=True, text=True, errors="replace", env={**os.environ, **environment})
    if result.returncode != 0:
        for line in result.stderr.splitlines()[-LOGGED_LINES:]:
            log.info("pip: %s", line.strip())
        raise CoraxError(f"pip cannot fetch {what}, for the reason above")
