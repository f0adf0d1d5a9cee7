"""Stages as processes of their own without the ten seconds of importing torch: forks of one that has imported it.

    with warm.Server() as server:
        process = server.start("train", *arguments, log=tmp_path / "log", ranks=4)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(seconds=60) == 75

What runs is the stage's script, with `scripts/launch.py` before it where there are ranks; the launcher's ranks are
forks too. Each process leads a group of its own, as a Slurm job does.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias, TracebackType
from typing import Any, Self

import stages


@dataclass
class Process:
    """A running stage: its process number, which is also its group's, and where its output goes."""

    server: "Server"
    pid: int
    log: Path

    def wait(self, seconds: float) -> int:
        """The exit code (negative: the signal that ended it); after `seconds` it is killed: TimeoutError."""
        try:
            return self.server.ask(seconds, wait=self.pid)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            self.server.answer()  # to the question above; the next one is to get its own
            raise

    def ranks(self) -> list[int]:
        """The processes that this one started."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(number) for number in path.read_text().split()] if path.exists() else []

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until the log has `text`, or the process has ended."""
        end = time.monotonic() + seconds
        while text not in self.log.read_text() and Path(f"/proc/{self.pid}/cmdline").read_text():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.log}: no {text!r} after {seconds} s")
            time.sleep(0.01)


class Server:
    """The process that has imported everything and forks; ends with the block."""

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, str(stages.SCRIPTS)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=stages.environment(), **pipes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.communicate()

    def start(self, stage: str, *arguments: object, log: Path, ranks: int = 1, cwd: Path | None = None) -> Process:
        """Start a stage; what it prints goes to the end of `log`."""
        return self.start_program([str(stages.SCRIPTS / f"{stage}.py"), *map(str, arguments)], log, ranks, cwd)

    def start_program(self, command: list[str], log: Path, ranks: int = 1, cwd: Path | None = None) -> Process:
        """Start a program by its file and arguments."""
        if ranks > 1:
            command = [str(stages.SCRIPTS / "launch.py"), "--ranks", str(ranks), *command]
        log.touch()
        return Process(self, self.ask(600, start=command, log=str(log), cwd=str(cwd or Path.cwd())), log)

    def ask(self, seconds: float, **question: Any) -> int:
        """Send a question and read the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"no answer to {question} after {seconds} s")
        return self.answer()

    def answer(self) -> int:
        """Wait for an answer."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


class Fork:
    """What the launcher uses of subprocess.Popen, without a new Python: the program starts in a fork."""

    __class_getitem__: Any = classmethod(GenericAlias)

    def __init__(self, command: Sequence[str], env: Mapping[str, str], preexec_fn: Callable[[], None]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(env)
            preexec_fn()
            _run(command[1:])

    def poll(self) -> int | None:
        """The exit code, None as long as it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """The exit code, once it has ended."""
        return self._reap(0)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _reap(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _run(command: Sequence[str]) -> None:
    """In a fork: be the program, then end without what the parent's libraries would do at exit."""
    sys.argv = list(command)
    code: object = 1
    try:
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _start(command: Sequence[str], log: str, cwd: str) -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(cwd)
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if Path(command[0]).stem == "launch":
            subprocess.Popen = Fork  # type: ignore[assignment,misc]
        _run(command)
    return pid


def _serve() -> None:
    """Import what the scripts import, then answer questions until the input ends."""
    sys.path.insert(0, sys.argv[1])
    for stage in ("launch", "train"):
        runpy.run_path(f"{sys.argv[1]}/{stage}.py")
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:
            answer = _start(question["start"], question["log"], question["cwd"])
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
