"""benchmarks/real_run.py: a configuration from data to report without Snakemake.

CORAX_LONG=1 .venv/bin/pytest tests/test_real_run.py      runs it on the CPU, with a tiny model (two minutes)
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stages
import tiny
import yaml

from corax import cli, config
from corax.artifact import open_artifact
from corax.errors import CoraxError

PROGRAM = stages.REPOSITORY / "benchmarks" / "real_run.py"
CONFIGURATION = stages.REPOSITORY / "benchmarks" / "real_run.yaml"


def small(model: Path) -> dict[str, Any]:
    """The configuration of the GPU run with a tiny model and little of everything."""
    values = config.read(CONFIGURATION)
    values["models"]["smollm2-135m"]["path"] = str(model)
    dataset, run = values["datasets"]["quantum"], values["runs"]["real"]
    dataset["shards"] = 2
    dataset["generate"] |= {"topologies": 400, "samples": 200, "validation_samples": 8, "test_samples": 8}
    dataset["generate"]["configurations"] = ["SHORT_DEG1_2D_UNWEIGHTED_8-16-32"]
    run["plan"] |= {"max_length": 1024, "packs_per_step": 1, "validation_samples": 2, "device": "cpu"}
    run["lora"]["r"] = 4
    run["merge"]["held_out_samples"] = 2
    run["sample"] |= {"samples_per_target": 1, "held_out_prompts": 2, "max_new_tokens": 8, "batch_size": 16}
    run["evaluate"]["test_samples"] = 2
    return values


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    return importlib.import_module("real_run")


@pytest.mark.parametrize(
    ("planned", "seconds", "before"),
    [(4, None, []), (3, 6.0, ["plan", "train"]), (4, 6.0, ["plan", "train", "plan"])],
)
def test_its_command_lines_are_those_of_the_stages(
    planned: int, seconds: float | None, before: list[str], program: Any, tmp_path: Path
) -> None:
    """Every stage once for the run, and once for each shard, with options that its script knows.

    Six seconds of training, by the pace of a short one, are three steps here: a plan with more is made again.
    """
    (tmp_path / "model").mkdir()
    called: list[str] = []

    class Recorded(program.Pipeline):  # type: ignore[misc, name-defined]
        def stage(self, stage: str, *arguments: object, log: str = "", place: Any = 1, **sections: Any) -> None:
            options = [text for name, values in sections.items() for text in cli.options(values, name)]
            parsed = stages.module(stage).build_parser().parse_args([*map(str, arguments), *options])
            called.append(stage)
            if stage == "plan":
                steps = sections["plan"].max_steps or planned
                (tmp_path / parsed.output).mkdir(parents=True, exist_ok=True)
                plan = {"steps": steps, "train": {"tokens": 100 * steps}}
                (tmp_path / parsed.output / "plan.json").write_text(json.dumps(plan))

        def measured(self, folder: Path) -> dict[str, Any]:
            return {"tokens_per_second": 50.0}

    checked = config.check(small(tmp_path / "model"))
    program.run_all(Recorded(checked, tmp_path), "real", None, seconds)  # 50 tokens a second, 100 a step
    shards = ["generate", "detokenize", "pretokenize"] * 2
    last = ["plan", *before, "train", "merge", "sample", "evaluate", "report"]
    assert sorted(called) == sorted([*shards, "download", *last])
    assert called[-len(last) :] == last


def test_a_script_that_fails_says_why(program: Any, tmp_path: Path) -> None:
    """In a process that waited for it, as on a GPU: the error is the last line of its log, and others still run."""
    checked = config.check(small(tiny.model_folder(tmp_path / "model", "chatml")))
    gpu = program.Gpu("", tmp_path)
    try:
        with pytest.raises(CoraxError, match=r"logs/merge-real\.log: merge ended with 2: .*results/models/\S+"):
            program.Pipeline(checked, tmp_path).merge("real", gpu)
        assert gpu.run([str(stages.SCRIPTS / "merge.py"), "--help"], tmp_path / "help.log") == 0
        assert "--adapter" in (tmp_path / "help.log").read_text()
    finally:
        gpu.close()


@pytest.mark.parametrize("jobs", [0, 1, 5])
def test_side_by_side_does_every_job_once_and_goes_on_after_an_error(
    jobs: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    pipeline = importlib.import_module("pipeline")
    done: list[str] = []

    def work(job: str, device: SimpleNamespace) -> None:
        done.append(job)
        if job == "1":
            raise CoraxError("no such file")

    pipeline.side_by_side([str(job) for job in range(jobs)], [SimpleNamespace(runs=2)] * 2, work)
    assert sorted(done) == [str(job) for job in range(jobs)]
    assert ("error: 1: no such file" in capsys.readouterr().out) == (jobs > 1)


def test_the_configuration_of_the_gpu_run_is_valid(tmp_path: Path) -> None:
    values = config.read(CONFIGURATION)
    (root,) = re.findall(r"^ROOT=\$\{ROOT:-(\S+)\}$", (PROGRAM.parent / "carried.sh").read_text(), re.MULTILINE)
    assert values["models"]["smollm2-135m"]["path"] == f"{root}/model"  # where carried.sh puts it
    values["models"]["smollm2-135m"]["path"] = str(tmp_path)
    checked = config.check(values)
    assert len(checked.datasets["quantum"].generate.configurations) == 16  # type: ignore[union-attr]


@pytest.mark.skipif("CORAX_LONG" not in os.environ, reason="two minutes: CORAX_LONG=1")
def test_on_this_machine(tmp_path: Path) -> None:
    model = tiny.model_folder(tmp_path / "model", "chatml")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small(model)))
    command = [sys.executable, str(PROGRAM), str(path), "--into", str(tmp_path / "run"), "--seconds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=stages.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "run" / "results"
    evaluation = json.loads((results / "runs" / "real" / "evaluation.json").read_text())
    assert len(evaluation["task"]["targets"]) == 20
    assert (results / "report.html").is_file()
    plan = open_artifact(results / "runs" / "real" / "plan")
    assert plan.content["settings"]["plan"]["max_steps"] >= 1
    assert set(json.loads((tmp_path / "run" / "seconds.json").read_text())) >= {"train", "sample", "report"}
