"""Start the ranks of a program on this machine, one process a device, and end as they do.

    python scripts/launch.py --ranks 4 scripts/train.py --model …

SIGTERM and SIGUSR1 are handed on to every rank. The exit code is that of the rank that failed first; the others are
then killed, since they wait for it. Without a failure it is 75 (paused) or 0. If this process dies, so do the ranks.
"""

from corax import stop

if __name__ == "__main__":
    stop.hold()

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import torch.distributed as dist

from corax import cli
from corax.errors import CoraxError

SIGNALS = {signal.SIGCHLD, *stop.STOP_SIGNALS}
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--ranks", required=True, type=int, help="number of processes, one a device")
    parser.add_argument("program", help="Python program; stop signals are blocked in it until it unblocks them")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    return parser


def main(args: argparse.Namespace) -> None:
    """Run the program and exit as it did."""
    if args.ranks < 1:
        raise CoraxError(f"--ranks: {args.ranks}, must be at least 1")
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # Where the ranks meet, on a port that the system chose. Loopback: the host's name may lead nowhere.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common = {"OMP_NUM_THREADS": "1", **os.environ, **meeting}
    size = str(args.ranks)
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in map(str, range(args.ranks)):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            command = [sys.executable, args.program, *args.arguments]
            ranks.append(subprocess.Popen(command, env={**common, **numbers}, preexec_fn=_prepare))
        code = _wait(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    sys.exit(code)


def _prepare() -> None:
    """In a rank, before its program: it dies with the launcher, and learns when its own processes end."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all ranks have ended, or one has failed, and hand signals on; the exit code."""
    while True:
        codes = [code for process in ranks if (code := process.poll()) is not None]
        failed = [code for code in codes if code not in (0, cli.PAUSED)]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if len(codes) == len(ranks):
            return max(codes)
        number = signal.sigwaitinfo(SIGNALS).si_signo
        if number != signal.SIGCHLD:
            for process in ranks:
                process.send_signal(number)


if __name__ == "__main__":
    cli.run(main, build_parser())
