"""Ways to tune: what is trained is what is loaded, merged and sampled later; which engine each gets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stages
import tiny
import torch
from prepared import Prepared
from safetensors.torch import load_file
from transformers import AutoTokenizer

from corax import config
from corax.artifact import open_artifact
from corax.errors import CoraxError
from corax.merge.lora import is_plain, read_adapter
from corax.merge.quantisation import seen_in_training
from corax.merge.unmerged import write_beside, write_weights
from corax.merge.variants import read_changes, write_changed
from corax.merge.weights import write_merged
from corax.model import load_base, load_plain, load_trained
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings, conflict
from corax.train.adapter import add_adapter, save, start_on_changed_base
from corax.train.engine import Engine, make_engine
from corax.train.fast.engine import unsupported
from corax.train.fast.lora import Projection
from corax.train.loop import Loop
from corax.train.packs import Batch, flatten

CPU = torch.device("cpu")
FOUR, SIXTEEN = ({"train": {"bits": bits}} for bits in (4, 16))
EIGHT = {"train": {"bits": 8, "llm_int8_threshold": 0}}
TUNED: dict[str, dict[str, Any]] = {
    "lora": FOUR,
    "lora 16 bits": SIXTEEN,
    "lora 8 bits": EIGHT,
    "rslora": {"lora": {"use_rslora": True}},
    "dora": {"lora": {"use_dora": True}},
    "dora 16 bits": SIXTEEN | {"lora": {"use_dora": True}},
    "gaussian": {"lora": {"init_lora_weights": "gaussian"}},
    "loftq": {"lora": {"init_lora_weights": "loftq"}},
    "pissa": SIXTEEN | {"lora": {"init_lora_weights": "pissa"}},
    "pissa rslora": SIXTEEN | {"lora": {"init_lora_weights": "pissa", "use_rslora": True}},
    "olora": SIXTEEN | {"lora": {"init_lora_weights": "olora"}},
    "embeddings": {"lora": {"modules_to_save": ["embed_tokens", "lm_head"]}},
    "norms": {"lora": {"modules_to_save": ["input_layernorm", "norm"]}},
    "full": {"tuning": {"method": "full"}},
    "ia3": {"tuning": {"method": "ia3"}},
    "ia3 16 bits": SIXTEEN | {"tuning": {"method": "ia3"}},
    "prompt": SIXTEEN | {"tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3}},
    "prefix": SIXTEEN | {"tuning": {"method": "prefix_tuning", "num_virtual_tokens": 3}},
    "adaption": SIXTEEN | {"tuning": {"method": "adaption_prompt", "adapter_len": 3}},
}


def settings(name: str) -> tuple[TuningSettings, LoraSettings, TrainSettings]:
    """The settings of one of `TUNED`."""
    given = TUNED[name]
    lora = LoraSettings(**{"r": 4, "lora_alpha": 6.0, **given.get("lora", {})})
    return TuningSettings(**given.get("tuning", {})), lora, TrainSettings(**given.get("train", {}))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a head of its own, and one whose head is its embedding."""
    root = tmp_path_factory.mktemp("models")
    return {flavour: tiny.model_folder(root / flavour, flavour=flavour) for flavour in ("llama3", "chatml")}


def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """Three samples of different lengths, with loss behind the fourth token."""
    generator = np.random.default_rng(1)
    return [(generator.integers(10, 300, length).astype(np.uint32), np.arange(4, length)) for length in (14, 5, 9)]


def a_batch() -> Batch:
    """The samples as a pack."""
    return flatten(rows())


def engine_of(model: Any) -> Engine:
    """What training computes `model` with."""
    return make_engine(model, TrainSettings(), longest=14)


