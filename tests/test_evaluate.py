"""The evaluate stage, and what it stands on: loading of models and metrics, the machine's precision."""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stages
import tiny
import torch
from prepared import Prepared

from corax import architecture, hardware, metrics
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.evaluation import Score, compare, first_rows, sample_tensors, score_sample
from corax.model import load_adapter, load_plain, load_quantised
from corax.tokens import TokenShards

CPU = torch.device("cpu")
ROWS = 3


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the same tokenizer."""
    return tiny.model_folder(tmp_path_factory.mktemp("tuned") / "merged", seed=1)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples: the program that makes GHZ states, no program, and the first for a held-out prompt."""
    text = json.loads((tiny.DATA / "tokens_ghz.json").read_text())["text"].removesuffix("<|end_of_text|>")
    prompt, program = text.split("{quantum state}<|end_header_id|>")[1].split(
        "<|start_header_id|>{code}<|end_header_id|>"
    )
    path = tmp_path_factory.mktemp("samples") / "samples.parquet"
    rows = [
        {"sample": number, "kind": "target", "name": "ghz", "prompt": prompt, "completion": completion}
        for number, completion in enumerate((program, "import os"))
    ]
    rows.append({**rows[0], "sample": 2, "kind": "held-out", "name": "000:0"})
    with Artifact(path, stage="sample", file=True) as artifact:
        pq.write_table(pa.Table.from_pylist(rows), artifact.path)
    return path


def arguments(prepared: Prepared, tuned: Path, samples: Path, output: Path) -> list[object]:
    inputs = ["--base", prepared.model, "--tuned", tuned, "--tokens", prepared.tokens, "--samples", samples]
    settings = ["--evaluate.test_samples", ROWS, "--evaluate.threads", 1]
    return ["--task", "quantum", *inputs, "--output", output, *settings]


