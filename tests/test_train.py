"""The training stage: packs, loss, checkpoints, resume, ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import stages
import tiny
import torch
import warm
from prepared import PLAN_OPTIONS, Prepared

from corax.artifact import open_artifact, read_manifest
from corax.errors import CoraxError
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings
from corax.train import checkpoint
from corax.train.adapter import add_adapter
from corax.train.checkpoint import Checkpoint
from corax.train.general import GeneralEngine
from corax.train.isolation import check_isolation
from corax.train.packs import Batch, flatten

OPTIONS = ("--lora.r", 4, "--lora.lora_dropout", 0.1, "--train.learning_rate", 0.01, "--train.threads", 1)
FAST = (*OPTIONS, "--train.eval_steps", 4, "--train.save_steps", 1)


def samples(count: int = 3, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random samples of 5 to 30 tokens with the positions of their targets."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 30, count)
    ids = [random.integers(10, 300, length).astype(np.uint32) for length in lengths]
    return [(row, np.arange(random.integers(1, len(row)), len(row))) for row in ids]


def digest(adapter: Path) -> str:
    """The content digest of an adapter artifact."""
    return read_manifest(adapter / "manifest.json").digest


def adapter_bytes(adapter: Path) -> bytes:
    """The file with the adapter's numbers."""
    return (adapter / "adapter_model.safetensors").read_bytes()


def train(prepared: Prepared, folder: Path, *options: object) -> list[object]:
    """Arguments of the train stage that writes into `folder`."""
    return [*prepared.train_options(), "--work", folder / "work", "--output", folder / "adapter", *FAST, *options]


