"""The plan stage: packs, steps, what is left out, and the script from tokens to plan."""

import json
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stages
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import Prepared
from transformers import GPT2Config, GPT2LMHeadModel

from corax.artifact import Artifact, open_artifact, sha256
from corax.errors import CoraxError
from corax.plan import schedule
from corax.plan.blocks import Blocks, survey
from corax.plan.packing import LOOKAHEAD, Packs, draw_blocks, pack_epoch, pack_in_order, random_order
from corax.plan.schedule import PackWriter
from corax.settings.plan import TRAIN_KEYS, PlanSettings
from corax.settings.train import TrainSettings
from corax.tokens import ROW_GROUP_ROWS, SCHEMA

Lengths = npt.NDArray[np.int64]
LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=400).map(lambda values: np.array(values, np.int64))
SETTINGS = settings(max_examples=150)


def specified_lengths(count: int, seed: int = 0) -> Lengths:
    """Lengths with the quantiles of 96,000 real samples in Llama-3 tokens: mean 480, 186 to 1132."""
    shares = [0, 0.05, 0.5, 0.74, 0.89, 0.95, 0.99, 0.9976, 1]
    values = [186, 304, 423, 512, 768, 884, 977, 1024, 1132]
    return np.interp(np.random.default_rng(seed).random(count), shares, values).astype(np.int64)


def fill(packs: Packs, lengths: Lengths, max_length: int) -> float:
    return float(lengths.sum() / (len(packs) * max_length))


def as_lists(packs: Packs) -> list[list[int]]:
    return [packs.samples[a:b].tolist() for a, b in zip(packs.offsets[:-1], packs.offsets[1:], strict=True)]


@SETTINGS
@given(
    lengths=LENGTHS,
    room=st.integers(0, 300),
    packing=st.booleans(),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_every_sample_once_and_no_pack_too_long(
    lengths: Lengths, room: int, packing: bool, seed: int, epoch: int
) -> None:
    max_length = int(lengths.max()) + room
    packs = pack_epoch(lengths, max_length, packing, seed, epoch)
    assert sorted(packs.samples.tolist()) == list(range(len(lengths)))
    groups = as_lists(packs)
    assert all(0 < sum(lengths[group]) <= max_length for group in groups)
    assert packs.totals(lengths).tolist() == [sum(lengths[group]) for group in groups]
    if not packing:
        assert all(len(group) == 1 for group in groups)


@SETTINGS
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=LOOKAHEAD).map(np.array), room=st.integers(0, 300))
def test_no_pack_has_room_for_a_sample_of_a_later_one(lengths: Lengths, room: int) -> None:
    """What first-fit guarantees too, as long as all samples are in sight."""
    max_length = int(lengths.max()) + room
    packs = pack_in_order(lengths, np.arange(len(lengths)), max_length, packing=True)
    shortest_later = max_length + 1
    for group in reversed(as_lists(packs)):
        assert max_length - sum(lengths[group]) < shortest_later
        shortest_later = min(shortest_later, *lengths[group])


@pytest.mark.parametrize(("max_length", "least"), [(1280, 0.98), (2048, 0.995), (4096, 0.995), (8192, 0.995)])
@pytest.mark.parametrize("lognormal", [False, True])
def test_fill_on_realistic_lengths(max_length: int, least: float, lognormal: bool) -> None:
    lengths = specified_lengths(20_000)
    if lognormal:
        drawn = np.exp(np.random.default_rng(0).normal(np.log(430), 0.36, 20_000))
        lengths = np.clip(drawn, 186, 1132).astype(np.int64)
    assert fill(pack_epoch(lengths, max_length, True, 0, 0), lengths, max_length) >= least