def by_hand(folder: Path, prepared: Prepared) -> dict[str, float]:
    """Loss and accuracy from full logits, token by token."""
    model = load_plain(folder, torch.float32, CPU)
    losses, hits = [], []
    for row in pq.read_table(prepared.tokens / "test.parquet").to_pylist()[:ROWS]:
        ids, start = row["input_ids"], row["prompt_length"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        for position in range(start, len(ids)):
            losses.append(-float(torch.log_softmax(logits[position - 1], 0)[ids[position]]))
            hits.append(int(logits[position - 1].argmax()) == ids[position])
    loss = float(np.mean(losses))
    return {"loss": loss, "perplexity": float(np.exp(loss)), "token_accuracy": float(np.mean(hits))}


@pytest.fixture(scope="module")
def adapter(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model: peft's own starts with B = 0."""
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    adapted = peft.get_peft_model(load_plain(prepared.model, torch.float32, CPU), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("trained") / "adapter"
    with Artifact(path, stage="train", inputs=[prepared.model], settings={"lora": {"r": 4}}) as artifact:
        adapted.save_pretrained(str(artifact.path))
    return path


def test_the_merged_model_is_evaluated_like_the_adapter(
    prepared: Prepared, adapter: Path, samples: Path, tmp_path: Path
) -> None:
    """The held-out loss of evaluation.json is that of the adapter on its 4-bit base, up to rounding of the weights."""
    inputs = ["--model", prepared.model, "--adapter", adapter, "--tokens", prepared.tokens]
    stages.call("merge", *inputs, "--output", tmp_path / "merged", "--merge.held_out_samples", 2)
    output = tmp_path / "evaluation.json"
    stages.call("evaluate", *arguments(prepared, tmp_path / "merged", samples, output))
    shards = TokenShards([prepared.tokens], "test")
    trained = load_adapter(load_quantised(prepared.model, torch.float32, CPU), adapter)
    expected = Score.total(
        [score_sample(trained, *sample_tensors(shards, *row, CPU)) for row in first_rows(shards, ROWS)]
    ).figures()
    found = json.loads(output.read_text())["held_out"]
    untuned, merged = (abs(found[name]["loss"] - expected["loss"]) for name in ("base", "tuned"))
    assert untuned > 0.01
    assert merged < untuned / 10


def test_script_as_a_program(prepared: Prepared, tuned: Path, samples: Path, tmp_path: Path) -> None:
    """A program of its own: scripts/evaluate.py must not hide the library of the same name."""
    command = arguments(prepared, tuned, samples, tmp_path / "evaluation.json")
    result = stages.run("evaluate", *command)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "evaluation.json").read_text())
    held_out = content["held_out"]
    assert held_out["samples"] == ROWS
    for name, folder in (("base", prepared.model), ("tuned", tuned)):
        intervals = held_out[name].pop("intervals")
        assert held_out[name] == pytest.approx(by_hand(folder, prepared), abs=2e-6, rel=1e-6)
        assert all(low <= held_out[name][key] <= high for key, (low, high) in intervals.items())
    assert held_out["base"] != held_out["tuned"]
    difference = held_out["difference"]
    assert difference["loss"] == pytest.approx(held_out["tuned"]["loss"] - held_out["base"]["loss"], abs=2e-6)
    low, high = difference["intervals"]["loss"]
    assert low <= difference["loss"] <= high
    ghz = content["task"]["targets"][0]
    assert (ghz["name"], ghz["samples"], ghz["valid"], ghz["solved"]) == ("ghz", 2, 0.5, 0.5)
    assert ghz["best"]["fidelity"] == [1, 1, 1, 1, 1]
    assert content["task"]["held_out"]["exact"] == 1
    digest = open_artifact(tmp_path / "evaluation.json").digest
    stages.call("evaluate", *command)
    assert open_artifact(tmp_path / "evaluation.json").digest == digest
    assert (tmp_path / "evaluation.json").read_text().startswith('{\n "held_out"')


def test_both_models_are_resampled_together() -> None:
    """A tuned model that is better by the same amount on every token has a certain difference."""
    generator = np.random.default_rng(0)
    base = [
        Score(float(loss) * tokens, 0, tokens)
        for loss, tokens in zip(generator.gamma(2, size=50), [7, 13] * 25, strict=True)
    ]
    tuned = [Score(score.loss - 0.25 * score.tokens, score.tokens, score.tokens) for score in base]
    found = compare(base, tuned)
    assert found["difference"]["loss"] == pytest.approx(-0.25, abs=1e-6)
    assert found["difference"]["intervals"] == {
        "loss": pytest.approx([-0.25, -0.25]),
        "token_accuracy": [1, 1],
    }
    low, high = found["base"]["intervals"]["loss"]
    assert high - low > 0.2
    assert compare(base, tuned) == found


def test_data_without_a_task(prepared: Prepared, tuned: Path, tmp_path: Path) -> None:
    """Prices: the general task compares numbers."""
    rows = [
        {
            "sample": 0,
            "kind": "held-out",
            "name": "000:0",
            "prompt": "a pen",
            "completion": "1.50",
            "reference": "1.50",
        },
        {"sample": 1, "kind": "held-out", "name": "000:1", "prompt": "a car", "completion": "?", "reference": "9000"},
    ]
    path = tmp_path / "samples.parquet"
    with Artifact(path, stage="sample", file=True) as artifact:
        pq.write_table(pa.Table.from_pylist(rows), artifact.path)
    output = tmp_path / "evaluation.json"
    stages.call("evaluate", *arguments(prepared, tuned, path, output), "--task", "general")
    task = json.loads(output.read_text())["task"]
    assert (task["name"], task["held_out"]["exact_match"], task["held_out"]["numbers"]["answered"]) == (
        "general",
        0.5,
        0.5,
    )


def test_first_rows_go_through_the_shards(prepared: Prepared) -> None:
    shards = TokenShards([prepared.tokens, prepared.tokens], "test")
    size = shards.rows[0]
    assert first_rows(shards, size + 1) == [(0, row) for row in range(size)] + [(1, 0)]
    assert len(first_rows(shards, 10**9)) == 2 * size


def test_samples_longer_than_the_context_are_passed_over(prepared: Prepared) -> None:
    """`plan.over_long: drop` leaves them out of the training; positions that are learnt end there."""
    shards = TokenShards([prepared.tokens, prepared.tokens], "test")
    lengths = shards.lengths()[0][0].tolist()
    limit = sorted(lengths)[1]
    kept = [row for row, length in enumerate(lengths) if length <= limit]
    assert len(kept) < len(lengths)
    assert first_rows(shards, len(kept) + 1, limit) == [(0, row) for row in kept] + [(1, kept[0])]
    assert first_rows(shards, 1, 10**6, None, limit) == [(0, kept[0])], "of several limits the lowest counts"
    with pytest.raises(CoraxError, match="no sample in the test part of at most 3 tokens"):
        first_rows(shards, 1, 3)


def test_the_context_is_that_of_the_configuration(tmp_path: Path) -> None:
    for config, context in (
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"n_positions": 512, "relative_attention_num_buckets": 32}, None),
        ({}, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert architecture.context(tmp_path) == context
    (tmp_path / "config.json").write_text('{"n_positions": "512"}')
    with pytest.raises(CoraxError, match=r"config.json: n_positions is '512', allowed: a positive integer"):
        architecture.context(tmp_path)


def test_prompt_carries_no_loss(prepared: Prepared) -> None:
    model = load_plain(prepared.model, torch.float32, CPU)
    ids = torch.arange(20, 60)
    all_but_first, last = score_sample(model, ids, torch.arange(1, 40)), score_sample(model, ids, torch.tensor([39]))
    assert (all_but_first.tokens, last.tokens) == (39, 1)
    halves = score_sample(model, ids[:30], torch.arange(1, 30)).loss
    halves += score_sample(model, ids, torch.arange(30, 40)).loss
    assert all_but_first.loss == pytest.approx(halves, rel=1e-5)


def damaged(folder: Path, target: Path, stage: str, name: str, content: bytes | None) -> Path:
    """A copy of an artifact with one file replaced or removed, under a manifest of its own."""
    with Artifact(target, stage=stage) as artifact:
        artifact.note(**open_artifact(folder).facts)
        shutil.copytree(folder, artifact.path, dirs_exist_ok=True, ignore=lambda *_: ["manifest.json"])
        if content is None:
            (artifact.path / name).unlink()
        else:
            (artifact.path / name).write_bytes(content)
    return target


def test_one_clear_line(prepared: Prepared, tuned: Path, samples: Path, tmp_path: Path) -> None:
    broken = tiny.model(seed=2)
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    broken.save_pretrained(tmp_path / "weights")
    nan = (tmp_path / "weights" / "model.safetensors").read_bytes()
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(prepared.tokens / "test.parquet").slice(0, 0), sink)
    empty = sink.getvalue().to_pybytes()

    other = damaged(tuned, tmp_path / "other", "merge", "tokenizer.json", b"{}")
    headless = damaged(tuned, tmp_path / "none", "merge", "tokenizer.json", None)
    not_a_number = damaged(tuned, tmp_path / "nan", "merge", "model.safetensors", nan)
    no_rows = damaged(prepared.tokens, tmp_path / "tokens", "pretokenize", "test.parquet", empty)
    for option, value, message in (
        ("--max-length", 3, "test.parquet: no sample in the test part of at most 3 tokens"),
        ("--tuned", other, "other/tokenizer.json: not the tokenizer that"),
        ("--tuned", headless, "none/tokenizer.json: missing"),
        ("--tuned", not_a_number, "nan: the loss is nan, so the weights are damaged"),
        ("--tokens", no_rows, "tokens/test.parquet: no sample in the test part"),
        ("--task", "go", "task 'go' does not exist"),
        ("--samples", tmp_path / "no.parquet", "no.manifest.json: missing"),
        ("--samples", tuned, ", not by sample"),
        ("--evaluate.test_samples", 0, "--evaluate.test_samples: input should be greater than or equal to 1"),
    ):
        output = tmp_path / "out" / "evaluation.json"
        with pytest.raises(CoraxError) as error:
            stages.call("evaluate", *arguments(prepared, tuned, samples, output), option, value)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not output.exists()


