"""Encoder-decoder models (T5): template, loss, sampling and the stages, with a tiny random one.

Through the DAG they go in test_presets.py, with presets/sentiment.yaml.
"""

import csv
import json
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stages
import tiny_t5
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from corax.artifact import open_artifact, read_manifest
from corax.errors import CoraxError
from corax.evaluation import score_sample
from corax.sample import batches
from corax.sample.prompts import Prompt
from corax.sample.requests import Request
from corax.settings.sample import SampleSettings
from corax.settings.train import TrainSettings
from corax.template import Template
from corax.train.engine import make_engine
from corax.train.isolation import check_isolation
from corax.train.packs import flatten
from corax.train.rows import alike
from corax.train.seq2seq import Seq2SeqEngine

HEADER = "sst2 sentence:"
METHODS = ("lora", "full", "prefix_tuning", "prompt_tuning")
PLAN = ("--plan.max_length", 128, "--plan.packs_per_step", 2, "--plan.max_steps", 6, "--plan.validation_samples", 8)
TRAIN = ("--train.learning_rate", 0.01, "--train.threads", 1, "--train.eval_steps", 3, "--train.save_steps", 1)


@dataclass(frozen=True)
class Prepared:
    """A tiny T5 and labelled sentences as its tokens."""

    model: Path
    text: Path
    tokens: Path


def write_csv(path: Path, count: int = 60) -> Path:
    """Labelled sentences in the form of SST-2: text, and the number of the class."""
    rows = random.Random(0).sample(tiny_t5.SENTENCES, count)
    positive = ("good", "wonderful", "moving")
    with path.open("w", newline="") as file:
        labelled = [(row, int(any(word in row for word in positive) != ("not" in row))) for row in rows]
        csv.writer(file).writerows([("text", "label"), *labelled])
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The artifacts before the plan, by the real stages."""
    root = tmp_path_factory.mktemp("seq2seq")
    raw, text, tokens = (root / name for name in ("raw", "text", "tokens"))
    model = tiny_t5.model_folder(root / "model")
    data = write_csv(root / "reviews.csv")
    stages.call("download", "local", "--path", data, "--kind", "data", "--work", root / "work", "--output", raw)
    columns = ("--detokenize.prompt_column", "text", "--detokenize.completion_column", "label")
    labels = ("--detokenize.labels", "negative", "positive")
    shares = ("--detokenize.validation_share", 0.2, "--detokenize.test_share", 0.2)
    stages.call("detokenize", "--raw", raw, "--output", text, *columns, *labels, *shares)
    header = ("--pretokenize.prompt_header", HEADER)
    stages.call("pretokenize", "--text", text, "--model", model, "--output", tokens, *header)
    return Prepared(model, text, tokens)


@pytest.fixture(scope="module")
def template(prepared: Prepared) -> Template:
    """What the encoder reads and the decoder writes."""
    return Template(prepared.model, HEADER, "")


def float_model(prepared: Prepared) -> Any:
    """The tiny T5 in float32."""
    return AutoModelForSeq2SeqLM.from_pretrained(prepared.model, dtype=torch.float32).eval()


def samples(count: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random prompts of 3 to 30 ids, and completions of 1 to 6."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        before, after = generator.integers(3, 30), generator.integers(1, 6)
        rows.append((generator.integers(3, 60, before + after).astype(np.uint32), np.arange(before, before + after)))
    return rows


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of one length, filled on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def as_transformers(pack: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """The samples as transformers' own arguments: padded prompts, and labels with -100 in the padding."""
    prompts = [ids[: places[0]].tolist() for ids, places in pack]
    return {
        "input_ids": padded(prompts, 0),
        "attention_mask": padded([[1] * len(row) for row in prompts], 0),
        "labels": padded([ids[places].tolist() for ids, places in pack], -100),
    }


def test_rows_are_what_encoder_and_decoder_get(prepared: Prepared, template: Template) -> None:
    table = pq.read_table(prepared.tokens / "train.parquet").to_pylist()
    lines = [json.loads(line) for line in (prepared.text / "train.jsonl").read_text().splitlines()]
    assert {line["completion"] for line in lines} == {"negative", "positive"}
    assert len(table) == len(lines)
    for row, line in zip(table, lines, strict=True):
        ids, first = row["input_ids"], row["prompt_length"]
        assert template.decode(ids[:first]) == f"{HEADER} {line['prompt']}</s>"
        assert template.decode(ids[first:]) == f"{line['completion']}</s>"
        assert template.prompt_ids(line["prompt"]) == ids[:first]
    facts = open_artifact(prepared.tokens).facts["template"]
    assert (facts["format"], facts["end"]["token"], facts["pad"]["token"]) == ("encoder-decoder", "</s>", "<pad>")


