"""Trainings that are killed, stopped by signals, and have their checkpoints damaged, until they are through.

Everything is real: the scripts, the launcher, ranks that meet over gloo, SIGKILL, files. A tiny model learns quantum
programs; after every interruption the same command is started again, and when the training is through, its adapter
must have the bytes of an uninterrupted one with as many ranks. Nothing is ever cleaned up by hand. test_resume.py does
a few of each, benchmarks/resume.py hundreds.
"""

import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import stages
import warm
from prepared import Prepared

from corax.artifact import MARK, read_manifest
from corax.cli import PAUSED

STEPS = 12
PLAN = ("--plan.max_length", 400, "--plan.over_long", "drop", "--plan.packs_per_step", 4, "--plan.max_steps", STEPS)
OPTIONS = ("--lora.r", 4, "--lora.lora_dropout", 0.1, "--train.learning_rate", 0.01, "--train.threads", 1)
EVERY_STEP = ("--train.eval_steps", 10, "--train.save_steps", 1)
SECONDS = 300
"""A process that has not ended after so long is taken for a deadlock, on a loaded machine too."""

Target = Literal["launcher", "group", "rank"]
TARGETS: tuple[Target, ...] = ("launcher", "group", "rank")
DAMAGES = ("delete", "truncate", "flip")


def small_plan(prepared: Prepared, folder: Path) -> Prepared:
    """The same model and data with a plan of many short steps, made in `folder`."""
    inputs = ("--model", prepared.model, "--tokens", prepared.tokens)
    stages.call("plan", *inputs, "--output", folder / "plan", *PLAN, "--plan.validation_samples", 2)
    return Prepared(prepared.model, prepared.text, prepared.tokens, folder / "plan")


@dataclass
class Trial:
    """One training that is interrupted and started again until it is through; then another begins."""

    server: warm.Server
    prepared: Prepared
    folder: Path
    ranks: int
    options: tuple[object, ...] = EVERY_STEP
    instants: random.Random = field(default_factory=lambda: random.Random(0))
    counts: Counter[str] = field(default_factory=Counter)
    reference: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        start = time.monotonic()
        self.start()
        self.finish()
        self.seconds = time.monotonic() - start
        self.reference = self.digest()
        self.begin()

    @property
    def log(self) -> Path:
        """Where all processes write."""
        return self.folder / "log"

    @property
    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, the newest first."""
        return sorted(self.folder.glob("work/*/step-*"), reverse=True)

    def begin(self) -> None:
        """Forget everything: the next process starts a new training."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def start(self, ranks: int | None = None) -> warm.Process:
        """Start the training, always with the same command."""
        self.log.write_text("")
        output = ("--work", self.folder / "work", "--output", self.folder / "adapter")
        arguments = [*self.prepared.train_options(), *output, *OPTIONS, *self.options]
        ranks = self.ranks if ranks is None else ranks
        self.process = self.server.start("train", *arguments, log=self.log, ranks=ranks, cwd=self.folder)
        return self.process

    def finish(self) -> None:
        """Let the running process end; it must succeed."""
        code = self.process.wait(SECONDS)
        assert code == 0, f"exit code {code}\n{self.log.read_text()}"

    def digest(self) -> str:
        """The adapter's digest."""
        return read_manifest(self.folder / "adapter" / "manifest.json").digest

    def check(self) -> None:
        """The training is through: compare with the uninterrupted one and begin another."""
        self.counts["finished"] += 1
        self.counts["other bytes"] += self.digest() != self.reference
        self.begin()

    def complete(self) -> None:
        """Train to the end without another interruption and compare."""
        self.start()
        self.finish()
        self.check()

    def kill(self, target: Target) -> bool:
        """Start, and kill at a random instant; whether it was still running."""
        self.start()
        time.sleep(self.instants.uniform(0, 0.5 * self.seconds))
        return self._killed(target)

    def kill_in_checkpoint(self) -> bool:
        """Start, and kill while a checkpoint is being written; whether one was left half written."""
        self.start()
        # Let some be written first, so that the training gets on.
        wanted = {path.name for path in self.checkpoints}
        skip = self.instants.randrange(3)
        while len({path.name for path in self.checkpoints} - wanted) < skip and self._runs():
            time.sleep(0.001)
        while not self._unfinished() and self._runs():
            pass
        return self._killed("group") and bool(self._unfinished())

    def _killed(self, target: Target) -> bool:
        _send(self.process, target, signal.SIGKILL, self.instants)
        code = self.process.wait(SECONDS)
        if code == 0:
            self.check()
            return False
        assert code in (-signal.SIGKILL, 128 + signal.SIGKILL), f"exit code {code}\n{self.log.read_text()}"
        # The ranks of a killed launcher follow it.
        end = time.monotonic() + SECONDS
        while _group(self.process.pid):
            assert time.monotonic() < end, "ranks live on without their launcher"
            time.sleep(0.01)
        return True

    def pause(self, target: Target, number: signal.Signals) -> bool:
        """Start, and send a stop signal at a random instant; whether it was still running."""
        before = _step(self.checkpoints)
        self.start()
        time.sleep(self.instants.uniform(0, 0.3 * self.seconds))
        _send(self.process, target, number, self.instants)
        code = self.process.wait(SECONDS)
        text = self.log.read_text()
        going_on = re.search(r"going on after step (\d+)", text)
        self.counts["steps lost"] += before - int(going_on[1] if going_on else 0)
        if code == 0:
            self.check()
            return False
        assert code == PAUSED, f"exit code {code}\n{text}"
        stopped = re.search(r"stopped by a signal after step (\d+)", text)
        assert stopped is not None and int(stopped[1]) == _step(self.checkpoints), text
        return True

    def damage(self, name: str, kind: str) -> None:
        """With two checkpoints there: damage a file of the newest, and go on from the other, to the same adapter."""
        newest, other = self.checkpoints[:2]
        spoil(newest / name, kind)
        self.start()
        self.finish()
        text = self.log.read_text()
        named = re.search(rf"{re.escape(str(newest))}/\S+: .*damaged checkpoint, not used", text)
        self.counts["damage not named"] += named is None
        self.counts["not from the other checkpoint"] += f"going on after step {_step([other])} of" not in text
        self.check()

    def _unfinished(self) -> list[Path]:
        return list(self.folder.glob("work/*/.step-*.tmp"))

    def _runs(self) -> bool:
        return bool(_group(self.process.pid))


