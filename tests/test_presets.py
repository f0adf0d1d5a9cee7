"""Every preset: valid, the right jobs and resources at full size, and its whole DAG with tiny models and small data.

Only models, data and sizes are changed; all other settings are the preset's own. Snakemake itself runs the README's
example; of the presets it says the commands of all jobs, in their order, and forks of one process run them, which saves
each job the ten seconds of importing torch.
"""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import preset_inputs
import pytest
import stages
import tiny
import warm
import yaml

from corax import cli, config, sweep
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.plan import architectures, devices
from corax.settings.detokenize import DetokenizeSettings
from corax.settings.pretokenize import PretokenizeSettings

FOLDER = stages.REPOSITORY / "presets"
PRESETS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"chat-sweep", "starcoder-full"})
"""All but those that change another preset."""
TINY_PLAN = {"device": "cpu", "devices": 1, "packs_per_step": 2, "max_steps": 2, "validation_samples": 2}
TINY_TRAIN = {"eval_steps": 1, "save_steps": 1, "threads": 1}
TINY_SAMPLE = {"samples_per_target": 1, "held_out_prompts": 2, "max_new_tokens": 6, "batch_size": 8, "threads": 1}


def read(preset: str) -> dict[str, Any]:
    """A preset as it is."""
    return config.read(FOLDER / f"{preset}.yaml")


