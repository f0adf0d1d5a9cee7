"""benchmarks/peft_comparison.py, peft_runs.py, peft_data.py, small_t5.py: what is compared, and what it is made of."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import stages
from hypothesis import given, settings
from hypothesis import strategies as st

from corax import config
from corax.artifact import Artifact
from corax.errors import CoraxError

BENCHMARKS = stages.REPOSITORY / "benchmarks"


@pytest.fixture
def benchmark_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in benchmarks/ find each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def comparison(benchmark_folder: None) -> ModuleType:
    return importlib.import_module("peft_comparison")


def finished_run(folder: Path, loss: float, packs: bytes = b"packs", peak: int | None = 3 * 10**9) -> Path:
    """The artifacts of a run that are read, as the stages leave them."""
    with Artifact(folder / "plan", stage="plan") as plan:
        (plan.path / "packs.parquet").write_bytes(packs)
        plan.note(parameters=1000)
    with Artifact(folder / "adapter", stage="train") as adapter:
        (adapter.path / "adapter_model.safetensors").write_bytes(b"weights")
        adapter.note(trainable_parameters=20, validation_loss=loss, steps=40)
        adapter.measured(
            peak_gpu_bytes=peak, peak_memory=8 * 10**9, train_seconds=12.5, cpu_seconds=90.0, device="H100"
        )
    figures = {
        "held_out": {"base": {"loss": 2.0}, "tuned": {"loss": loss}},
        "task": {"held_out": {"exact_match": 0.25, "samples": 80}},
    }
    with Artifact(folder / "evaluation.json", stage="evaluate", file=True) as evaluation:
        evaluation.path.write_text(json.dumps(figures))
    return folder


def test_a_table_and_a_plot_of_finished_runs(comparison: ModuleType, tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / name, loss) for name, loss in (("lora-8bit-alpaca", 0.5), ("full-alpaca", 0.25))]
    runs.append(finished_run(tmp_path / "full-dolly", 1.5, b"other packs", peak=None))
    results = comparison.compare(runs)
    assert {data: [result.way for result in group] for data, group in results.items()} == {
        "alpaca": ["lora-8bit", "full"],
        "dolly": ["full"],
    }
    for name in ("one", "two"):
        comparison.write(results, tmp_path / name / "peft", tmp_path / name)
    text = (tmp_path / "one" / "peft.md").read_text()
    assert "| lora-8bit | 20 | 2.000% | 3.00 GB | 12 s | 0.500 | 0.500 | 25.0% (16.8% to 35.5%) |" in text
    assert "| full | 20 | 2.000% | 8.00 GB | 90 s | 1.500 | 1.500 |" in text  # on a CPU
    assert (tmp_path / "one" / "peft.png").read_bytes() == (tmp_path / "two" / "peft.png").read_bytes()
    rows = {row["name"]: row for row in json.loads((tmp_path / "one" / "peft.json").read_text())["rows"]}
    assert rows["alpaca, full: test loss"]["value"] == 0.25


def test_runs_that_learnt_other_packs_are_not_compared(comparison: ModuleType, tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / f"{way}-alpaca", 0.5, way.encode()) for way in ("full", "lora")]
    with pytest.raises(CoraxError, match="alpaca: the runs differ in packs, test samples or device"):
        comparison.compare(runs)


def test_the_small_comparison_is_the_preset_with_a_small_model(benchmark_folder: None, tmp_path: Path) -> None:
    program = importlib.import_module("peft_runs")
    (tmp_path / "model").mkdir()
    for name in ("alpaca", "dolly"):
        (tmp_path / f"{name}.jsonl").touch()
    small = config.check(program.configuration(tmp_path / "model", tmp_path, on_gpu=True))
    preset = config.check(config.read(program.PRESET))
    assert set(small.runs) == set(preset.runs)
    assert set(program.PACED) <= set(small.runs)
    for name, run in small.runs.items():
        assert (run.tuning, run.lora, run.train.bits) == (
            preset.runs[name].tuning,
            preset.runs[name].lora,
            preset.runs[name].train.bits,
        )
    assert len({run.plan.model_dump_json() for run in small.runs.values()}) == 1  # the same samples for all


def test_the_tasks_have_right_answers(benchmark_folder: None) -> None:
    data = importlib.import_module("peft_data")
    chance = data.random.Random(1)
    for number in range(300):
        row: dict[str, Any] = data._task(chance, number)
        words, answer = row["input"].split(", "), row["output"].split(", ")
        if "capital" in row["instruction"]:
            assert [word.lower() for word in answer] == words
            assert all(word.isupper() for word in answer)
        elif "reverse" in row["instruction"]:
            assert answer[::-1] == words
        else:
            assert sorted(words) == answer


@settings(max_examples=200)
@given(ids=st.lists(st.integers(100, 999), min_size=6, max_size=200))
def test_corrupted_spans_put_back_are_the_text(ids: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        t5 = importlib.import_module("small_t5")
    first, end = 3, 1
    source, target = (tensor.tolist() for tensor in t5.corrupt(ids, first))
    assert source[-1] == target[-1] == end
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token < 100:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    assert [back for token in source[:-1] for back in spans.get(token, [token])] == ids
    assert list(spans) == list(range(first, first + len(spans)))
    assert all(len(span) == t5.SPAN for span in spans.values())
