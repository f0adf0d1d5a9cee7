"""Sharded full fine-tuning: it learns what unsharded learns, survives kills, and its files know no number of ranks."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import interruptions
import preset_inputs
import pytest
import stages
import tiny
import torch
import warm
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import Trial
from plan_trainings import sizes, training
from prepared import Prepared
from safetensors.torch import load_file, save_file

from corax import config
from corax.artifact import Artifact
from corax.errors import CoraxError
from corax.plan import devices, fit, memory, speed, states
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings, conflict, undividable
from corax.stop import STOP_SIGNALS
from corax.train import tensors

REPOSITORIES = ("meta-llama/tiny", "bigcode/tiny", "google/gemma-2-tiny")
"""An output head of its own; learnt positions and norms with bias; a tied head and plain attention."""
PLAN = ("--plan.max_length", 200, "--plan.over_long", "drop", "--plan.validation_samples", 3)
FULL = ("--tuning.method", "full", "--train.threads", 1, "--train.learning_rate", 0.003)
SHARDED = (*FULL, "--train.fsdp", "true")
CARD = devices.GPUS["a100-80gb"]


def model_of(repository: str, folder: Path) -> Path:
    """A tiny model of that family as an artifact, its weights in float32, so that none is rounded when it is saved."""
    with Artifact(folder, stage="download") as artifact:
        made = preset_inputs.model_folder(artifact.path / "made", repository)
        weights = {name: value.float() for name, value in load_file(made / "model.safetensors").items()}
        save_file(weights, made / "model.safetensors", {"format": "pt"})
        content = json.loads((made / "config.json").read_text()) | {"dtype": "float32"}
        (made / "config.json").write_text(json.dumps(content))
        for file in made.iterdir():
            file.rename(artifact.path / file.name)
        made.rmdir()
    return folder


def planned(model: Path, folder: Path, text: Path) -> list[object]:
    """Inputs of the train stage: three packs a step, which two ranks cannot share evenly."""
    tokens, plan = folder / "tokens", folder / "plan"
    stages.call("pretokenize", "--text", text, "--model", model, "--output", tokens)
    steps = ("--plan.packs_per_step", 3, "--plan.max_steps", 4)
    stages.call("plan", "--model", model, "--tokens", tokens, "--output", plan, *PLAN, *steps)
    return ["--model", model, "--plan", plan, "--tokens", tokens]


@pytest.fixture(scope="module")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions and answers that any tokenizer makes short samples of."""
    root = tmp_path_factory.mktemp("text")
    rows = [{"prompt": f"{n} birds and {n % 7} ravens?", "completion": f"{n + n % 7} birds."} for n in range(60)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Artifact(root / "raw", stage="download") as artifact:
        (artifact.path / "data.jsonl").write_text((root / "data.jsonl").read_text())
    shares = ("--detokenize.validation_share", 0.2, "--detokenize.test_share", 0.2)
    stages.call("detokenize", "--raw", root / "raw", "--output", root / "text", *shares)
    return root / "text"


def metrics(adapter: Path) -> list[dict[str, Any]]:
    """The rows of a training."""
    return [json.loads(line) for line in (adapter / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_two_ranks_learn_what_one_process_learns(
    repository: str, server: warm.Server, short_text: Path, tmp_path: Path
) -> None:
    inputs = planned(model_of(repository, tmp_path / "model"), tmp_path, short_text)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    common = ("--train.eval_steps", 2, "--train.gradient_checkpointing", "true")
    stages.call("train", *inputs, *FULL, *common, "--work", tmp_path / "work", "--output", alone)
    options = (*SHARDED, *common, "--work", tmp_path / "work", "--output", shared)
    process = server.start("train", *inputs, *options, log=tmp_path / "log", ranks=2, cwd=tmp_path)
    assert process.wait(300) == 0, process.log.read_text()

    one, other = (load_file(folder / "model.safetensors") for folder in (alone, shared))
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert other[name].dtype == weight.dtype == torch.float32
        torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-5)
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 1e-3
    for row, expected in zip(metrics(shared), metrics(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    # An ordinary model folder, of which nothing says how it was trained.
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    assert (shared / "config.json").read_bytes() == (tmp_path / "model" / "config.json").read_bytes()


@pytest.fixture(scope="module")
def small(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A plan of many short steps."""
    return interruptions.small_plan(prepared, tmp_path_factory.mktemp("small"))


def test_kills_and_signals_leave_the_bytes_of_an_uninterrupted_run(
    server: warm.Server, small: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = (*SHARDED, "--train.save_steps", 1, "--train.eval_steps", 3, "--train.load_best_model_at_end", "true")
    trial = Trial(
        server, small, tmp_path_factory.mktemp("trial") / "two", 2, options=options, instants=random.Random(0)
    )
    interruptions.repeat(1, lambda n: trial.kill("rank"))
    interruptions.repeat(1, lambda n: trial.kill_in_checkpoint())
    interruptions.repeat(1, lambda n: trial.pause("group", STOP_SIGNALS[0]))
    trial.complete()
    assert trial.counts["finished"] >= 1
    assert trial.counts["other bytes"] == trial.counts["steps lost"] == 0


def test_another_number_of_ranks_goes_on(server: warm.Server, small: Prepared, tmp_path: Path) -> None:
    """Two ranks stop, three go on: each reads its rows of the same files."""
    output = ("--work", tmp_path / "work", "--output", tmp_path / "adapter")
    options = (*small.train_options(), *output, *SHARDED, "--train.save_steps", 1, "--train.eval_steps", 6)
    for ranks, code in ((2, 75), (3, 0)):
        process = server.start("train", *options, log=tmp_path / f"log-{ranks}", ranks=ranks, cwd=tmp_path)
        if code:
            process.wait_for("steps of")
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(300) == code, process.log.read_text()
    assert "going on after step" in process.log.read_text()
    whole = tmp_path / "whole"
    output = ("--work", whole / "work", "--output", whole / "adapter")
    stages.call("train", *small.train_options(), *FULL, "--train.eval_steps", 6, *output)
    for row, expected in zip(metrics(tmp_path / "adapter"), metrics(whole / "adapter"), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


shapes = st.lists(st.integers(0, 5), max_size=3)
kinds = st.sampled_from(sorted(tensors.DTYPES, key=str))


@settings(max_examples=30)
@given(content=st.lists(st.tuples(shapes, kinds), max_size=5), ranks=st.integers(1, 7), seed=st.integers(0, 9))
def test_a_file_is_the_sum_of_its_shares(
    content: list[tuple[list[int], torch.dtype]], ranks: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What safetensors itself reads, and of what ranks read nothing missing and nothing twice."""
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    numbers = torch.Generator().manual_seed(seed)
    written = {
        f"a.{n}": torch.randint(0, 9, shape, generator=numbers).to(kind) for n, (shape, kind) in enumerate(content)
    }
    tensors.write(path, written)
    assert load_file(path).keys() == written.keys()
    shares = [tensors.read(path, (rank, ranks)) for rank in range(ranks)]
    for name, value in load_file(path).items():
        assert torch.equal(value, written[name]) and value.dtype == written[name].dtype
        parts = [share[name] for share in shares]
        assert torch.equal(torch.cat(parts) if value.dim() else parts[0], value)


def test_weights_are_rounded_once_when_they_are_written(tmp_path: Path) -> None:
    value = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    tensors.write(tmp_path / "x.safetensors", {"a": value}, torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], value.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("tuning", "train", "expected"),
    [
        ({}, {"fsdp": True}, "allowed with tuning.method: full; found 'lora'"),
        ({"method": "ia3"}, {"fsdp": True}, "allowed with tuning.method: full; found 'ia3'"),
        ({"method": "full"}, {"fsdp": True, "optim": "adamw_8bit"}, "allowed with train.optim: adamw_torch"),
        ({"method": "full"}, {"fsdp": True}, None),
    ],
)
def test_what_it_does_not_go_with_is_one_line(
    tuning: dict[str, Any], train: dict[str, Any], expected: str | None
) -> None:
    problem = conflict(TuningSettings(**tuning), LoraSettings(), TrainSettings(**train), packing=True)
    assert problem is None if expected is None else problem is not None and expected in problem


def test_one_device_and_encoder_decoder_models_are_refused(tmp_path: Path, prepared: Prepared) -> None:
    wanted = TrainSettings(fsdp=True)
    assert undividable(wanted, 4, has_encoder=False) is undividable(TrainSettings(), 1, has_encoder=True) is None
    assert "decoder-only" in str(undividable(wanted, 4, has_encoder=True))
    inputs = ("--model", prepared.model, "--tokens", prepared.tokens, "--output", tmp_path / "plan")
    with pytest.raises(CoraxError, match=r"plan.devices is 1, allowed: 2 and more"):
        stages.call("plan", *inputs, *PLAN, *SHARDED)
    work = ("--work", tmp_path / "work", "--output", tmp_path / "adapter")
    with pytest.raises(CoraxError, match=r"plan.devices is 1"):
        stages.call("train", *prepared.train_options(), *work, *SHARDED)
    values: dict[str, Any] = {
        "models": {"m": {"source": "local", "path": "."}},
        "datasets": {"d": {"generate": {"samples": 10}}},
        "runs": {"r": {"model": "m", "dataset": "d", "tuning": {"method": "full"}, "train": {"fsdp": True}}},
    }
    with pytest.raises(CoraxError, match=r"runs.r: train.fsdp is true.*plan.devices is 1"):
        config.check(values)


def test_weights_that_are_stored_otherwise_are_one_line(
    server: warm.Server, prepared: Prepared, tmp_path: Path
) -> None:
    with Artifact(tmp_path / "model", stage="download") as artifact:
        made = tiny.model_folder(tmp_path / "made")
        for file in (made / "config.json", made / "tokenizer.json", made / "tokenizer_config.json"):
            (artifact.path / file.name).write_bytes(file.read_bytes())
        weights = load_file(made / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
        save_file(weights, artifact.path / "model.safetensors", {"format": "pt"})
    inputs = ("--model", tmp_path / "model", "--plan", prepared.plan, "--tokens", prepared.tokens)
    work = ("--work", tmp_path / "work", "--output", tmp_path / "adapter")
    process = server.start("train", *inputs, *work, *SHARDED, log=tmp_path / "log", ranks=2, cwd=tmp_path)
    assert process.wait(300) == 2
    assert r"model.norm.weight of shape (64,), found (63,)" in process.log.read_text()
    assert "Traceback" not in process.log.read_text() and not (tmp_path / "adapter").exists()


def test_the_plan_divides_states_and_gathers_layers() -> None:
    """StarCoder: 248 GB of states over four cards; what one rank has more is what is gathered for a while."""
    options: dict[str, Any] = {"tokens": 2048, "method": "full", "gradient_checkpointing": True, "packs": 4}
    four, eight = (training("starcoder", CARD, ranks=ranks, fsdp=True, **options) for ranks in (4, 8))
    assert 16 * four.model.parameters / 4 == pytest.approx(
        memory.allocated(states.fixed(four)) + states.gradients(four).bytes, rel=1e-6
    )
    half = memory.total(states.fixed(four)) - memory.total(states.fixed(eight))
    assert half == pytest.approx(12 * four.model.parameters / 8, rel=1e-6)
    fit.check(four)
    gathered = {name: size for name, size in sizes(fit.estimate(four)).items() if name.startswith("gathered")}
    block = 379_060_224
    assert gathered["gathered: two blocks, gradient of one"] == 10 * block
    # Eight processes, of which each reads its rows, need no more main memory for the model than four.
    main = [speed.slurm_request(run, memory.total(fit.estimate(run)), 1.0).mem_gb for run in (four, eight)]
    assert main[1] - main[0] == pytest.approx(4 * speed.LIBRARIES / 1e9, abs=1)


def test_short_packs_wait_for_the_exchange() -> None:
    """2 × 2 bytes a weight gathered and 4 summed for each pack, three quarters of them from the other cards."""
    short, long = (
        training("starcoder", CARD, tokens=tokens, ranks=4, method="full", fsdp=True) for tokens in (128, 8192)
    )
    seconds = [speed.seconds_per_pack(run, run.tokens, run.tokens, run.tokens) for run in (short, long)]
    assert seconds[0] == pytest.approx(0.75 * 8 * short.model.parameters / (0.75 * 300e9))
    assert seconds[1] > 4 * seconds[0]
    alone = training("starcoder", CARD, tokens=128, ranks=4, method="full")
    assert speed.optimizer_seconds(short) == pytest.approx(speed.optimizer_seconds(alone) / 4)


def test_what_does_not_fit_on_one_card_is_told_to_divide() -> None:
    card = devices.GPUS["h100-80gb"]
    with pytest.raises(CoraxError, match=r"what would fit: .*train\.fsdp=true \("):
        fit.check(training("llama-3-8b", card, tokens=2048, ranks=4, method="full"))
    with pytest.raises(CoraxError) as raised:
        fit.check(training("llama-3-8b", card, tokens=2048, ranks=1, method="full"))
    assert "fsdp" not in str(raised.value)