@given(st.lists(st.sampled_from(["</s>", "<pad>", "<", "/s>", " ", "＜", "film", "\n", "é", "🙂"]), max_size=12))
def test_text_never_becomes_a_special_token(template: Template, pieces: list[str]) -> None:
    ids = template.prompt_ids("".join(pieces))
    assert ids[-1] == template.end_id
    assert not {template.end_id, template.pad_id} & set(ids[:-1])


def text_artifact(folder: Path, kind: str, *rows: dict[str, Any]) -> Path:
    """A text artifact whose training part has the given lines."""
    from corax.artifact import Artifact

    with Artifact(folder, stage="detokenize") as artifact:
        for part in ("train", "validation", "test"):
            lines = rows if part == "train" else ()
            (artifact.path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        artifact.note(kind=kind)
    return folder


def test_a_completion_that_the_tokenizer_cannot_write_is_refused_with_its_line(
    prepared: Prepared, tmp_path: Path
) -> None:
    good = {"prompt": "The film\nis ☃.", "completion": "positive"}  # what is only read may be changed by the tokenizer
    bad = {"prompt": "The film", "completion": "☃"}
    text = text_artifact(tmp_path / "text", "completion", good, bad)
    arguments = ("--text", text, "--model", prepared.model, "--output", tmp_path / "tokens")
    with pytest.raises(CoraxError, match=r"train.jsonl: line 2: .* do not decode to the text"):
        stages.call("pretokenize", *arguments)


def test_conversations_are_refused_in_one_line(prepared: Prepared, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = text_artifact(tmp_path / "text", "messages", {"messages": turns})
    with pytest.raises(CoraxError, match=r"encoder-decoder .* the kind completion, found messages"):
        stages.call("pretokenize", "--text", text, "--model", prepared.model, "--output", tmp_path / "tokens")


def test_a_label_that_is_no_class_is_refused_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": -1}\n')
    raw = tmp_path / "raw"
    source = ("local", "--path", tmp_path / "data.jsonl", "--kind", "data", "--work", tmp_path / "work")
    stages.call("download", *source, "--output", raw)
    columns = ("--detokenize.prompt_column", "text", "--detokenize.completion_column", "label")
    options = ("--raw", raw, "--output", tmp_path / "text", *columns, "--detokenize.labels", "bad", "good")
    with pytest.raises(CoraxError, match=r"data.jsonl.*label is -1, allowed: 0 to 1"):
        stages.call("detokenize", *options)


def test_loss_and_gradient_are_those_of_transformers(prepared: Prepared) -> None:
    model, reference = float_model(prepared), float_model(prepared)
    pack = samples()
    engine = make_engine(model, TrainSettings(), longest=64)
    assert isinstance(engine, Seq2SeqEngine)
    loss = engine.loss_sum(flatten(pack), seed=None)
    loss.backward()  # type: ignore[no-untyped-call]
    targets = sum(len(places) for _, places in pack)
    expected = reference(**as_transformers(pack)).loss * targets
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_samples_of_a_pack_do_not_see_each_other(prepared: Prepared) -> None:
    engine = make_engine(float_model(prepared), TrainSettings(), longest=64)
    pack = samples()
    check_isolation(engine, flatten(pack))
    together = engine.target_logits(flatten(pack))
    alone = torch.cat([engine.target_logits(flatten([sample])) for sample in pack])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_model_s_dropout_follows_the_seed(prepared: Prepared) -> None:
    engine = make_engine(float_model(prepared), TrainSettings(), longest=64)
    batch = flatten(samples())
    first, again, other, none = (engine.loss_sum(batch, seed).item() for seed in (1, 1, 2, None))
    assert first == again
    assert len({first, other, none}) == 3


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_groups_waste_at_most_a_third(lengths: list[int]) -> None:
    groups = alike(lengths)
    assert sorted(sample for group in groups for sample in group) == list(range(len(lengths)))
    for group in groups:
        rows = [lengths[sample] for sample in group]
        assert len(rows) * max(rows) <= 1.5 * sum(rows)


def test_evaluation_scores_what_transformers_does(prepared: Prepared) -> None:
    model = float_model(prepared)
    sample = samples(1)[0]
    ids, places = torch.from_numpy(sample[0].astype(np.int64)), torch.from_numpy(sample[1])
    score = score_sample(model, ids, places)
    with torch.no_grad():
        output = model(**as_transformers([sample]))
    assert score.loss / score.tokens == pytest.approx(output.loss.item(), rel=1e-5)
    assert score.correct == int((output.logits[0].argmax(-1) == ids[places]).sum())


def draw(model: Any, template: Template, prompts: list[str], **options: Any) -> dict[int, list[int]]:
    """The sampled ids of each prompt by its number."""
    settings = SampleSettings(max_new_tokens=8, **options)
    temperature = settings.temperature[0]
    wanted = [
        Request(number, Prompt("held-out", str(number), text, None), template.prompt_ids(text), temperature, 0.95)
        for number, text in enumerate(prompts)
    ]
    drawn = batches.decode(model, template, None, settings, wanted, set(), lambda tokens: None)
    return {request.number: tokens for request, tokens in drawn}


def test_greedy_samples_are_those_of_transformers(prepared: Prepared, template: Template) -> None:
    model, prompts = float_model(prepared), tiny_t5.SENTENCES[:3]
    found = draw(model, template, prompts, temperature=[0.0], batch_size=3)
    for number, text in enumerate(prompts):
        config = GenerationConfig(max_new_tokens=8, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0)
        output = model.generate(torch.tensor([template.prompt_ids(text)]), generation_config=config)
        assert output[0, 1:].tolist() == found[number]


def test_a_sample_has_its_own_random_stream(prepared: Prepared, template: Template) -> None:
    model, prompts = float_model(prepared), [tiny_t5.SENTENCES[0]] * 4
    found = draw(model, template, prompts, temperature=[1.0], batch_size=4)
    assert len({tuple(tokens) for tokens in found.values()}) > 1
    assert draw(model, template, prompts, temperature=[1.0], batch_size=2) == found
    assert draw(model, template, prompts, temperature=[1.0], batch_size=4, seed=1) != found


def test_vllm_is_refused_in_one_line(prepared: Prepared, tmp_path: Path) -> None:
    model = ("--task", "general", "--model", prepared.model, "--text", prepared.text)
    options = ("--work", tmp_path / "work", "--output", tmp_path / "s.parquet", "--sample.backend", "vllm")
    with pytest.raises(CoraxError, match=r"vllm decodes no encoder-decoder model"):
        stages.call("sample", *model, *options)


def plan(prepared: Prepared, folder: Path, method: str) -> list[object]:
    """Plan for a method; the inputs of the train stage."""
    bits = 4 if method == "lora" else 16  # virtual tokens are used on the original base, so they are trained on it
    tuning = ("--tuning.method", method, "--tuning.num_virtual_tokens", 4, "--train.bits", bits)
    inputs = ("--model", prepared.model, "--tokens", prepared.tokens)
    stages.call("plan", *inputs, "--output", folder / "plan", *PLAN, *tuning)
    return [*inputs, "--plan", folder / "plan", "--work", folder / "work", *TRAIN, "--lora.r", 4, *tuning]


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plan and the adapter of a method."""
    folder = tmp_path_factory.mktemp(request.param)
    stages.call("train", *plan(prepared, folder, request.param), "--output", folder / "adapter")
    return folder


def test_training_learns(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "adapter" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 2 and losses[1] < losses[0]
    steps = json.loads((trained / "plan" / "plan.json").read_text())
    assert sum(row["tokens"] for row in rows if "tokens" in row) == steps["train"]["tokens"]


def test_the_trained_model_is_merged_sampled_and_evaluated(prepared: Prepared, trained: Path) -> None:
    merged, drawn, result = (trained / name for name in ("merged", "samples.parquet", "evaluation.json"))
    tokens = ("--tokens", prepared.tokens)
    stages.call("merge", "--model", prepared.model, "--adapter", trained / "adapter", *tokens, "--output", merged)
    sampling = ("--sample.held_out_prompts", 3, "--sample.max_new_tokens", 8, "--sample.threads", 1)
    header = ("--pretokenize.prompt_header", HEADER)
    work = ("--work", trained / "samples", "--output", drawn)
    stages.call("sample", "--task", "general", "--model", merged, "--text", prepared.text, *work, *sampling, *header)
    models = ("--base", prepared.model, "--tuned", merged, "--samples", drawn)
    stages.call("evaluate", "--task", "general", *models, *tokens, "--output", result, "--evaluate.test_samples", 4)
    assert len(pq.read_table(drawn)) == 3
    content = json.loads(result.read_text())
    assert content["held_out"]["tuned"]["loss"] < content["held_out"]["base"]["loss"]
    assert content["task"]["held_out"]["samples"] == 3
    assert "text2text-generation" in (merged / "README.md").read_text()
    scores = open_artifact(merged).facts["scores"]
    assert scores[open_artifact(merged).facts["base"]]["kl"] < 1e-3


def test_a_killed_training_ends_with_the_same_bytes(prepared: Prepared, tmp_path: Path) -> None:
    arguments = plan(prepared, tmp_path, "prefix_tuning")
    stages.call("train", *arguments, "--output", tmp_path / "whole")
    with subprocess.Popen(
        stages.command("train", *arguments, "--output", tmp_path / "adapter"), env=stages.environment()
    ) as job:
        while not list((tmp_path / "work").glob("*/step-*")) and job.poll() is None:
            time.sleep(0.02)
        job.kill()
    assert job.returncode == -signal.SIGKILL and not (tmp_path / "adapter").exists()
    stages.call("train", *arguments, "--output", tmp_path / "adapter")
    digests = [read_manifest(tmp_path / name / "manifest.json").digest for name in ("whole", "adapter")]
    assert digests[0] == digests[1]