def spoil(path: Path, kind: str) -> None:
    """Delete the file, cut it in half, or flip a bit in its middle."""
    content = path.read_bytes()
    middle = len(content) // 2
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[:middle])
    else:
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def repeat(count: int, attempt: Callable[[int], bool]) -> int:
    """Call `attempt` with the number of successes so far until there were `count`; the number of calls."""
    done = calls = 0
    while done < count:
        done += attempt(done)
        calls += 1
    return calls


def _send(process: warm.Process, target: Target, number: signal.Signals, instants: random.Random) -> None:
    try:
        if target == "group":
            os.killpg(process.pid, number)
        elif target == "rank" and (ranks := process.ranks()):
            os.kill(instants.choice(ranks), number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        pass


def _group(leader: int) -> list[int]:
    """The running processes of a group, without those that only wait to be reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def _step(checkpoints: list[Path]) -> int:
    return int(checkpoints[0].name.removeprefix("step-")) if checkpoints else 0


def damage_all(trial: Trial, folder: Path, files: int | None = None, kinds: int = len(DAMAGES)) -> int:
    """Damage the first `files` (all) files of a checkpoint in the first `kinds` ways, in turn; how many cases."""
    trial.start()
    while len(trial.checkpoints) < 2 or _step(trial.checkpoints) < STEPS - 5:
        time.sleep(0.01)
    os.killpg(trial.process.pid, signal.SIGKILL)
    trial.process.wait(SECONDS)
    shutil.copytree(trial.folder, folder)
    names = sorted(path.name for path in trial.checkpoints[0].iterdir() if path.name != MARK)[:files]
    cases = [(name, kind) for name in names for kind in DAMAGES[:kinds]]
    for name, kind in cases:
        shutil.copytree(folder, trial.folder, dirs_exist_ok=True)
        trial.damage(name, kind)
    return len(cases)