def trained(folder: Path, name: str, new_tokens: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """(model after three large steps, what `start_on_changed_base` gave before them)."""
    tuning, lora, train = settings(name)
    base = load_base(folder, tuning.method, train.model_dump(), torch.float32, CPU)
    model = add_adapter(base, lora, 0, tuning, new_tokens)
    start = start_on_changed_base(model)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.02)
    engine = engine_of(model)
    for _ in range(3):
        optimizer.zero_grad()
        engine.loss_sum(a_batch(), seed=0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model, start


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of two sets of logits, relative to the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", TUNED)
def test_what_is_loaded_and_merged_is_what_was_trained(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tuning, _, train = settings(name)
    folder = folders["llama3"]
    model, start = trained(folder, name)
    seen = engine_of(model).target_logits(a_batch())
    untrained = engine_of(load_plain(folder, torch.float32, CPU)).target_logits(a_batch())
    assert largest_difference(seen, untrained) > 0.02

    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    save(model, adapter, start, folder)
    loaded = load_trained(folder, adapter, tuning.method, train.model_dump(), torch.float32, CPU)
    rounding = {"full": 2e-2, "pissa": 1e-4}.get(name.split()[0], 1e-5)  # full: to bfloat16, as the base is stored
    assert largest_difference(engine_of(loaded).target_logits(a_batch()), seen) < rounding

    copy(folder, merged)
    if tuning.method == "full":
        write_weights(adapter, merged)
    elif tuning.method not in stages.module("merge").MERGED:
        write_beside(folder, adapter, tuning.method, merged, torch.float32, CPU)
    else:
        base = seen_in_training(folder, train.model_dump(), torch.float32) if train.bits == 4 else {}
        if is_plain(adapter):
            lora = adapter / "adapter_model.safetensors"
            write_merged(folder, lora, read_adapter(folder, adapter), {merged: base}, 1)
        else:
            write_changed(folder, read_changes(folder, adapter), merged, base)
    found = engine_of(load_plain(merged, torch.float32, CPU)).target_logits(a_batch())
    # Merged weights are rounded to the base's bfloat16, and do not see the rounding to 8 bits.
    limit = 0.03 if tuning.method in stages.module("merge").MERGED else rounding
    assert largest_difference(found, seen) < limit


def copy(model: Path, folder: Path) -> None:
    """All of a model folder but its weights."""
    folder.mkdir()
    for file in model.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())


def test_tied_embeddings_are_trained_as_one_and_merge_as_one(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["chatml"]
    with pytest.raises(CoraxError, match=r"modules_to_save: 'lm_head' shares its weight"):
        trained(folder, "embeddings")
    base = load_base(folder, "lora", TrainSettings().model_dump(), torch.float32, CPU)
    model = add_adapter(base, LoraSettings(r=4, modules_to_save=["embed_tokens"]), 0)
    head = model.get_base_model().get_output_embeddings().weight
    assert head is model.get_base_model().get_input_embeddings().weight and head.requires_grad
    with torch.no_grad():
        head.add_(torch.randn(head.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    seen = engine_of(model).target_logits(a_batch())
    save(model, tmp_path / "adapter", None, folder)
    copy(folder, tmp_path / "merged")
    write_changed(folder, read_changes(folder, tmp_path / "adapter"), tmp_path / "merged", {})
    found = engine_of(load_plain(tmp_path / "merged", torch.float32, CPU)).target_logits(a_batch())
    plain = engine_of(load_plain(folder, torch.float32, CPU)).target_logits(a_batch())
    assert largest_difference(found, seen) < 0.5 * largest_difference(plain, seen)


def test_loftq_starts_nearer_to_the_original_than_4_bits_alone(folders: dict[str, Path]) -> None:
    folder = folders["llama3"]
    original = engine_of(load_plain(folder, torch.float32, CPU)).target_logits(a_batch())
    found = {}
    for name in ("lora", "loftq"):
        tuning, _, train = settings(name)
        base = load_base(folder, "lora", train.model_dump(), torch.float32, CPU)
        lora = LoraSettings(r=32, init_lora_weights="loftq" if name == "loftq" else "default", lora_alpha=8.0)
        model = add_adapter(base, lora, 0, tuning)
        found[name] = largest_difference(engine_of(model).target_logits(a_batch()), original)
    assert found["loftq"] < 0.5 * found["lora"]


def test_with_a_base_in_8_bits_samples_of_a_pack_do_not_see_each_other(tmp_path: Path) -> None:
    """Some inputs beyond the 6 from which LLM.int8 takes a column out for all tokens of a batch at once."""
    folder = tiny.model_folder(tmp_path / "model")
    _, lora, train = settings("lora 8 bits")
    model = add_adapter(load_base(folder, "lora", train.model_dump(), torch.float32, CPU), lora, 0)
    with torch.no_grad():
        for layer in model.get_base_model().model.layers:
            layer.input_layernorm.weight *= 3
            layer.post_attention_layernorm.weight *= 3
    engine = engine_of(model)
    alone = torch.cat([engine.target_logits(flatten([row])) for row in rows()])
    assert largest_difference(engine.target_logits(flatten(rows())), alone) < 1e-4


ENGINES = {
    "lora": None,
    "rslora": None,
    "loftq": None,
    "gaussian": None,
    "dora": "another kind of adapter",
    "embeddings": "other weights",
    "lora 8 bits": "not quantised to 4 bits",
    "lora 16 bits": "not quantised to 4 bits",
    "pissa": "not quantised to 4 bits",
    "full": "all weights are trained",
    "ia3": "ia3 instead of LoRA",
    "prompt": "prompt_tuning instead of LoRA",
    "prefix": "prefix_tuning instead of LoRA",
    "adaption": "adaption_prompt instead of LoRA",
}


@pytest.mark.parametrize("name", ENGINES)
def test_the_fast_engine_takes_plain_lora_on_4_bits_and_says_why_not_the_rest(
    name: str, folders: dict[str, Path]
) -> None:
    tuning, lora, train = settings(name)
    base = load_base(folders["llama3"], tuning.method, train.model_dump(), torch.float32, CPU)
    reason = unsupported(add_adapter(base, lora, 0, tuning), longest=100)
    expected = ENGINES[name]
    assert reason is None if expected is None else reason is not None and expected in reason


def test_the_fast_engine_reads_the_scale_of_rslora_from_the_layer(folders: dict[str, Path]) -> None:
    _, lora, train = settings("rslora")
    model = add_adapter(load_base(folders["llama3"], "lora", train.model_dump(), torch.float32, CPU), lora, 0)
    layer = model.get_base_model().model.layers[0].self_attn
    assert Projection([layer.q_proj], torch.float32, resident=False).scale == pytest.approx(6.0 / 4**0.5)


@pytest.mark.parametrize(
    ("tuning", "lora", "train", "expected"),
    [
        ({"method": "prefix_tuning"}, {}, {"gradient_checkpointing": True}, "gradient_checkpointing: false"),
        ({"method": "prefix_tuning"}, {}, {"bits": 8}, "llm_int8_threshold: 0 or plan.packing: false"),
        ({"method": "prefix_tuning"}, {}, {"bits": 8, "llm_int8_threshold": 0}, None),
        ({"method": "full"}, {}, {"bits": 8}, None),
        ({}, {"init_lora_weights": "pissa"}, {}, "train.bits: 16"),
        ({}, {"init_lora_weights": "olora"}, {"bits": 4}, "train.bits: 16"),
        ({}, {"init_lora_weights": "loftq"}, {"bits": 16}, "allowed: 4"),
        ({}, {"init_lora_weights": "pissa", "use_dora": True}, {"bits": 16}, "default, gaussian"),
        ({"method": "full"}, {"init_lora_weights": "pissa"}, {}, None),
        ({"method": "adaption_prompt"}, {}, {}, None),
    ],
)
def test_settings_that_exclude_each_other_are_one_line(
    tuning: dict[str, Any], lora: dict[str, Any], train: dict[str, Any], expected: str | None
) -> None:
    groups = TuningSettings(**tuning), LoraSettings(**lora), TrainSettings(**train)
    problem = conflict(*groups, packing=True)
    assert problem is None if expected is None else problem is not None and expected in problem


def test_outlier_columns_go_with_one_sample_a_pack() -> None:
    assert conflict(TuningSettings(), LoraSettings(), TrainSettings(bits=8), packing=False) is None


@pytest.mark.parametrize(
    ("name", "expected"), [("no_such", "names no module"), ("q_proj", "quantised, so only an adapter")]
)
def test_modules_that_cannot_be_trained_are_one_line(name: str, expected: str, folders: dict[str, Path]) -> None:
    base = load_base(folders["llama3"], "lora", TrainSettings().model_dump(), torch.float32, CPU)
    with pytest.raises(CoraxError, match=expected):
        add_adapter(base, LoraSettings(modules_to_save=[name]), 0)


def test_the_configuration_says_what_excludes_what() -> None:
    values: dict[str, Any] = {
        "models": {"m": {"source": "local", "path": "."}},
        "datasets": {"d": {"generate": {"samples": 10}}},
        "runs": {"r": {"model": "m", "dataset": "d", "lora": {"init_lora_weights": "pissa"}}},
    }
    with pytest.raises(CoraxError, match=r"runs.r: lora.init_lora_weights is 'pissa'.*train.bits: 16"):
        config.check(values)
    values["models"]["m"]["new_tokens"] = ["<state>"]
    values["runs"]["r"] = {"model": "m", "dataset": "d", "tuning": {"method": "ia3"}}
    with pytest.raises(CoraxError, match=r"runs.r.tuning.method is 'ia3'.*new tokens of models.m.*lora, full"):
        config.check(values)


@pytest.mark.parametrize("flavour", ["llama3", "chatml"])
def test_new_tokens_go_through_the_chain(flavour: tiny.Flavour, prepared: Prepared, tmp_path: Path) -> None:
    plain = tiny.model_folder(tmp_path / "plain", flavour=flavour)
    folder = tmp_path / "model"
    source = ("local", "--path", plain, "--work", tmp_path / "work", "--output", folder)
    stages.call("download", *source, "--new_tokens", "<state>", "ravens")
    ids = open_artifact(folder).facts["new_token_ids"]
    size = tiny.tokenizer(flavour).get_vocab_size()
    assert ids == [size, size + 1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("two ravens", add_special_tokens=False).input_ids[-1] == ids[1]
    assert tokenizer.decode([ids[0]]) == "<state>"
    old, new = (load_plain(each, torch.float32, CPU) for each in (plain, folder))
    for each in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old, each)().weight, getattr(new, each)().weight
        assert torch.equal(after[:size], before)
        torch.testing.assert_close(after[ids], before.mean(0).expand(2, -1), atol=1e-2, rtol=0)

    tokens, plan = tmp_path / "tokens", tmp_path / "plan"
    stages.call("pretokenize", "--text", prepared.text, "--model", folder, "--output", tokens)
    sizes = ("--plan.max_length", 1536, "--plan.packs_per_step", 1, "--plan.max_steps", 1)
    stages.call("plan", "--model", folder, "--tokens", tokens, "--output", plan, *sizes)
    inputs = ("--model", folder, "--plan", plan, "--tokens", tokens, "--work", tmp_path / "training")
    stages.call("train", *inputs, "--output", tmp_path / "adapter", "--train.threads", 1, "--lora.r", 2)
    options = ("--merge.base", "original", "--merge.held_out_samples", 1, "--merge.threads", 1)
    made = ("--adapter", tmp_path / "adapter", "--tokens", tokens, "--output", tmp_path / "merged")
    stages.call("merge", "--model", folder, *made, *options)
    merged = load_plain(tmp_path / "merged", torch.float32, CPU)
    difference = merged.get_output_embeddings().weight - new.get_output_embeddings().weight
    changed = difference.abs().sum(1).nonzero()[:, 0].tolist()
    # Only the new rows are trained; as inputs they do not occur in this text.
    assert changed == ids


@pytest.mark.parametrize(
    ("tokens", "expected"), [(["<|eot_id|>"], "a token of this model already"), (["x1", "x1"], "given once")]
)
def test_new_tokens_that_are_not_new_are_one_line(tokens: list[str], expected: str, tmp_path: Path) -> None:
    plain = tiny.model_folder(tmp_path / "plain")
    source = ("local", "--path", plain, "--work", tmp_path / "work", "--output", tmp_path / "model")
    with pytest.raises(CoraxError, match=expected):
        stages.call("download", *source, "--new_tokens", *tokens)
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def short_plan(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of three steps of one pack."""
    plan = tmp_path_factory.mktemp("short") / "plan"
    sizes = ("--plan.packs_per_step", 1, "--plan.max_steps", 3)
    inputs = ("--model", prepared.model, "--tokens", prepared.tokens, "--output", plan)
    stages.call("plan", *inputs, *sizes, "--plan.max_length", 1536, "--plan.validation_samples", 1)
    return plan


METHODS = ("full", "ia3", "prompt_tuning", "prefix_tuning", "adaption_prompt")


def train(prepared: Prepared, plan: Path, folder: Path, method: str) -> list[object]:
    """Arguments of the train stage."""
    inputs = ["--model", prepared.model, "--plan", plan, "--tokens", prepared.tokens]
    options = ["--tuning.method", method, "--train.threads", 1, "--train.learning_rate", 0.01, "--train.save_steps", 1]
    return [*inputs, "--work", folder / "work", "--output", folder / "adapter", *options]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bitwise_and_is_sampled_and_evaluated(
    method: str, prepared: Prepared, short_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.call("train", *train(prepared, short_plan, tmp_path / "whole", method))

    class Killed(Exception):
        pass

    def save_and_die(self: Loop, step: int) -> None:
        save_checkpoint(self, step)
        if step == 2:
            raise Killed

    save_checkpoint = Loop._save
    monkeypatch.setattr(Loop, "_save", save_and_die)
    with pytest.raises(Killed):
        stages.call("train", *train(prepared, short_plan, tmp_path / "cut", method))
    monkeypatch.setattr(Loop, "_save", save_checkpoint)
    stages.call("train", *train(prepared, short_plan, tmp_path / "cut", method))
    assert open_artifact(tmp_path / "cut/adapter").digest == open_artifact(tmp_path / "whole/adapter").digest

    merged, samples, evaluation = (tmp_path / name for name in ("merged", "samples.parquet", "evaluation.json"))
    adapter = ("--adapter", tmp_path / "whole/adapter", "--tokens", prepared.tokens)
    stages.call("merge", "--model", prepared.model, *adapter, "--output", merged, "--merge.held_out_samples", 1)
    scores = open_artifact(merged).facts["scores"]
    assert scores["original"]["kl"] < 1e-3
    counts = ("--sample.samples_per_target", 1, "--sample.held_out_prompts", 1, "--sample.max_new_tokens", 2)
    inputs = ("--task", "quantum", "--model", merged, "--text", prepared.text)
    stages.call("sample", *inputs, "--work", tmp_path / "drawn", "--output", samples, *counts)
    both = ("--base", prepared.model, "--tuned", merged, "--tokens", prepared.tokens, "--samples", samples)
    stages.call("evaluate", "--task", "quantum", *both, "--output", evaluation, "--evaluate.test_samples", 2)
    held_out = json.loads(evaluation.read_text())["held_out"]
    assert held_out["base"]["loss"] != held_out["tuned"]["loss"]


def test_the_prefix_of_a_soft_prompt_gives_padded_prompts_the_logits_of_training(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A prompt in a batch is padded on the left: the trained tokens must not move away from it."""
    folder = folders["llama3"]
    model, _ = trained(folder, "prompt")
    save(model, tmp_path / "adapter", None, folder)
    copy(folder, tmp_path / "merged")
    write_beside(folder, tmp_path / "adapter", "prompt_tuning", tmp_path / "merged", torch.float32, CPU)
    merged = load_plain(tmp_path / "merged", torch.float32, CPU)
    original = add_adapter(load_plain(folder, torch.float32, CPU), LoraSettings(), 0, settings("prompt")[0])
    values = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    original.prompt_encoder["default"].embedding.weight.data = values
    prompt = a_batch().input_ids[:, :14]
    padded = torch.cat((torch.zeros((1, 5), dtype=torch.long), prompt), 1)
    mask = (torch.arange(19) >= 5).long()[None]
    options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 3}
    found = merged.generate(input_ids=padded, attention_mask=mask, do_sample=False, **options)
    with torch.no_grad():
        expected = original(input_ids=found.sequences[:, 5:-1], use_cache=False).logits[0, -3:]
    assert largest_difference(torch.cat(found.logits), expected) < 1e-4