def test_models_that_cannot_be_loaded(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(CoraxError, match=r"no model folder, config.json is missing"):
        load_plain(tmp_path, torch.float32, CPU)
    with pytest.raises(CoraxError, match=r"no adapter folder, adapter_config.json is missing"):
        load_adapter(load_plain(prepared.model, torch.float32, CPU), tmp_path)
    model = tiny.model()
    kept = {name: tensor for name, tensor in model.state_dict().items() if "q_proj" not in name}
    model.save_pretrained(tmp_path / "incomplete", state_dict=kept)
    with pytest.raises(CoraxError, match=r"2 weights are missing, the first is model.layers.0.self_attn.q_proj.weight"):
        load_plain(tmp_path / "incomplete", torch.float32, CPU)
    file = tmp_path / "incomplete" / "config.json"
    file.write_text(json.dumps({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    (tmp_path / "incomplete" / "code.py").write_text("raise SystemExit('executed')")
    with pytest.raises(CoraxError, match="transformers cannot load this model"):
        load_plain(tmp_path / "incomplete", torch.float32, CPU)


def test_quantised_model_is_near_the_original(prepared: Prepared) -> None:
    plain = load_plain(prepared.model, torch.float32, CPU)
    quantised = load_quantised(prepared.model, torch.float32, CPU)
    assert quantised.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert torch.equal(quantised.lm_head.weight, plain.lm_head.weight)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        difference = (plain(ids).logits - quantised(ids).logits).std() / plain(ids).logits.std()
    assert 0.001 < difference < 0.5


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("avx2 avx512f avx512_bf16 fma", torch.bfloat16),
        ("avx512f amx_bf16 amx_tile", torch.bfloat16),
        ("avx2 avx512f fma", torch.float32),
    ],
)
def test_bfloat16_only_where_the_processor_has_it(tmp_path: Path, flags: str, dtype: torch.dtype) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: fpu {flags}\n")
    assert hardware.compute_dtype(CPU, tmp_path / "cpuinfo") == dtype
    assert hardware.compute_dtype(CPU, tmp_path / "absent") == torch.float32


def test_seed_repeats_random_numbers() -> None:
    drawn = []
    for _ in range(2):
        hardware.deterministic(7, threads=1)
        drawn.append((torch.rand(3).tolist(), np.random.rand()))
    assert drawn[0] == drawn[1]
    assert torch.are_deterministic_algorithms_enabled()


METRIC = """
import datasets
import evaluate

TEXT = datasets.Value("string")

class Same(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": TEXT, "references": TEXT})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"same": sum(map(str.__eq__, predictions, references))}
"""


def test_metrics_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    for name in ("first", "second"):
        path = tmp_path / f"{name}.py"
        path.write_text(METRIC)
        metric = metrics.load(path)
        assert not list((tmp_path / "temporary").iterdir())
        assert metric.compute(predictions=["a", "b"], references=["a", "c"]) == {"same": 1}
        assert metric.compute(predictions=["a", "b"], references=["a", "b"]) == {"same": 2}