@pytest.fixture(scope="session")
def reference(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of an uninterrupted run, trained as a program of its own."""
    folder = tmp_path_factory.mktemp("reference")
    result = stages.run("train", *train(prepared, folder), cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "adapter"


def test_flatten_puts_loss_on_the_completion_only() -> None:
    ids = np.array([11, 12, 13, 14], np.uint32), np.array([21, 22, 23], np.uint32)
    batch = flatten([(ids[0], np.array([2, 3])), (ids[1], np.array([1, 2]))])
    assert batch.input_ids.tolist() == [[11, 12, 13, 14, 21, 22, 23]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.predicts.tolist() == [1, 2, 4, 5]
    assert batch.targets.tolist() == [13, 14, 22, 23]


def test_loss_of_a_pack_is_the_sum_over_its_samples_alone() -> None:
    model = tiny.model().float().eval()
    packed = GeneralEngine(model).loss_sum(flatten(samples()), seed=None)
    expected = torch.zeros((), dtype=torch.float64)
    for ids, targets in samples():
        tokens = torch.from_numpy(ids.astype(np.int64))
        logits = model(tokens[None]).logits[0].double()
        expected += torch.nn.functional.cross_entropy(logits[targets - 1], tokens[targets], reduction="sum")
    torch.testing.assert_close(packed.double(), expected, rtol=1e-5, atol=1e-4)


def test_isolation_holds_for_a_model_that_respects_positions() -> None:
    check_isolation(GeneralEngine(tiny.model().float()), flatten(samples()))


def test_isolation_check_finds_a_model_that_leaks() -> None:
    model = tiny.model().float()

    class Leaky(GeneralEngine):
        """Attends to everything before, as a model does that is given a mask of ones."""

        def target_logits(self, batch: Batch) -> torch.Tensor:
            logits: torch.Tensor = model(batch.input_ids, attention_mask=torch.ones_like(batch.input_ids)).logits[0]
            return logits[batch.predicts].detach()

    with pytest.raises(CoraxError, match=r"see each other.*packing to false"):
        check_isolation(Leaky(model), flatten(samples()))


def test_isolation_check_has_nothing_to_do_with_one_sample() -> None:
    check_isolation(GeneralEngine(tiny.model().float()), flatten(samples(1)))


def test_unknown_target_module_is_one_line() -> None:
    with pytest.raises(CoraxError, match=r"lora.target_modules.*no_such"):
        add_adapter(tiny.model(), LoraSettings(target_modules=["no_such"]), seed=0)


def a_checkpoint(step: int) -> Checkpoint:
    tensors = {"a": torch.full((3,), float(step))}
    return Checkpoint(step, tensors, {"0.exp_avg": torch.ones(3), "0.step": torch.tensor(step)}, [{"step": step}])


def test_checkpoints_are_kept_and_read_back(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, a_checkpoint(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002", "step-0000003"]
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3 and found.metrics == [{"step": 3}]
    assert torch.equal(found.adapter["a"], torch.full((3,), 3.0))


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "metrics.jsonl", "manifest.json"])
def test_a_damaged_checkpoint_is_never_used(tmp_path: Path, name: str, damage: str) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, a_checkpoint(step), keep=2)
    path = tmp_path / "step-0000002" / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "delete":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(content[:middle] if damage == "truncate" else flipped)
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 1


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, a_checkpoint(3), keep=1)
    (tmp_path / "step-0000003" / "metrics.jsonl").unlink()
    checkpoint.save(tmp_path, a_checkpoint(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-0000007.elsewhere-1-ab.tmp").mkdir()
    (tmp_path / "segments.txt").write_bytes(b"\xff\n-\n")
    assert checkpoint.record_segment(tmp_path)[1:] == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["segments.txt"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None


def test_training_learns_and_writes_what_is_promised(reference: Path, prepared: Prepared) -> None:
    manifest = read_manifest(reference / "manifest.json")
    assert {path.name for path in manifest.files()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.png",
        "metrics.jsonl",
    }
    rows = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    validation = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert len(losses) == 12 and losses[-1] < 0.95 * losses[0]
    assert list(validation) == [4, 8, 12] and validation[12] < validation[4]
    plan = json.loads((prepared.plan / "plan.json").read_text())
    assert sum(row["tokens"] for row in rows if "tokens" in row) == plan["train"]["tokens"]
    assert manifest.content["run"]["tokens_per_second"] > 0
    assert not (reference.parent / "work" / "step-0000012").exists()


def test_a_second_run_gives_the_same_bytes_with_curves_and_fewer_checkpoints_too(
    server: warm.Server, reference: Path, prepared: Prepared, tmp_path: Path
) -> None:
    options = ("--train.save_steps", 100, "--train.tensorboard", "true")
    process = server.start("train", *train(prepared, tmp_path, *options), log=tmp_path / "log", cwd=tmp_path)
    assert process.wait(300) == 0, process.log.read_text()
    assert digest(tmp_path / "adapter") == digest(reference)
    assert list((tmp_path / "logs" / "tensorboard" / "work").glob("events.out.*"))


def test_two_ranks_learn_the_same(server: warm.Server, reference: Path, prepared: Prepared, tmp_path: Path) -> None:
    """To the bit, since each step has two packs: a sum of two gradients has only one order."""
    process = server.start("train", *train(prepared, tmp_path), log=tmp_path / "log", ranks=2, cwd=tmp_path)
    assert process.wait(300) == 0, process.log.read_text()
    assert adapter_bytes(tmp_path / "adapter") == adapter_bytes(reference)


def test_a_plan_for_another_number_of_devices_uses_the_old_checkpoint(prepared: Prepared, tmp_path: Path) -> None:
    inputs = ("--model", prepared.model, "--tokens", prepared.tokens)
    stages.call("plan", *inputs, "--output", tmp_path / "plan", *PLAN_OPTIONS, "--plan.devices", 2)
    module, settings = stages.module("train"), (TuningSettings(), LoraSettings(), TrainSettings())
    assert open_artifact(tmp_path / "plan").digest != open_artifact(prepared.plan).digest
    two, one = ([prepared.model, plan, prepared.tokens] for plan in (tmp_path / "plan", prepared.plan))
    assert module._fingerprint(two, *settings) == module._fingerprint(one, *settings)


def test_another_setting_does_not_use_an_old_checkpoint(prepared: Prepared) -> None:
    module = stages.module("train")
    inputs = [prepared.model, prepared.plan, prepared.tokens]
    tuning, lora, settings = TuningSettings(), LoraSettings(), TrainSettings()
    base = module._fingerprint(inputs, tuning, lora, settings)
    assert module._fingerprint(inputs, TuningSettings(method="ia3"), lora, settings) != base
    assert module._fingerprint(inputs, tuning, LoraSettings(r=8), settings) != base
    assert module._fingerprint(inputs, tuning, lora, TrainSettings(seed=1)) != base
    assert module._fingerprint(inputs, tuning, lora, TrainSettings(save_steps=7, tensorboard=True)) == base


@pytest.mark.parametrize("missing", ["--model", "--plan", "--tokens"])
def test_missing_inputs_are_one_line(prepared: Prepared, tmp_path: Path, missing: str) -> None:
    arguments = train(prepared, tmp_path)
    arguments[arguments.index(missing) + 1] = tmp_path / "nowhere"
    with pytest.raises(CoraxError, match=r"manifest.json: missing"):
        stages.call("train", *arguments)
    assert not (tmp_path / "adapter").exists()
