"""The sample stage: the distribution, independence of company, resuming, and the script on tiny models."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stages
import tiny
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from prepared import Prepared
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from corax import cli, tasks
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.model import load_plain
from corax.sample import batches, slots
from corax.sample.choice import choose, edge, ordered_bits, uniforms
from corax.sample.parts import Parts
from corax.sample.prompts import Prompt, collect, read_test
from corax.sample.requests import Completion, Request, completion
from corax.sample.sampler import Sampler
from corax.settings.pretokenize import PretokenizeSettings
from corax.settings.sample import SampleSettings
from corax.template import Template

PROMPTS = ["+1[axbx]", "+1[axbxcxdx]+1[aybycydy]" * 2, "", "-2[az]", "x" * 20, "+1[ax]|-1[bx]"]
LENGTH = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_folder(tmp_path_factory.mktemp("sample") / "model", flavour="chatml")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    torch.set_num_threads(1)  # a tiny model only loses by more
    return load_plain(folder, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def template(folder: Path) -> Template:
    return Template(folder, "state", "code")


def draw(
    model: Any, template: Template, prompts: list[str], numbers: list[int], loop: str = "slots", **values: Any
) -> list[Completion]:
    settings = SampleSettings(**{"max_new_tokens": LENGTH, "temperature": [1.5], "top_p": [0.9], **values})
    wanted = [
        Request(
            number, Prompt("target", "t", text, None), template.prompt_ids(text), *settings.temperature, *settings.top_p
        )
        for number, text in zip(numbers, prompts, strict=True)
    ]
    if loop == "slots":
        sampler = Sampler(settings.batch_size, settings.seed, settings.max_new_tokens, model.device)
        length = max(len(request.ids) for request in wanted) + settings.max_new_tokens
        stream = slots.decode(model, sampler, template.end_id, settings.batch_size, length, wanted, lambda _: None)
    else:
        model.set_attn_implementation("sdpa")
        stream = batches.decode(model, template, None, settings, wanted, set(), lambda _: None)
    found = {id(request): completion(tokens, template) for request, tokens in stream}
    return [found[id(request)] for request in wanted]


def reference_choice(logits: np.ndarray[Any, Any], uniform: float, temperature: float, top_p: float) -> int:
    """The definition, one token at a time: smallest nucleus (with ties), inverse of the cumulated distribution."""
    scaled = logits.astype(np.float64) / temperature
    probability = np.exp(scaled - scaled.max())
    probability /= probability.sum()
    kept: list[int] = []
    for token in np.argsort(-probability, kind="stable"):
        kept.append(int(token))
        if probability[kept].sum() >= top_p:
            break
    kept = [token for token in range(len(probability)) if probability[token] >= probability[kept[-1]]]
    threshold, total = uniform * probability[kept].sum(), 0.0
    for token in sorted(kept):
        total += probability[token]
        if total > threshold:
            return token
    raise AssertionError("unreachable")


def one_by_one(model: Any, template: Template, prompt: str, number: int, settings: SampleSettings) -> Completion:
    """Decoding without batch, padding and cache."""
    model.set_attn_implementation("sdpa")
    ids, start = template.prompt_ids(prompt), len(template.prompt_ids(prompt))
    for uniform in uniforms(settings.seed, number, settings.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
        ids.append(reference_choice(logits, uniform, settings.temperature[0], settings.top_p[0]))
        if ids[-1] == template.end_id:
            break
    return completion(ids[start:], template)


@pytest.mark.parametrize("loop", ["slots", "batches"])
def test_batches_give_what_decoding_one_by_one_gives(model: Any, template: Template, loop: str) -> None:
    settings = SampleSettings(max_new_tokens=LENGTH, temperature=[1.5], top_p=[0.9])
    numbers = list(range(len(PROMPTS)))
    expected = [one_by_one(model, template, prompt, number, settings) for number, prompt in enumerate(PROMPTS)]
    assert {sample.finish_reason for sample in expected} == {"end", "length"}
    assert len({sample.text for sample in expected}) == len(expected)
    for batch_size in (1, 4, 6):
        assert draw(model, template, PROMPTS, numbers, loop, batch_size=batch_size) == expected
    assert draw(model, template, PROMPTS[::-1], numbers[::-1], loop, batch_size=3) == expected[::-1]


SIZES: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 64}
ARCHITECTURES = {
    "llama": (LlamaConfig(**GROUPED), True),
    "llama with Llama-3.1's positions": (
        LlamaConfig(
            **GROUPED,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        True,
    ),
    "llama with growing positions": (
        LlamaConfig(
            **GROUPED,
            max_position_embeddings=32,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        ),
        False,
    ),
    "mistral": (MistralConfig(**GROUPED, sliding_window=None), True),
    "mistral with a window": (MistralConfig(**GROUPED, sliding_window=8), False),
    "qwen2": (Qwen2Config(**GROUPED), True),
    "qwen3": (Qwen3Config(**GROUPED, head_dim=16), True),
    "gemma": (GemmaConfig(**GROUPED, head_dim=8), False),
    "gpt2": (GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4), False),
    "gpt_neox": (GPTNeoXConfig(**SIZES, intermediate_size=64), False),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(template: Template, name: str) -> None:
    """Each is decoded by the loop that it is said to work with, as without cache and batch."""
    config, in_slots = ARCHITECTURES[name]
    assert slots.supports(config) is in_slots
    if name == "llama with growing positions":
        return  # its positions depend on the length of the whole batch: nothing to compare with
    torch.manual_seed(0)
    random_model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in random_model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    settings = SampleSettings(max_new_tokens=12, temperature=[1.0], top_p=[0.9])
    expected = [one_by_one(random_model, template, text, number, settings) for number, text in enumerate(PROMPTS)]
    loop = "slots" if in_slots else "batches"
    values = {"temperature": [1.0], "max_new_tokens": 12, "batch_size": 4}
    assert draw(random_model, template, PROMPTS, list(range(6)), loop, **values) == expected


def test_company_changes_no_bit(model: Any, template: Template) -> None:
    """The very logits of a sample are the same in any slot, next to any others, begun at any time."""

    class Recording(Sampler):
        def __init__(self) -> None:
            super().__init__(4, 0, 20, model.device)
            self.owners: dict[int, Request] = {}
            self.seen: dict[tuple[int, int], bytes] = {}

        def next(self, logits: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
            token = super().next(logits, count)
            for slot, request in self.owners.items():
                place = int(count[slot])
                self.seen.setdefault((request.number, place), logits[slot].numpy().tobytes())
            return token

        def assign(self, rows: Any, requests: Any) -> None:
            super().assign(rows, requests)
            self.owners |= zip(rows, requests, strict=True)

    def record(numbers: list[int]) -> dict[tuple[int, int], bytes]:
        sampler = Recording()
        texts = [PROMPTS[number % len(PROMPTS)] * 3 for number in numbers]
        prompts = [Prompt("target", "t", text, None) for text in texts]
        wanted = [
            Request(number, prompt, template.prompt_ids(prompt.text), 1.5, 0.9)
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        for _ in slots.decode(model, sampler, template.end_id, 4, 400, wanted, lambda _: None):
            pass
        return sampler.seen

    alone = {key: value for number in range(8) for key, value in record([number]).items()}
    assert len(alone) > 80
    assert alone.items() <= record(list(range(8))).items()
    assert alone.items() <= record(list(range(20))[::-1]).items()


def test_a_sample_depends_on_its_seed_and_number(model: Any, template: Template) -> None:
    same_prompt = draw(model, template, ["+1[axbx]"] * 4, [0, 1, 2, 0], max_new_tokens=30)
    assert len({sample.text for sample in same_prompt}) == 3
    assert same_prompt[0] == same_prompt[3]
    assert draw(model, template, ["+1[axbx]"], [0], max_new_tokens=30, seed=1) != same_prompt[:1]


def test_temperature_0_is_greedy(model: Any, template: Template) -> None:
    found = draw(model, template, PROMPTS, list(range(6)), temperature=0, max_new_tokens=20)
    model.set_attn_implementation("sdpa")
    for prompt, sample in zip(PROMPTS, found, strict=True):
        ids = template.prompt_ids(prompt)
        start = len(ids)
        while len(ids) < start + 20 and template.end_id not in ids[start:]:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert (sample.text, sample.tokens) == (template.decode_completion(ids[start:]), len(ids) - start)


def test_streams_are_prefixes_and_differ() -> None:
    assert (uniforms(3, 7, 10) == uniforms(3, 7, 1000)[:10]).all()
    streams = np.array([uniforms(seed, sample, 4) for seed in range(10) for sample in range(10)])
    assert len(np.unique(streams)) == streams.size
    assert uniforms(2**63 - 1, 0, 1)[0] < 1


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.5)])
def test_distribution(temperature: float, top_p: float) -> None:
    """Chi-square against the softmax cut to its nucleus, 20,000 samples of 8 tokens."""
    logits = torch.tensor([1.0, -0.5, 2.0, 0.0, 1.5, -3.0, 0.7, 1.1])
    weights = torch.softmax(logits.double() / temperature, 0).numpy()
    order = np.argsort(-weights)
    size = int(np.searchsorted(np.cumsum(weights[order]), top_p)) + 1
    expected = np.zeros(8)
    expected[order[:size]] = weights[order[:size]] / weights[order[:size]].sum()
    count = 20_000
    stream = torch.tensor([uniforms(0, sample, 1)[0] for sample in range(count)])
    found = np.bincount(choose(logits.expand(count, 8), stream, temperature, top_p), minlength=8)
    assert found[expected == 0].sum() == 0
    likely = expected > 0
    chi_square = ((found - count * expected)[likely] ** 2 / (count * expected[likely])).sum()
    assert chi_square < 35, "above 30 once in ten thousand draws even for 7 degrees of freedom"


@example(logits=np.array([0.0, 1e-32], np.float32), uniform=0.5, temperature=1.0, top_p=0.25)
@example(logits=np.array([21.0, 0.0], np.float32), uniform=1 - 2**-53, temperature=0.75, top_p=1.0)
@given(
    logits=arrays.arrays(np.float32, st.sampled_from([2, 9, 200]), elements=st.floats(-50, 50, width=32), unique=True),
    uniform=st.floats(0, 1, exclude_max=True),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
)
def test_choice_follows_the_definition(
    logits: np.ndarray[Any, Any], uniform: float, temperature: float, top_p: float
) -> None:
    found = int(
        choose(torch.from_numpy(logits)[None], torch.tensor([uniform], dtype=torch.float64), temperature, top_p)
    )
    neighbours = {
        reference_choice(logits, min(max(uniform + shift, 0.0), 1 - 2**-53), temperature, top_p + other)
        for shift in (-1e-9, 0, 1e-9)
        for other in (-1e-9, 0, 1e-9)
    }
    assert found in neighbours, "not even with rounding"


def test_each_row_has_its_own_temperature_and_top_p() -> None:
    torch.manual_seed(0)
    logits, stream = 3 * torch.randn(6, 500), torch.rand(6, dtype=torch.float64)
    temperature, top_p = [0.0, 0.3, 0.7, 1.0, 2.0, 5.0], [0.9, 0.5, 1.0, 0.95, 0.99, 1.0]
    together = choose(logits, stream, torch.tensor(temperature).double(), torch.tensor(top_p).double())
    for row in range(6):
        alone = choose(logits[row : row + 1], stream[row : row + 1], temperature[row], top_p[row])
        assert together[row] == alone


@given(
    values=arrays.arrays(np.float32, 12, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    top_p=st.floats(0.01, 1, exclude_max=True),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_edge_by_halving_is_the_edge_by_sorting(
    values: np.ndarray[Any, Any], top_p: float, dtype: torch.dtype
) -> None:
    logits = torch.from_numpy(values / (2.0**84 if dtype == torch.float16 else 1)).to(dtype)[None]
    weight = torch.arange(1.0, 13.0, dtype=torch.float64)[None]
    need = top_p * weight.sum(-1, keepdim=True)
    keys = ordered_bits(logits)
    inside = set(torch.nonzero(keys >= edge(keys, weight, need))[:, 1].tolist())
    for least in sorted(set(logits[0].tolist()), reverse=True):
        expected = {index for index, value in enumerate(logits[0].tolist()) if value >= least}
        if weight[0, sorted(expected)].sum() >= need:
            break
    zeros = {index for index, value in enumerate(logits[0].tolist()) if value == 0}
    assert inside - zeros == expected - zeros, "0.0 and -0.0 may be on different sides"


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_the_smallest_temperatures_take_the_most_likely_token(temperature: float) -> None:
    torch.manual_seed(0)
    logits, stream = 5 * torch.randn(8, 300), torch.rand(8, dtype=torch.float64)
    assert choose(logits, stream, temperature, 1.0).tolist() == logits.argmax(-1).tolist()


def test_ties_at_the_edge_of_the_nucleus_are_all_in_it() -> None:
    logits = torch.tensor([[0.0, 3.0, 0.0, 3.0]]).expand(1000, 4)
    stream = torch.linspace(0, 0.999, 1000).double()
    assert set(choose(logits, stream, 1.0, 0.3).tolist()) == {1, 3}


def sample(prepared: Prepared, output: Path, *options: object, model: Path | None = None) -> Path:
    required = ("--task", "quantum", "--model", model or prepared.model, "--text", prepared.text, "--output", output)
    work = prepared.model.parent / "work-of-samples"
    stages.call("sample", *required, "--work", work, "--sample.max_new_tokens", 6, "--sample.threads", 1, *options)
    return output


def test_script_writes_targets_and_held_out_samples(prepared: Prepared, tmp_path: Path) -> None:
    options = ("--sample.samples_per_target", 2, "--sample.held_out_prompts", 3, "--sample.temperature", 0.7)
    path = sample(prepared, tmp_path / "a.parquet", *options, "--sample.batch_size", 43)
    rows = pq.read_table(path).to_pylist()
    assert [row["sample"] for row in rows] == list(range(43))
    assert [row["kind"] for row in rows] == ["target"] * 40 + ["held-out"] * 3
    assert [row["name"] for row in rows[:4]] == ["bellN3d", "bellN3d", "ghz", "ghz"]
    assert [row["name"] for row in rows[40:]] == ["text:0", "text:1", "text:2"]
    assert rows[2]["prompt"].startswith("+1[axbxcxdx]+1[aybycydy]|")
    assert rows[2]["completion"] != rows[3]["completion"]
    assert rows[2]["reference"] is None
    assert "e(+" in rows[40]["reference"]
    for row in rows:
        assert (row["seed"], row["temperature"], row["top_p"]) == (0, 0.7, 0.95)
        assert row["tokens"] == 6 if row["finish_reason"] == "length" else row["tokens"] <= 6
    digest = open_artifact(path).digest
    assert open_artifact(sample(prepared, tmp_path / "a.parquet", *options, "--sample.batch_size", 43)).digest == digest
    assert (
        pq.read_table(sample(prepared, tmp_path / "b.parquet", *options, "--sample.batch_size", 7)).to_pylist() == rows
    )


def test_every_prompt_is_encoded_once(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To see whether it fits, and to draw from it at every temperature."""
    encoded: Counter[str] = Counter()
    own = Template.prompt_ids

    def prompt_ids(template: Template, prompt: str) -> list[int]:
        encoded[prompt] += 1
        return own(template, prompt)

    monkeypatch.setattr(Template, "prompt_ids", prompt_ids)
    options = ("--sample.targets", "false", "--sample.held_out_prompts", 3, "--sample.temperature", 0.5, 1.0)
    assert pq.read_table(sample(prepared, tmp_path / "a.parquet", *options)).num_rows == 6
    assert set(encoded.values()) == {1}