def shrunk(values: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The preset with tiny models, small data and small sizes; they are written below `root`."""
    models, datasets = {}, {}
    for name, source in values["models"].items():
        models[name] = {"source": "local", "path": str(preset_inputs.model_folder(root / name, source["repository"]))}
    for name, dataset in values["datasets"].items():
        folder = root / f"data-{name}"
        folder.mkdir()
        path = preset_inputs.DATA[name](folder)
        parts = {"validation_share": 0.2, "test_share": 0.2}
        small = {"download": {"source": "local", "path": str(path)}, "shards": 2 if "{shard}" in str(path) else 1}
        datasets[name] = {**dataset, **small, "detokenize": {**dataset.get("detokenize", {}), **parts}}
    runs = {name: small_run(run, number) for number, (name, run) in enumerate(values["runs"].items())}
    return {"models": models, "datasets": datasets, "runs": runs}


def small_run(run: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A run of two steps on a CPU; of a sweep's combinations one, another for each run."""
    if "sweep" in run:
        combinations = [*sweep.expand({"run": run}).values()]
        run = combinations[number % len(combinations)]
    sizes: dict[str, dict[str, Any]] = {
        "plan": TINY_PLAN,
        "train": TINY_TRAIN,
        "merge": {"held_out_samples": 2, "threads": 1},
        "sample": TINY_SAMPLE,
        "evaluate": {"test_samples": 4, "threads": 1},
    }
    return {**run, **{section: {**run.get(section, {}), **values} for section, values in sizes.items()}}


def snakemake(folder: Path, *arguments: object) -> str:
    """What Snakemake says when it runs in `folder`; it must succeed."""
    program = [sys.executable, "-m", "snakemake", "--snakefile", stages.REPOSITORY / "Snakefile", "--cores", "2"]
    command = [str(part) for part in [*program, "--directory", folder, *arguments]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=stages.environment())
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_valid_and_pinned(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = read(preset)
    for name, dataset in values["datasets"].items():
        source = dataset["download"]
        if source["source"] == "local":
            with pytest.raises(CoraxError, match=rf"datasets\.{name}\.download\.path: data/\S+ does not exist"):
                config.check(values, preset)
            touch(source["path"], dataset.get("shards", 1))
    checked = config.check(values, preset)
    assert all(len(source.revision) == 40 for source in checked.models.values() if source.source == "hub")
    assert {source.source for source in checked.models.values()} == {"hub"}
    assert all(run.plan.device != "cpu" for run in checked.runs.values())


def touch(path: str, shards: int) -> None:
    """Empty files where the data will lie; for a dry run it is enough that they are there."""
    for shard in range(shards):
        place = Path(path.replace("{shard}", str(shard)))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def test_the_sweep_of_the_chat_preset() -> None:
    values = read("chat")
    values["runs"]["chat"].update(read("chat-sweep")["runs"]["chat"])
    runs = config.check(values).runs
    assert len(runs) == 8
    run = runs["chat-r16-lr2e-4-epochs2"]
    assert (run.lora.r, run.train.learning_rate, run.plan.num_train_epochs) == (16, 2e-4, 2)
    assert (run.lora.lora_alpha, run.train.optim) == (16, "adamw_8bit")


def starcoder_full() -> dict[str, Any]:
    """The preset starcoder, changed as starcoder-full says."""
    values = read("starcoder")
    for section, content in read("starcoder-full")["runs"]["starcoder"].items():
        values["runs"]["starcoder"].setdefault(section, {}).update(content)
    return values


@pytest.mark.presets
def test_the_sharded_preset_asks_for_four_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch("data/starcoder", 1)
    run = config.check(starcoder_full()).runs["starcoder"]
    assert (run.plan.devices, run.tuning.method, run.train.fsdp) == (4, "full", True)
    files = (FOLDER / "starcoder.yaml", FOLDER / "starcoder-full.yaml")
    (block,) = blocks(snakemake(tmp_path, "--dry-run", "--configfile", *files), "train")
    assert resource(block, "gpu") == "4"


@pytest.mark.presets
def test_the_whole_workflow_of_the_sharded_preset(tmp_path: Path) -> None:
    """With tiny models, on two ranks."""
    values = shrunk(starcoder_full(), tmp_path)
    values["runs"]["starcoder"]["plan"]["devices"] = 2
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    run_jobs(tmp_path, path)
    folder = tmp_path / "results" / "runs" / "starcoder"
    assert open_artifact(folder / "adapter").content["run"]["ranks"] == 2
    assert open_artifact(folder / "merged").facts["scores"]["original"]["kl"] < 1e-3
    assert json.loads((folder / "evaluation.json").read_text())["held_out"]["samples"] > 0
    assert (tmp_path / "results" / "report.html").is_file()


def jobs(output: str) -> dict[str, int]:
    """The table of a dry run: jobs by rule."""
    table = re.findall(r"^(\w+) +(\d+)$", output.partition("count")[2].partition("total")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in table}


def blocks(output: str, rule: str) -> list[str]:
    """What a dry run says of the jobs of a rule."""
    return re.findall(rf"^ *(?:local)?rule {rule}:\n((?:    .*\n)+)", output, re.MULTILINE)


def resource(block: str, name: str) -> str:
    """A job's resource or wildcard."""
    found = re.search(rf"\b{name}=([^\s,]+)", block)
    assert found, (name, block)
    return found[1]


@pytest.mark.presets
@pytest.mark.parametrize("preset", PRESETS)
def test_jobs_and_resources_at_full_size(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = read(preset)
    for dataset in values["datasets"].values():
        if dataset["download"]["source"] == "local":
            touch(dataset["download"]["path"], dataset.get("shards", 1))
    checked = config.check(values)
    output = snakemake(tmp_path, "--dry-run", "--configfile", FOLDER / f"{preset}.yaml")
    shards = {name: dataset.shards for name, dataset in checked.datasets.items()}
    tokens = {(run.dataset, run.model) for run in checked.runs.values()}
    expected = {
        "all": 1,
        "report": 1,
        "download_model": len(checked.models),
        **dict.fromkeys(("download_data", "detokenize"), sum(shards.values())),
        "pretokenize": sum(shards[dataset] for dataset, _ in tokens),
        **dict.fromkeys(("plan", "train", "merge", "sample", "evaluate"), len(checked.runs)),
    }
    assert jobs(output) == expected
    for rule in ("train", "merge", "sample", "evaluate"):
        for block in blocks(output, rule):
            run = checked.runs[resource(block, "run")]
            assert int(resource(block, "gpu")) == (run.plan.devices if rule == "train" else 1)
            assert resource(block, "nodes") == "1"
    for block in blocks(output, "train"):
        assert (resource(block, "mem_mb"), resource(block, "runtime")) == ("<TBD>", "<TBD>")  # the plan says


CONFIGS = {"llama-3-8b-instruct": "llama-3-8b"}
"""Models whose configuration in tests/data/configs has another name than theirs."""


def config_of(model: str) -> Path:
    """The published config.json of a preset's model."""
    return stages.REPOSITORY / "tests" / "data" / "configs" / f"{CONFIGS.get(model, model)}.json"


def full_size_model(root: Path, name: str, source: Mapping[str, Any]) -> None:
    """A model at full size, but for the weights themselves."""
    small = root / f"tiny-{name}"
    preset_inputs.model_folder(small, source["repository"])
    with Artifact(root / "results" / "models" / name, stage="download") as artifact:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(small / file, artifact.path)
        shutil.copy(config_of(name), artifact.path / "config.json")
        shapes = architectures.shapes(json.loads(config_of(name).read_text()))
        entries = {key: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for key, shape in shapes.items()}
        header = json.dumps(entries).encode()
        (artifact.path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def small_tokens(root: Path, name: str, model: str, dataset: Mapping[str, Any]) -> None:
    """The tokens of small data, for every shard of a dataset."""
    data = root / f"small-{name}-{model}"
    data.mkdir()
    settings = DetokenizeSettings(**{**dataset.get("detokenize", {}), "validation_share": 0.2, "test_share": 0.2})
    options = cli.options(settings, "detokenize")
    path = str(preset_inputs.DATA[name](data)).replace("{shard}", "0")
    stages.call(
        "download", "local", "--path", path, "--kind", "data", "--work", data / "work", "--output", data / "raw"
    )
    stages.call("detokenize", "--raw", data / "raw", "--output", data / "text", *options)
    tokens = root / "results" / "datasets" / name / "tokens" / model
    options = cli.options(PretokenizeSettings(**dataset.get("pretokenize", {})), "pretokenize")
    inputs = ("--text", data / "text", "--model", root / "results" / "models" / model)
    stages.call("pretokenize", *inputs, "--output", tokens / "000", *options)
    for shard in range(1, dataset.get("shards", 1)):
        shutil.copytree(tokens / "000", tokens / f"{shard:03}")


@pytest.mark.presets
@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_plan_asks_of_slurm(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset, planned with its model's true shapes: a dry run then shows memory and time of training.

    Only the number of steps is smaller, as the small data would be repeated thousands of times.
    """
    monkeypatch.chdir(tmp_path)
    values = read(preset)
    for data in values["datasets"].values():
        if data["download"]["source"] == "local":
            touch(data["download"]["path"], data.get("shards", 1))
    runs = config.check(values).runs
    for model in {run.model for run in runs.values()}:
        full_size_model(tmp_path, model, values["models"][model])
    for dataset, model in {(run.dataset, run.model) for run in runs.values()}:
        small_tokens(tmp_path, dataset, model, values["datasets"][dataset])
    folders = [Path("results") / "runs" / name for name in runs]
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(yaml.safe_dump({"runs": {name: {"plan": {"max_steps": 100}} for name in values["runs"]}}))
    given = ("--configfile", FOLDER / f"{preset}.yaml", fewer)
    snakemake(tmp_path, *[folder / "plan" / "manifest.json" for folder in folders], *given)
    output = snakemake(tmp_path, *[folder / "adapter" / "manifest.json" for folder in folders], *given, "--dry-run")
    assert jobs(output) == {"train": len(runs)}
    for block in blocks(output, "train"):
        name = resource(block, "run")
        run = runs[name]
        plan = json.loads((Path("results") / "runs" / name / "plan" / "plan.json").read_text())
        assert plan["fits"]
        assert int(resource(block, "gpu")) == run.plan.devices
        shapes = architectures.shapes(json.loads(config_of(run.model).read_text())).values()
        weights = sum(math.prod(shape) for shape in shapes)
        assert 1e9 + weights / 2 < plan["memory_bytes"] < devices.get(run.plan.device, 1, 1).memory
        assert 2e-6 * weights * run.plan.devices < int(resource(block, "mem_mb")) < 125_000 * run.plan.devices
        assert 0 < int(resource(block, "runtime")) <= 24 * 60


@pytest.mark.presets
@pytest.mark.parametrize("preset", PRESETS)
def test_the_whole_workflow_with_tiny_models(preset: str, tmp_path: Path) -> None:
    values = shrunk(read(preset), tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    run_jobs(tmp_path, path)
    for name, run in values["runs"].items():
        folder = tmp_path / "results" / "runs" / name
        plan = json.loads((folder / "plan" / "plan.json").read_text())
        assert (plan["steps"], plan["max_length"]) == (2, run["plan"]["max_length"])
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert evaluation["held_out"]["samples"] > 0
        assert evaluation["task"]["name"] == values["datasets"][run["dataset"]].get("task", "general")
        assert (evaluation["task"]["held_out"].get("numbers") is not None) == (run["dataset"] == "prices")
        used = {**used_settings(folder / "plan"), **used_settings(folder / "adapter")}
        for section in ("plan", "lora", "train", "tuning"):
            for key, value in run.get(section, {}).items():
                assert used[section][key] == value, (section, key)
    assert all(f'id="run-{name}"' in (tmp_path / "results" / "report.html").read_text() for name in values["runs"])
    result = stages.run("verify", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def run_jobs(folder: Path, configuration: Path) -> None:
    """Run the commands of all jobs of the workflow in `folder`, one after the other."""
    output = snakemake(folder, "--configfile", configuration, "--dry-run", "--printshellcmds")
    commands = re.findall(r"^Shell command: python +(.*) 2>&1 \| tee (\S+)$", output, re.MULTILINE)
    assert len(commands) == sum(jobs(output).values()) - 1  # `all` has none
    with warm.Server() as server:
        for command, name in commands:
            script, *arguments = shlex.split(command)
            log = folder / name
            log.parent.mkdir(parents=True, exist_ok=True)
            code = server.start(Path(script).stem, *arguments, log=log, cwd=folder).wait(seconds=600)
            assert code == 0, log.read_text()


def used_settings(artifact: Path) -> dict[str, Any]:
    """The settings that an artifact's manifest records."""
    return dict(open_artifact(artifact).content["settings"])


@pytest.mark.presets
def test_the_example_of_the_readme(tmp_path: Path) -> None:
    """A new model and a new dataset: the README's first configuration and command, as they stand there."""
    readme = (stages.REPOSITORY / "README.md").read_text()
    example, grid = re.findall(r"```yaml\n(models:.*?|runs:\n  birds:.*?)```", readme, re.DOTALL)
    (command,) = re.findall(r"^snakemake (--cores 2 --configfile birds\.yaml)$", readme, re.MULTILINE)
    (tmp_path / "birds.yaml").write_text(example)
    tiny.model_folder(tmp_path / "models" / "my-model", "chatml")
    rows = [f'"What colour is raven, number {number}?",black {number}' for number in range(60)]
    (tmp_path / "birds.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    snakemake(tmp_path, *command.split())
    evaluation = json.loads((tmp_path / "results" / "runs" / "birds" / "evaluation.json").read_text())
    assert evaluation["task"]["held_out"]["samples"] > 0
    assert 'id="run-birds"' in (tmp_path / "results" / "report.html").read_text()
    (tmp_path / "grid.yaml").write_text(grid)
    planned = jobs(snakemake(tmp_path, *command.split(), "grid.yaml", "--dry-run"))
    assert planned["train"] == 6
    assert not set(planned) & {"download_model", "download_data", "detokenize", "pretokenize"}