def test_order_of_packs_does_not_sort_by_length() -> None:
    """The mean length of a sample in each tenth of the epoch is that of all within its statistical error."""
    lengths = specified_lengths(50_000)
    packs = pack_epoch(lengths, 2048, True, 0, 0)
    for tenth in np.array_split(packs.samples, 10):
        error = lengths.std() / np.sqrt(len(tenth))
        assert abs(lengths[tenth].mean() - lengths.mean()) < 5 * error
    fills = packs.totals(lengths)
    assert np.argmin(fills) < len(packs) - 1 or fills.min() == fills.max()


def test_samples_meet_other_samples_in_the_next_epoch() -> None:
    lengths = specified_lengths(2000)
    first, second = ({frozenset(group) for group in as_lists(pack_epoch(lengths, 1280, True, 0, e))} for e in (0, 1))
    assert len(first & second) < 0.05 * len(first)


def test_orders_are_permutations_that_differ() -> None:
    orders = [random_order(1000, seed, epoch, purpose) for seed in (0, 1) for epoch in (0, 1) for purpose in (0, 1)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8


def test_order_never_changes() -> None:
    """Plans of years ago are made again only if this stays as it is."""
    assert random_order(10, seed=0, epoch=0, purpose=0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    packs = pack_epoch(np.array([5, 3, 8, 2, 7, 4]), 10, True, seed=0, epoch=0)
    assert as_lists(packs) == [[5], [2], [0, 3, 1], [4]]


def train_packs(lengths: list[list[int]], chosen: PlanSettings) -> tuple[schedule.Part, list[dict[str, Any]]]:
    """The packs of token shards with these lengths: what they add up to, and the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        blocks = Blocks(shards(Path(folder), {"train": lengths}), "train")
        path = Path(folder, "packs.parquet")
        with PackWriter(path) as writer:
            chunks = schedule.train_chunks(blocks, chosen, Path(folder))
            part = writer.write("train", chunks, chosen.packs_per_step)
        table = pq.read_table(path)
        assert table.schema.equals(schedule.SCHEMA)
        return part, table.to_pylist()


def places(row: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(row["shards"], row["rows"], strict=True))


SHARDS = st.lists(st.lists(st.integers(1, 100), max_size=40), min_size=1, max_size=8).filter(any)


@settings(max_examples=60)
@given(
    lengths=SHARDS,
    block=st.integers(1, 100),
    at_once=st.integers(1, 50),
    packs_per_step=st.integers(1, 5),
    max_steps=st.integers(1, 30),
    packing=st.booleans(),
)
def test_max_steps(
    lengths: list[list[int]], block: int, at_once: int, packs_per_step: int, max_steps: int, packing: bool
) -> None:
    """With blocks of any size: every sample as often as any other, none cut, each pack from one block."""
    chosen = PlanSettings(max_length=100, packing=packing, packs_per_step=packs_per_step, max_steps=max_steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corax.plan.blocks.BLOCK_SAMPLES", block)
        patch.setattr(schedule, "PACKS_AT_ONCE", at_once)
        part, rows = train_packs(lengths, chosen)
    assert [row["step"] for row in rows] == [step for step in range(max_steps) for _ in range(packs_per_step)]
    assert part.steps == max_steps
    seen: Counter[tuple[int, int]] = Counter()
    for row in rows:
        seen.update(places(row))
        found = [lengths[shard][number] for shard, number in places(row)]
        assert row["tokens"] == sum(found) <= 100
        assert row["target_tokens"] == sum(length - length // 2 for length in found)
        assert packing or len(found) == 1
        between = range(min(row["shards"]), max(row["shards"]))
        assert sum(len(lengths[shard]) for shard in between) < block
    every = [(shard, row) for shard, values in enumerate(lengths) for row in range(len(values))]
    assert max(seen.values()) - min(seen.get(sample, 0) for sample in every) <= 1
    assert (part.packs, part.samples) == (len(rows), sum(seen.values()))
    assert (part.tokens, part.most_tokens) == (
        sum(row["tokens"] for row in rows),
        max(row["tokens"] for row in rows),
    )


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1.0, 2.0, 2.5])
def test_epochs(epochs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corax.plan.blocks.BLOCK_SAMPLES", 300)
    lengths = [specified_lengths(200, seed).tolist() for seed in range(5)]
    chosen = PlanSettings(max_length=1280, packs_per_step=7, num_train_epochs=epochs)
    part, rows = train_packs(lengths, chosen)
    one, _ = train_packs(lengths, chosen.model_copy(update={"num_train_epochs": 1.0}))
    assert abs(part.packs / one.packs - epochs) < 0.02
    seen = Counter(place for row in rows for place in places(row))
    every = [(shard, row) for shard in range(5) for row in range(200)]
    assert all(int(epochs) <= seen.get(sample, 0) <= np.ceil(epochs) for sample in every)
    sizes = np.bincount([row["step"] for row in rows])
    assert (sizes[:-1] == 7).all()
    assert 1 <= sizes[-1] <= 7
    assert part.steps == len(sizes)


def test_a_longer_training_begins_like_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corax.plan.blocks.BLOCK_SAMPLES", 50)
    chosen = PlanSettings(max_length=1280, packs_per_step=4, max_steps=20)
    lengths = [specified_lengths(40, seed).tolist() for seed in range(3)]
    short, long = (train_packs(lengths, chosen.model_copy(update={"max_steps": steps}))[1] for steps in (9, 40))
    assert long[: len(short)] == short


@pytest.mark.parametrize(("block", "lines"), [(100, 0), (1, 50)])
def test_few_samples_learnt_often_fill_no_log(
    block: int, lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line an epoch only where packing takes a while: for data of several blocks."""
    monkeypatch.setattr("corax.plan.blocks.BLOCK_SAMPLES", block)
    caplog.set_level("INFO", "corax")
    part, _ = train_packs([[60], [70]], PlanSettings(max_length=100, packs_per_step=10, max_steps=10))
    assert part.packs == 100
    assert sum("packs of epoch" in record.message for record in caplog.records) == lines


def test_packs_of_a_table_agree_with_the_samples(tmp_path: Path) -> None:
    lengths = {"train": [[10, 20, 30], [40, 50]], "validation": [[7], [8, 9]]}
    folders = shards(tmp_path, lengths)
    chosen = PlanSettings(max_length=60, packs_per_step=2)
    with PackWriter(tmp_path / "packs.parquet") as writer:
        writer.write("train", schedule.train_chunks(Blocks(folders, "train"), chosen, tmp_path), 2)
        writer.write("validation", schedule.validation_chunks(Blocks(folders, "validation"), chosen), 2)
    seen: Counter[int] = Counter()
    for row in pq.read_table(tmp_path / "packs.parquet").to_pylist():
        found = [lengths[row["part"]][shard][number] for shard, number in places(row)]
        seen.update(found)
        assert row["tokens"] == sum(found)
        assert row["target_tokens"] == sum(length - length // 2 for length in found)
        assert (row["step"] == -1) == (row["part"] == "validation")
    assert seen == Counter([10, 20, 30, 40, 50, 7, 8, 9])


@SETTINGS
@given(
    left=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    at_once=st.integers(1, 40),
    seed=st.integers(0, 2**40),
)
def test_blocks_give_what_they_have(left: list[int], at_once: int, seed: int) -> None:
    """However many are drawn at once."""
    drawn = np.concatenate(list(draw_blocks(np.array(left), sum(left), at_once, seed, 0)))
    assert np.bincount(drawn, minlength=len(left)).tolist() == left
    (together,) = draw_blocks(np.array(left), sum(left), 10_000, seed, 0)
    assert drawn.tolist() == together.tolist()


def test_blocks_are_mixed_evenly() -> None:
    """In each tenth a block has its share of the packs, within the statistical error."""
    left = np.array([40_000, 10_000, 50_000])
    (drawn,) = draw_blocks(left, 100_000, 100_000, 0, 0)
    for tenth in np.array_split(drawn, 10):
        assert np.bincount(tenth) == pytest.approx(left / 10, abs=5 * np.sqrt(10_000 * 0.25))
    assert np.mean(drawn[1:] == drawn[:-1]) == pytest.approx(0.16 + 0.01 + 0.25, abs=0.01)


def test_first_validation_samples_and_empty_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corax.plan.blocks.BLOCK_SAMPLES", 3)
    folders = shards(tmp_path, {"train": [[]] * 6, "validation": [[], [1, 2], [3, 4, 5], [], [6], []]})
    for most, expected in [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (5, [1, 2, 3, 4, 5]), (99, [1, 2, 3, 4, 5, 6])]:
        blocks = Blocks(folders, "validation", most)
        found = [blocks.read(block) for block in range(len(blocks))]
        assert [length for each in found for length in each.lengths.tolist()] == expected
    assert [each.shards.tolist() for each in found] == [[1, 1, 2, 2, 2], [4]]
    found_survey = survey(Blocks(folders, "validation"), 5, "drop")
    assert found_survey.dropped == [{"part": "validation", "shard": 4, "row": 0, "length": 6}]
    chosen = PlanSettings(max_length=8)
    chunks = list(schedule.validation_chunks(Blocks(folders, "validation", 5), chosen))
    assert [chunk.tokens.tolist() for chunk in chunks] == [[8, 7]]


def test_a_block_of_which_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corax.plan.blocks.BLOCK_SAMPLES", 1)
    chosen = PlanSettings(max_length=10, over_long="drop", packs_per_step=1)
    part, rows = train_packs([[3, 4], [50, 60], [5]], chosen)
    assert part.samples == 3
    assert sorted(place for row in rows for place in places(row)) == [(0, 0), (0, 1), (2, 0)]


# The script, on token shards written here and on a tiny model.


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")


def shards(
    root: Path, parts: dict[str, list[list[int]]], model: Path | None = None, prompt_share: float = 0.5
) -> list[Path]:
    """Token shards with these lengths; ids are arbitrary, the plan does not read them."""
    count = len(parts["train"])
    folders = [root / f"{shard:03}" for shard in range(count)]
    tokenizer = sha256(model / "tokenizer.json") if model else "0" * 64
    for shard, folder in enumerate(folders):
        with Artifact(folder, stage="pretokenize") as artifact:
            for part in ("train", "validation", "test"):
                lengths = parts.get(part, [[4] if part == "test" else []] * count)[shard]
                table = {
                    "input_ids": [[5] * length for length in lengths],
                    "prompt_length": [int(length * prompt_share) for length in lengths],
                    "length": lengths,
                }
                path = artifact.path / f"{part}.parquet"
                pq.write_table(pa.table(table, schema=SCHEMA), path, row_group_size=ROW_GROUP_ROWS)
            artifact.note(tokenizer_sha256=tokenizer, template={})
    return folders


PARTS = {
    "train": [specified_lengths(300, seed=1).tolist(), specified_lengths(200, seed=2).tolist()],
    "validation": [[300, 400, 500], [600, 700]],
}


def plan(model: Path, tokens: list[Path], output: Path, *options: object) -> dict[str, Any]:
    """Run the stage in this process; the content of plan.json."""
    common = ("--model", model, "--tokens", *tokens, "--output", output, "--plan.max_length", 1280)
    stages.call("plan", *common, *options)
    content = json.loads((output / "plan.json").read_text())
    assert isinstance(content, dict)
    return content


def test_script(model_folder: Path, tmp_path: Path) -> None:
    tokens = shards(tmp_path / "tokens", PARTS, model_folder)
    output = tmp_path / "plan"
    result = stages.run(
        "plan", "--model", model_folder, "--tokens", *tokens, "--output", output,
        "--plan.max_length", 1280, "--plan.packs_per_step", 4, "--plan.num_train_epochs", 2,
        "--plan.validation_samples", 4, "--lora.r", 8,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "memory of each of 1 × cpu" in result.stderr

    found = json.loads((output / "plan.json").read_text())
    assert list(found) == [
        *("steps", "packs_per_step", "max_length", "packing", "train", "validation", "epochs", "dropped"),
        *("dropped_count", "micro_batch_packs", "engine", "engine_reason", "layers_kept", "dequantised_base"),
        *("memory", "memory_bytes", "memory_allocated_bytes", "memory_layer_kept_bytes", "memory_available_bytes"),
        *("fits", "seconds_per_step", "seconds_longest_pack", "host_factor", "hours", "gpu_hours"),
        *("price", "slurm", "device", "devices", "lengths"),
    ]
    every = [length for shard in PARTS["train"] for length in shard]
    assert found["train"]["samples"] == 2 * len(every)
    assert found["train"]["tokens"] == 2 * sum(every)
    assert found["train"]["target_tokens"] == 2 * sum(length - length // 2 for length in every)
    assert found["validation"] == {"samples": 4, "packs": 2, "tokens": 1800, "target_tokens": 900, "fill": 0.7031}
    assert found["epochs"] == 2
    assert found["memory_bytes"] == sum(part["bytes"] for part in found["memory"])
    assert found["fits"] is True
    assert sum(found["lengths"]["counts"]) == len(every)
    assert found["lengths"]["counts"] == np.histogram(every, found["lengths"]["edges"])[0].tolist()

    packs = pq.read_table(output / "packs.parquet")
    assert packs.num_rows == found["train"]["packs"] + found["validation"]["packs"]
    assert max(packs["step"].to_pylist()) == found["steps"] - 1
    facts = open_artifact(output).facts
    assert facts["trained_parameters"] == 2 * 8 * 4 * (64 + 64) - 2 * 2 * 8 * 32 + 2 * 3 * 8 * (64 + 128)


def test_made_again_it_is_byte_identical(model_folder: Path, tmp_path: Path) -> None:
    tokens = shards(tmp_path / "tokens", PARTS, model_folder)
    for name in ("first", "second"):
        plan(model_folder, tokens, tmp_path / name)
    assert open_artifact(tmp_path / "first").digest == open_artifact(tmp_path / "second").digest
    other = plan(model_folder, tokens, tmp_path / "other", "--plan.seed", 1)
    assert other["train"]["samples"] == 500
    assert open_artifact(tmp_path / "first").digest != open_artifact(tmp_path / "other").digest


def test_dropped_samples_are_named(model_folder: Path, tmp_path: Path) -> None:
    parts = {"train": [[5, 50, 5], [60] * 150 + [9]], "validation": [[10], [90]]}
    tokens = shards(tmp_path / "tokens", parts, model_folder)
    options = ("--plan.max_length", 40, "--plan.over_long", "drop")
    found = plan(model_folder, tokens, tmp_path / "plan", *options)
    assert found["train"]["samples"] == 3
    assert found["validation"]["samples"] == 1
    assert found["dropped_count"] == 152
    assert len(found["dropped"]) == 100
    assert found["dropped"][:2] == [
        {"part": "train", "shard": 0, "row": 1, "length": 50},
        {"part": "train", "shard": 1, "row": 0, "length": 60},
    ]


def test_demo_data(prepared: Prepared) -> None:
    """The plan of real quantum programs holds each training row, and positions that exist."""
    found = json.loads((prepared.plan / "plan.json").read_text())
    train = pq.read_table(prepared.tokens / "train.parquet", columns=["length", "prompt_length"])
    table = pq.read_table(prepared.plan / "packs.parquet", filters=[("part", "=", "train")])
    assert found["steps"] == 12
    assert set(table["rows"].combine_chunks().flatten().to_pylist()) == set(range(train.num_rows))
    lengths = np.array(train["length"])
    assert table["tokens"].to_pylist() == [sum(lengths[rows]) for rows in table["rows"].to_pylist()]


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        (
            {"train": [[5, 50], [9, 60]]},
            (),
            r"000/train.parquet: row 1: 50 tokens, plan.max_length is 40; 2 of 4",
        ),
        (
            {"train": [[5], [9, 60]]},
            (),
            r"001/train.parquet: row 1: 60 tokens.*longest has 60; plan.over_long=drop",
        ),
        ({"validation": [[5], [41]]}, (), r"001/validation.parquet: row 0: 41 tokens"),
        ({"train": [[50], [60]]}, (), r"plan.max_length: 40 tokens is a context shorter than every train sample.* 50$"),
        ({"train": [[50], [60]]}, ("--plan.over_long", "drop"), r"a context shorter than every train sample"),
        ({"train": [[], []]}, (), r"000/train.parquet: no train sample in this or any other of 2 shards"),
        ({"validation": [[], []]}, (), r"000/validation.parquet: no validation sample.*validation_share"),
        ({"test": [[], []]}, (), r"000/test.parquet: no test sample.*test_share"),
        ({"test": [[], [41]]}, (), r"000/test.parquet: no test sample of at most 40 tokens \(plan.max_length\)"),
        ({}, ("--plan.max_length", 4), r"--plan.max_length: .*greater than or equal to 8"),
        ({}, ("--plan.device", "abacus"), r"--plan.device: .*'abacus'"),
        ({}, ("--lora.target_modules", "q_prj"), r"lora.target_modules: 'q_prj' names no linear layer"),
        ({}, ("--lora.modules_to_save", "layernorm"), r"lora.modules_to_save: 'layernorm' names no module"),
        (
            {},
            ("--lora.modules_to_save", "norm", "q_proj"),
            r"'q_proj' is quantised with train.bits 4.*allowed: embed_tokens, input_layernorm, lm_head, norm, post_at",
        ),
        (
            {"train": [[2050], [5]]},
            ("--plan.max_length", 4000),
            r"the model's context is 2048.* 2050 tokens",
        ),
    ],
)
def test_mistakes(
    model_folder: Path, tmp_path: Path, parts: dict[str, list[list[int]]], options: tuple[object, ...], message: str
) -> None:
    tokens = shards(tmp_path / "tokens", {"train": [[5], [6]], "validation": [[5], [6]], **parts}, model_folder)
    with pytest.raises(CoraxError, match=message) as caught:
        plan(model_folder, tokens, tmp_path / "plan", "--plan.max_length", 40, *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "plan").exists()


def test_sample_without_target(model_folder: Path, tmp_path: Path) -> None:
    tokens = shards(tmp_path / "tokens", PARTS, model_folder, prompt_share=1.0)
    with pytest.raises(CoraxError, match=r"000/train.parquet: row 0: no target token"):
        plan(model_folder, tokens, tmp_path / "plan")


def test_lora_on_transposed_weights_is_refused_before_the_training(model_folder: Path, tmp_path: Path) -> None:
    gpt2 = GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_inner=128)
    with Artifact(tmp_path / "gpt2", stage="download") as artifact:
        GPT2LMHeadModel(gpt2).save_pretrained(artifact.path)
        shutil.copy(model_folder / "tokenizer.json", artifact.path)
    tokens = shards(tmp_path / "tokens", PARTS, model_folder)
    with pytest.raises(CoraxError, match=r"gpt2/config.json: model_type is 'gpt2', .*allowed: full"):
        plan(tmp_path / "gpt2", tokens, tmp_path / "plan")
    options = ("--plan.over_long", "drop", "--plan.max_length", 1024, "--tuning.method", "full")
    assert plan(tmp_path / "gpt2", tokens, tmp_path / "plan", *options)["steps"] > 0


def test_other_tokenizer(model_folder: Path, tmp_path: Path) -> None:
    tokens = shards(tmp_path / "tokens", PARTS)
    with pytest.raises(CoraxError, match=r"tokenizer.json: not the tokenizer that .*tokens/000 was made with"):
        plan(model_folder, tokens, tmp_path / "plan")


def test_missing_inputs(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CoraxError, match=r"nowhere/manifest.json: missing"):
        plan(tmp_path / "nowhere", [tmp_path], tmp_path / "plan")
    with pytest.raises(CoraxError, match=r"nowhere/manifest.json: missing"):
        plan(model_folder, [tmp_path / "nowhere"], tmp_path / "plan")


def test_what_does_not_fit_is_refused_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    tokens = shards(tmp_path / "tokens", PARTS, model_folder)
    with pytest.raises(CoraxError, match=r"plan.device: a100-40gb has 40.0 GB .* would fit: lora.r=") as caught:
        plan(model_folder, tokens, tmp_path / "plan", "--plan.device", "a100-40gb", "--lora.r", 10_000_000)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "plan").exists()


def test_the_plan_decides_how_many_layers_are_kept(model_folder: Path, tmp_path: Path) -> None:
    tokens = shards(tmp_path / "tokens", PARTS, model_folder)
    on_cpu = plan(model_folder, tokens, tmp_path / "cpu")
    assert (on_cpu["engine"], on_cpu["engine_reason"], on_cpu["layers_kept"]) == ("general", "no GPU", None)
    on_gpu = plan(model_folder, tokens, tmp_path / "gpu", "--plan.device", "h100-80gb")
    assert (on_gpu["engine"], on_gpu["layers_kept"], on_gpu["dequantised_base"]) == ("fast", 2, True)
    allocated = sum(part["bytes"] for part in on_gpu["memory"] if part["component"] != "runtime")
    assert on_gpu["memory_allocated_bytes"] == allocated
    fixed = plan(model_folder, tokens, tmp_path / "fixed", "--plan.device", "h100-80gb", "--train.layers_kept", 1)
    assert (fixed["layers_kept"], fixed["dequantised_base"]) == (1, False)


def test_gpu_hours_and_price(model_folder: Path, tmp_path: Path) -> None:
    tokens = shards(tmp_path / "tokens", PARTS, model_folder)
    options = ("--plan.device", "a100-80gb", "--plan.devices", 2, "--plan.price_per_gpu_hour", 2.5)
    found = plan(model_folder, tokens, tmp_path / "gpu", *options)
    assert found["gpu_hours"] == pytest.approx(2 * found["hours"], rel=1e-3)
    assert found["price"] == pytest.approx(2.5 * found["gpu_hours"], rel=1e-3)
    assert plan(model_folder, tokens, tmp_path / "cpu", "--plan.price_per_gpu_hour", 2.5)["price"] == 0


def test_keys_that_rerun_the_plan_are_those_it_reads() -> None:
    """Every setting of training that the plan's modules read is in TRAIN_KEYS, and no other."""
    modules = (stages.SCRIPTS / "corax" / "plan").glob("*.py")
    sources = (stages.SCRIPTS / "plan.py", stages.SCRIPTS / "corax" / "settings" / "tuning.py", *modules)
    source = "".join(path.read_text() for path in sources)
    read = {key for key in TrainSettings.model_fields if re.search(rf"train\.{key}\b(?!=)", source)}
    assert read == set(TRAIN_KEYS)


def test_memory_table_without_data() -> None:
    configs = Path(__file__).parent / "data" / "configs"
    common = ("--plan.max_length", 8192, "--lora.r", 64, "--document", 1132)
    done = stages.run("memory", "--config", configs / "llama-3-8b.json", "--plan.device", "a100-40gb", *common)
    assert done.returncode == 0, done.stderr
    assert "167,772,160 trained (2.09%)" in done.stdout
    assert "3.600 GB  base: linear layers" in done.stdout
    done = stages.run("memory", "--config", configs / "starcoder.json", "--tuning.method", "full", *common)
    assert done.returncode == 2
    assert "what would fit" in done.stderr and "Traceback" not in done.stderr