def test_prompts_that_leave_no_room_are_passed_over(prepared: Prepared) -> None:
    """Found after the training, too late to take them out of the data; those behind them take their place."""
    settings = SampleSettings(targets=False, held_out_prompts=2)
    rows = list(read_test(prepared.text))
    first, *rest = rows
    assert collect(tasks.get("quantum"), [prepared.text], settings, lambda prompt: prompt != first.text) == rest[:2]
    with pytest.raises(CoraxError, match=r"test.jsonl: nothing to sample, .*sample.max_new_tokens, 640"):
        collect(tasks.get("quantum"), [prepared.text], settings, lambda prompt: False)


def test_prompts_longer_than_training_saw_are_passed_over(prepared: Prepared, tmp_path: Path) -> None:
    """The memory of all slots is that of the longest prompt; targets, which are few and ours, stay."""
    headers = PretokenizeSettings()
    template = Template(prepared.model, headers.prompt_header, headers.completion_header)
    lengths = {prompt.text: len(template.prompt_ids(prompt.text)) for prompt in read_test(prepared.text)}
    limit = sorted(lengths.values())[len(lengths) // 2]
    options = ("--sample.targets", "false", "--sample.held_out_prompts", len(lengths), "--max-length", limit)
    rows = pq.read_table(sample(prepared, tmp_path / "a.parquet", *options)).to_pylist()
    assert [row["prompt"] for row in rows] == [text for text, length in lengths.items() if length <= limit]
    assert 0 < len(rows) < len(lengths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sample.targets", "false", "--sample.held_out_prompts", 0), "nothing to sample"),
        (("--sample.max_new_tokens", 3000), "model's context of 2048, allowed: at most"),
        (("--sample.temperature", "hot"), "--sample.temperature.0: input should be a valid number"),
        (("--sample.top_p", 0), "--sample.top_p.0: input should be greater than 0"),
        (("--task", "chess"), "task 'chess' does not exist, allowed: "),
        (("--model", "/nowhere"), "/nowhere/manifest.json: missing"),
    ],
)
def test_one_clear_line(prepared: Prepared, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    with pytest.raises(CoraxError) as error:
        sample(prepared, tmp_path / "a.parquet", *options)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ['{"prompt": "a"}', "{", "[1]", "7"])
def test_damaged_line_of_the_test_part(prepared: Prepared, tmp_path: Path, line: str) -> None:
    with Artifact(tmp_path / "text", stage="detokenize") as artifact:
        shutil.copytree(prepared.text, artifact.path, dirs_exist_ok=True, ignore=lambda *_: ["manifest.json"])
        file = artifact.path / "test.jsonl"
        file.write_text(file.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(CoraxError, match=r"test.jsonl: line 2: "):
        sample(prepared, tmp_path / "a.parquet", "--text", tmp_path / "text")


def test_damaged_weights(prepared: Prepared, tmp_path: Path) -> None:
    with Artifact(tmp_path / "model", stage="merge") as artifact:
        broken = tiny.model()
        torch.nn.init.constant_(broken.model.norm.weight, torch.nan)
        broken.save_pretrained(artifact.path)
        tiny.tokenizer_folder(artifact.path)
    with pytest.raises(CoraxError, match="logits are not finite"):
        sample(prepared, tmp_path / "a.parquet", model=tmp_path / "model")


def test_a_sweep_samples_every_combination(prepared: Prepared, tmp_path: Path) -> None:
    options = ("--sample.targets", "false", "--sample.held_out_prompts", 3, "--sample.temperature", 0.5, 0)
    rows = pq.read_table(sample(prepared, tmp_path / "a.parquet", *options, "--sample.top_p", 0.9, 0.5)).to_pylist()
    combinations = [(0.5, 0.9), (0.5, 0.5), (0.0, 0.9), (0.0, 0.5)]
    assert [(row["temperature"], row["top_p"]) for row in rows] == [each for each in combinations for _ in range(3)]
    assert [row["sample"] for row in rows] == list(range(12))
    assert [row["completion"] for row in rows[6:9]] == [row["completion"] for row in rows[9:]], "greedy twice"
    one = sample(prepared, tmp_path / "b.parquet", *options[:4], "--sample.temperature", 0.5, "--sample.top_p", 0.9)
    assert pq.read_table(one).to_pylist() == rows[:3], "a longer sweep changes no earlier sample"


RESUMED = ("--sample.held_out_prompts", 6, "--sample.temperature", 1.5)
LONG = ("--sample.max_new_tokens", 150, "--sample.batch_size", 4, "--sample.threads", 1)


def long_job(prepared: Prepared, folder: Path) -> list[object]:
    """The options of some seconds of sampling."""
    inputs = ["--task", "quantum", "--model", prepared.model, "--text", prepared.text, "--work", folder / "work"]
    return [*inputs, "--output", folder / "samples.parquet", *RESUMED, *LONG]


def start(prepared: Prepared, folder: Path) -> subprocess.Popen[str]:
    """The job in a process of its own, keeping what is finished several times a second."""
    program = (
        "import runpy, sys; from corax.sample import draw; draw.SECONDS_BETWEEN_PARTS = 0.1; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    line = [sys.executable, "-c", program, str(stages.SCRIPTS / "sample.py"), *map(str, long_job(prepared, folder))]
    environment = {**stages.environment(), "PYTHONPATH": str(stages.SCRIPTS)}
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_parts(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(folder.glob("work/*/part-*.manifest.json"))) < count and process.poll() is None:
        time.sleep(0.02)


def test_killed_anywhere_it_ends_with_the_same_bytes(prepared: Prepared, tmp_path: Path) -> None:
    stages.call("sample", *long_job(prepared, tmp_path / "whole"))
    instants = random.Random(0)
    kept = set()
    for parts in (1, 3):
        process = start(prepared, tmp_path / "killed")
        wait_for_parts(tmp_path / "killed", parts, process)
        time.sleep(instants.uniform(0, 0.3))
        process.kill()
        process.wait()
        assert not (tmp_path / "killed" / "samples.parquet").exists()
        kept.add(len(list(tmp_path.glob("killed/work/*/part-*.manifest.json"))))
    assert len(kept) == 2, "each time it went on"
    stages.call("sample", *long_job(prepared, tmp_path / "killed"))
    whole, killed = (open_artifact(tmp_path / name / "samples.parquet") for name in ("whole", "killed"))
    assert whole.digest == killed.digest
    assert [path.name for path in (tmp_path / "killed" / "work").iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_it_with_what_is_there(prepared: Prepared, tmp_path: Path, number: signal.Signals) -> None:
    process = start(prepared, tmp_path)
    wait_for_parts(tmp_path, 1, process)
    process.send_signal(number)
    _, log = process.communicate()
    assert process.returncode == cli.PAUSED
    assert "stopped by a signal with " in log and "Traceback" not in log
    assert not (tmp_path / "samples.parquet").exists()
    (folder,) = (path for path in (tmp_path / "work").iterdir() if path.is_dir())
    assert 0 < len(Parts(folder).done) < 26


def test_damaged_parts_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts(tmp_path)
    for number in range(3):
        parts.add(number, Completion("e(", number, "end"))
        parts.save()
    path = tmp_path / "part-000001.json"
    path.write_text(path.read_text().replace("e(", "f("))
    (tmp_path / "part-000002.manifest.json").unlink()
    again = Parts(tmp_path)
    assert again.done == {0: Completion("e(", 0, "end")}
    assert [record.message.split(": ")[-1] for record in caplog.records] == ["damaged samples, not used"] * 2
    again.add(1, Completion("e(", 1, "end"))
    again.save()
    assert set(Parts(tmp_path).done) == {0, 1}


def test_vllm_is_one_clear_line_where_it_is_missing(prepared: Prepared, tmp_path: Path) -> None:
    options = ("--sample.backend", "vllm")
    with pytest.raises(CoraxError, match="vllm is not installed here, allowed: auto, transformers"):
        sample(prepared, tmp_path / "a.parquet", *options)
    with pytest.raises(CoraxError, match=r"not with sample\.backend vllm"):
        sample(prepared, tmp_path / "a.parquet", *options, "--sample.constrained", "true")


def test_the_benchmark_runs_on_a_small_model(tmp_path: Path) -> None:
    """All contenders in one process, since each imports torch for longer than it works; no goal is meant here."""
    program = stages.REPOSITORY / "benchmarks" / "sampling.py"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import sampling; "
        "sampling._in_a_process = sampling.measure; sys.argv = ['sampling.py', '--tiny', '--folder', sys.argv[2]]; "
        "sampling.main()"
    )
    command = [sys.executable, "-c", code, str(program.parent), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=stages.environment())
    rows = {
        (row["name"], row["unit"]): row["value"] for row in json.loads((tmp_path / "sampling.json").read_text())["rows"]
    }
    assert rows["one by one, 16 bits", "tokens/s"] > 0
    assert rows["128 slots, samples an hour", "times"] > 0
    assert rows["same tokens in other company and order", "share"] == 1
