"""The plan's estimates against published, measured and counted figures."""

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plan_trainings import CONFIGS, H100, described, sizes, training
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from corax import hardware
from corax.errors import CoraxError
from corax.plan import architectures, devices, fast, fit, general, memory, model, speed, states
from corax.plan.devices import GB, Device
from corax.plan.packing import pack_epoch
from corax.plan.schedule import Part
from corax.settings import tuning as tuning_settings
from corax.settings.base import parse
from corax.settings.lora import LoraSettings
from corax.settings.plan import PlanSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings
from corax.train.adapter import add_adapter
from corax.train.engine import make_engine
from corax.train.packs import flatten
from corax.train.rows import PADDING

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ("gemma-2-9b", 9_241_705_984),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.1-8b", 8_030_261_248),
        ("phi-3-medium", 13_960_238_080),
        ("qwen2.5-7b", 7_615_616_512),
        ("smollm2-135m", 134_515_008),
        ("starcoder", 15_517_456_384),
        ("t5-base", 222_903_552),
    ],
)
def test_parameters(config: str, parameters: int) -> None:
    """Published, or counted in the weights."""
    assert described(config).parameters == parameters


def test_linear_layers_of_llama_3_8b() -> None:
    found = described("llama-3-8b")
    assert len(found.linears) == 224
    assert found.linear_parameters == 6_979_321_856
    assert (found.embeddings, found.head) == (525_336_576, 525_336_576)
    assert found.parameters - found.linear_parameters == 2 * 525_336_576 + 65 * 4096
    assert found.linears["model.layers.31.self_attn.k_proj"] == (1024, 4096)


@pytest.mark.parametrize(
    ("r", "millions"), [(8, 20.971520), (16, 41.943040), (32, 83.886080), (64, 167.772160), (128, 335.544320)]
)
def test_lora_parameters_of_llama_3_8b(r: int, millions: float) -> None:
    assert model.lora_parameters(described("llama-3-8b"), r, ["all-linear"]) == round(millions * 1e6)
    assert model.lora_parameters(described("llama-3-8b"), r, list(PROJECTIONS)) == round(millions * 1e6)


def test_lora_parameters_of_a_part() -> None:
    assert model.lora_parameters(described("llama-3-8b"), 64, ["q_proj", "v_proj"]) == 32 * (524_288 + 327_680)
    one = ["model.layers.3.mlp.down_proj"]
    assert model.lora_parameters(described("llama-3-8b"), 64, one) == 1_179_648


@pytest.mark.parametrize("target", ["q_project", "proj", "lm_head", "all-linear"])
def test_unknown_target_module(target: str) -> None:
    with pytest.raises(CoraxError, match=f"lora.target_modules: '{target}' names no linear layer.*allowed.*q_proj"):
        described("llama-3-8b").targets(["q_proj", target])


def test_static_memory_of_llama_3_8b() -> None:
    """Measured: 5.70 GB for the base; 2.68 GB for an adapter with r = 64 in float32 and AdamW."""
    found = sizes(fit.estimate(training(layers_kept=32)))
    base = [size for name, size in found.items() if name.startswith("base")]
    assert base[0] == pytest.approx(3.60e9, abs=0.005e9)
    assert sum(base) == pytest.approx(5.70e9, abs=0.005e9)
    adapter = found["adapter: weights"] + found["adapter: AdamW moments"] + states.gradients(training()).bytes
    assert adapter == 167_772_160 * 16


def test_bits_of_a_quantised_weight() -> None:
    assert states.quantised_bits(True) == pytest.approx(4.127, abs=0.0005)
    assert states.quantised_bits(False) == 4.5


def test_block_inputs_of_llama_3_8b() -> None:
    found = sizes(general.moving(training(gradient_checkpointing=True)))
    assert found["activations: inputs of blocks"] == 8192 * 4096 * 2 * 32


def test_peak_of_plain_transformers_against_a_measurement() -> None:
    """Measured on an H100: 22.7 GB with all 8192 tokens in the loss, checkpointing, dropout 0.05."""
    run = training(targets=8192, dropout=0.05, gradient_checkpointing=True)
    peak = memory.allocated(states.fixed(run)) + memory.total(general.moving(run))
    assert peak == pytest.approx(22.7e9, rel=0.02)


@pytest.mark.parametrize(("checkpointing", "measured"), [(False, 2.21e9), (True, 1.40e9)])
def test_peak_on_a_cpu_against_a_measurement(checkpointing: bool, measured: float) -> None:
    """Measured: resident memory of three training steps, 512 tokens a pack, of which 278 carry loss."""
    cpu = devices.get("cpu", ranks=1, threads=2)
    run = training("smollm2-135m", cpu, tokens=512, targets=278, r=16, gradient_checkpointing=checkpointing)
    assert memory.total(fit.estimate(run)) == pytest.approx(measured, rel=0.1)


TINY = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
TINY_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "vocab_size": 300,
    "is_encoder_decoder": True,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": True,
}
TINY_CODER = {"n_embd": 128, "n_inner": 512, "n_head": 8, "n_layer": 2, "vocab_size": 300, "n_positions": 512}


@pytest.mark.parametrize(
    ("family", "method", "dtype", "dropout"),
    [
        ("llama", "lora", torch.float32, 0.0),
        ("llama", "lora", torch.float32, 0.1),
        ("llama", "lora", torch.bfloat16, 0.0),
        ("llama", "lora", torch.bfloat16, 0.1),
        ("qwen2", "lora", torch.bfloat16, 0.0),
        ("phi3", "lora", torch.bfloat16, 0.0),
        ("gemma2", "lora", torch.bfloat16, 0.0),
        ("gpt_bigcode", "lora", torch.bfloat16, 0.0),
        ("llama", "prompt_tuning", torch.bfloat16, 0.0),
        ("llama", "prefix_tuning", torch.bfloat16, 0.0),
        ("llama", "prefix_tuning", torch.float32, 0.0),
        ("gemma2", "prompt_tuning", torch.float32, 0.0),
        ("llama", "ia3", torch.float32, 0.0),
        ("llama", "full", torch.float32, 0.0),
    ],
)
def test_what_a_block_keeps_against_autograd(
    family: str, method: str, dtype: torch.dtype, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block more in a real model makes autograd keep as many bytes more as estimated."""
    monkeypatch.setattr(hardware, "compute_dtype", lambda device: dtype)
    config: dict[str, Any] = {"model_type": family, **(TINY_CODER if family == "gpt_bigcode" else TINY)}
    if family == "gemma2":
        config |= {"head_dim": 16, "attn_logit_softcapping": 50.0}
    if family == "gpt_bigcode":
        config |= {"multi_query": True, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    layers = "n_layer" if family == "gpt_bigcode" else "num_hidden_layers"
    run = training(
        model.describe(config, architectures.shapes(config)),
        Device("cpu", GB, 1.0, 1.0, 1.0, dtype.itemsize, 0),
        tokens=256,
        longest_sample=128,
        r=8,
        dropout=dropout,
        method=method,
        samples=2,
    )
    kept = [_bytes_kept({**config, layers: blocks}, run, dtype) for blocks in (2, 3)]
    copies = sum(copy.bytes for copy in general.copies(run)) / 2
    if family == "phi3":  # on a CPU attention's output lies head by head here, and its adapter's input is a copy
        copies += run.tokens * run.model.attention * dtype.itemsize
    assert kept[1] - kept[0] == pytest.approx(general.block_bytes(run)[0] + copies, rel=0.03)


def _bytes_kept(config: dict[str, Any], run: memory.Training, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps for backward after the forward pass of a pack of two samples, weights left out."""
    options = {key: value for key, value in config.items() if key != "model_type"}
    attention = "eager" if config["model_type"] == "gemma2" else "sdpa"
    found = AutoConfig.for_model(config["model_type"], **options)
    net = AutoModelForCausalLM.from_config(found, attn_implementation=attention).to(dtype)
    engine = make_engine(add_adapter(net, run.lora, 0, run.tuning), run.train, run.longest_sample)
    net = engine.model
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    sample = np.zeros(run.longest_sample, np.uint32), np.array([run.longest_sample - 1])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        engine.loss_sum(flatten([sample] * run.samples), seed=0)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)


def test_the_sum_counts_what_lives_together() -> None:
    few = sizes(general.moving(training(targets=10, gradient_checkpointing=True)))
    assert "logits and loss" not in few
    assert few["activations: one block, recomputed"] > 10 * 128256 * 12
    many = sizes(general.moving(training(targets=8192, gradient_checkpointing=True)))
    assert "activations: one block, recomputed" not in many
    kept = sizes(general.moving(training(targets=10)))
    assert kept["activations: all blocks"] == 32 * few["activations: one block, recomputed"]


def test_gradients_wait_where_a_step_has_several_packs() -> None:
    one, several = (memory.total(fit.estimate(training(layers_kept=32, packs=packs))) for packs in (1, 4))
    assert several - one == 4 * 167_772_160


def test_exchange_of_gradients_counts_where_it_is_the_most() -> None:
    run = training(tokens=64, targets=32, longest_sample=32, ranks=2, layers_kept=0)
    assert sizes(fit.estimate(run))["adapter: gradients in exchange"] == 4 * 167_772_160


@pytest.mark.parametrize(("bits", "gigabytes"), [(4, 5.702295), (8, 9.086), (16, 16.061)])
def test_base_in_each_precision(bits: int, gigabytes: float) -> None:
    """Counted by hand for Llama-3-8B: block linears in so many bits with their constants, the rest in 16."""
    assert memory.total(states.base(training(bits=bits))) == pytest.approx(gigabytes * GB, rel=1e-4)


@pytest.mark.parametrize(
    ("optim", "bytes_each"),
    [("adamw_torch", 8.0), ("adamw_8bit", 2 + 8 / 256), ("paged_adamw_8bit", 0.0), ("paged_adamw_32bit", 0.0)],
)
def test_moments(optim: str, bytes_each: float) -> None:
    found = sizes(states.fixed(training(optim=optim)))
    assert found["adapter: AdamW moments"] == pytest.approx(167_772_160 * bytes_each, abs=1)


def test_paged_moments_are_asked_of_main_memory() -> None:
    plain, paged = (
        speed.slurm_request(training(optim=optim, r=256), 20 * GB, 1) for optim in ("adamw_torch", "paged_adamw_32bit")
    )
    assert paged.mem_gb - plain.mem_gb == pytest.approx(8 * 4 * 0.168, abs=1)


METHODS: dict[str, dict[str, int]] = {
    "full": {},
    "ia3": {},
    "prompt_tuning": {"num_virtual_tokens": 7},
    "prefix_tuning": {"num_virtual_tokens": 7},
    "adaption_prompt": {"adapter_len": 5, "adapter_layers": 1},
}


@pytest.mark.parametrize("family", ["llama", "gpt_bigcode", "t5"])
@pytest.mark.parametrize("method", ["lora", "dora", *METHODS])
def test_trained_parameters_against_peft(family: str, method: str) -> None:
    if method == "adaption_prompt" and family != "llama":
        pytest.skip("peft has it for Llama and Mistral only")
    config = {"llama": TINY, "gpt_bigcode": TINY_CODER, "t5": TINY_T5}[family] | {"model_type": family}
    real = _model_class(config).from_config(AutoConfig.for_model(**config))
    lora = LoraSettings(r=4, use_dora=method == "dora")
    tuning = TuningSettings.model_validate(
        {"method": "lora" if method == "dora" else method, **METHODS.get(method, {})}
    )
    net = add_adapter(real, lora, 0, tuning)
    counted = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    planned = model.describe(config, architectures.shapes(config))
    assert states.trained_parameters(planned, lora, tuning) == counted


def _model_class(config: dict[str, Any]) -> Any:
    return AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else AutoModelForCausalLM


def test_modules_to_save_and_new_tokens_against_peft() -> None:
    config = TINY | {"model_type": "llama"}
    real = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    planned = model.describe(config, architectures.shapes(config))
    lora = LoraSettings(r=4, modules_to_save=["norm"])
    net = add_adapter(real, lora, 0, TuningSettings(), new_tokens=[7, 8, 9])
    counted = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert states.trained_parameters(planned, lora, TuningSettings(), new_tokens=3) == counted
    with pytest.raises(CoraxError, match=r"modules_to_save: 'nrm' names no module of the model, allowed: .*norm"):
        states.trained_parameters(planned, LoraSettings(modules_to_save=["nrm"]), TuningSettings())


@pytest.mark.parametrize("name", NAMES)
def test_shapes_agree_with_transformers(name: str) -> None:
    """The tensors of a whole published configuration are those of the real class."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    options = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        real = _model_class(config).from_config(AutoConfig.for_model(config["model_type"], **options, pad_token_id=0))
    tensors = {key: tuple(value.shape) for key, value in real.state_dict().items()}
    tied = set(tensors) - set(architectures.shapes(config))
    assert tied <= {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert architectures.shapes(config) == {key: shape for key, shape in tensors.items() if key not in tied}
    assert sum(prod(shape) for shape in architectures.shapes(config).values()) == sum(
        p.numel() for p in real.parameters()
    )


def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(
        CoraxError, match=r"config.json: model_type is 'mamba', without weights the shapes are known for"
    ):
        model.from_config(tmp_path / "config.json")


def test_what_fits_is_let_through() -> None:
    fit.check(training())


def test_refusal_says_what_would_fit() -> None:
    """Plain transformers: with dropout in the base there are no fast layers."""
    tight = training("starcoder", devices.GPUS["a100-40gb"], targets=4096)
    with pytest.raises(CoraxError) as caught:
        fit.check(tight)
    text = str(caught.value)
    assert "a100-40gb has 40.0 GB for each of 1 ranks" in text
    needed = memory.total(fit.estimate(tight))
    assert f"needs {needed / GB:.1f} GB for packs of 8,192 tokens" in text
    assert "train.gradient_checkpointing=true (" in text
    assert "plan.max_length=" in text
    assert "\n" not in text


def test_refusal_with_fast_layers_says_how_many_to_keep() -> None:
    tight = training(device=devices.GPUS["a100-40gb"], layers_kept=32, dequantised_base=True)
    with pytest.raises(CoraxError, match=r"what would fit: train.layers_kept=(\d+) \(\d") as caught:
        fit.check(tight)
    kept = int(str(caught.value).partition("layers_kept=")[2].partition(" ")[0])
    fit.check(training(device=tight.device, layers_kept=kept, dequantised_base=True))
    with pytest.raises(CoraxError):
        fit.check(training(device=tight.device, layers_kept=kept + 1, dequantised_base=True))


def test_refusal_of_full_fine_tuning_names_lora() -> None:
    with pytest.raises(CoraxError, match=r"tuning.method=lora with"):
        fit.check(training("starcoder", method="full"))


@settings(max_examples=200)
@example("phi-3-medium", "a100-40gb", 1, "lora", "default", 16, "adamw_torch", False, True, "1024", 0.05)
@given(
    name=st.sampled_from(["llama-3-8b", "gemma-2-9b", "t5-base"]),
    device=st.sampled_from(["cpu", "a100-40gb"]),
    ranks=st.sampled_from([1, 4]),
    method=st.sampled_from(["lora", "full", "prefix_tuning"]),
    start=st.sampled_from(["default", "pissa", "loftq"]),
    bits=st.sampled_from([4, 8, 16]),
    optim=st.sampled_from(["adamw_torch", "adamw_8bit"]),
    fsdp=st.booleans(),
    packing=st.booleans(),
    max_length=st.sampled_from(["1024", "4096", "32768"]),
    share=st.sampled_from([0.05, 0.95]),
)
def test_what_would_fit_is_allowed_and_fits(
    name: str,
    device: str,
    ranks: int,
    method: str,
    start: str,
    bits: int,
    optim: str,
    fsdp: bool,
    packing: bool,
    max_length: str,
    share: float,
) -> None:
    """What a refusal proposes, planned with the packs that it leads to; a tenth of the samples are mostly targets."""
    random = np.random.default_rng(0)
    lengths = random.integers(100, 1000, 2000)
    targets = (lengths * np.where(random.random(2000) < 0.1, 0.95, share)).astype(np.int64)

    def planned(changes: list[str]) -> memory.Training:
        texts = {
            "plan": {"device": device, "devices": str(ranks), "packing": str(packing), "max_length": max_length},
            "lora": {"r": "64", "init_lora_weights": start},
            "tuning": {"method": method},
            "train": {"bits": str(bits), "optim": optim, "fsdp": str(fsdp), "eval_steps": "1"},
        }
        for change in changes:
            section, key, value = re.split("[.=]", change)
            texts[section][key] = value
        models: dict[str, Any] = {
            "plan": PlanSettings,
            "lora": LoraSettings,
            "tuning": TuningSettings,
            "train": TrainSettings,
        }
        found: dict[str, Any] = {key: parse(models[key], given, strings=True) for key, given in texts.items()}
        plan = found.pop("plan")
        tuning_settings.check(
            found["tuning"], found["lora"], found["train"], plan.packing, plan.devices, name == "t5-base"
        )
        packs = pack_epoch(lengths, plan.max_length, plan.packing, 0, 0)
        wanted = memory.Training(
            model=described(name),
            device=devices.get(plan.device, plan.devices, 2),
            ranks=plan.devices,
            tokens=int(packs.totals(lengths).max()),
            targets=int(packs.totals(targets).max()),
            longest_sample=int(lengths.max()),
            samples=int(np.diff(packs.offsets).max()),
            **found,
        )
        return fit.decide(wanted)

    try:
        tight = planned([])
        fit.check(tight)
    except CoraxError as error:
        for option in str(error).partition("what would fit: ")[2].split("; "):
            if "=" in option:
                fit.check(planned(re.findall(r"[a-z]+\.\w+=[^\s,;]+", option)))


def test_refusal_where_nothing_fits() -> None:
    crumb = Device("cpu", 1000, 1.0, 1.0, 1.0, 4, 1000)
    huge = training(device=crumb, tokens=10**7, longest_sample=10**7, ranks=2)
    with pytest.raises(CoraxError, match=r"for each of 2 ranks.*take a smaller model"):
        fit.check(huge)


@settings(max_examples=25)
@given(
    name=st.sampled_from(["llama-3-8b", "qwen2.5-7b", "phi-3-medium"]),
    gigabytes=st.floats(8, 150),
    tokens=st.integers(64, 20_000),
    r=st.integers(1, 256),
    packs=st.integers(1, 3),
)
def test_as_many_layers_are_kept_as_fit(name: str, gigabytes: float, tokens: int, r: int, packs: int) -> None:
    card = Device("card", int(gigabytes * GB), 1.0, 1.0, 1.0, 2, GB)
    wanted = training(name, card, tokens=tokens, targets=tokens // 2, longest_sample=64, r=r, packs=packs)
    found = fit.decide(wanted)
    kept, blocks = fast.layers_kept(found), wanted.model.blocks
    assert found == fit.decide(wanted)
    assert fit.fits(found) or (kept == 0 and not found.train.dequantised_base)
    more = found.train.model_copy(update={"layers_kept": kept + 1})
    assert kept == blocks or not fit.fits(replace(found, train=more))
    everything = found.train.model_copy(update={"layers_kept": blocks, "dequantised_base": True})
    assert bool(found.train.dequantised_base) == fit.fits(replace(found, train=everything))
    given_numbers = fit.decide(replace(wanted, train=found.train))
    assert given_numbers == found


@settings(max_examples=25)
@given(
    name=st.sampled_from(["llama-3-8b", "phi-3-medium", "smollm2-135m"]),
    gigabytes=st.floats(4, 150),
    more=st.floats(0, 10),
    tokens=st.integers(64, 20_000),
)
def test_more_memory_keeps_no_less_and_takes_no_longer(name: str, gigabytes: float, more: float, tokens: int) -> None:
    less, larger = (
        fit.decide(training(name, replace(H100, memory=int(memory * GB)), tokens=tokens, longest_sample=64))
        for memory in (gigabytes, gigabytes + more)
    )
    assert fit.fits(larger) or not fit.fits(less)
    assert fast.layers_kept(larger) >= fast.layers_kept(less)
    assert bool(larger.train.dequantised_base) >= bool(less.train.dequantised_base)
    slow, quick = (speed.seconds_per_pack(each, tokens, tokens / 2, 64) for each in (less, larger))
    assert quick <= slow * (1 + 1e-9)


@given(
    packs=st.integers(1, 300),
    more=st.integers(0, 20),
    packs_per_step=st.integers(1, 64),
    ranks=st.integers(1, 8),
)
def test_more_packs_take_no_fewer_hours(packs: int, more: int, packs_per_step: int, ranks: int) -> None:
    """The last step has the packs that are left, not as many as any other."""
    run = training("starcoder", ranks=ranks, eval_steps=10**6)
    validation = Part(packs_per_step, packs=1, samples=1, tokens=1, targets=1)
    few, many = (
        speed.training_hours(run, Part(packs_per_step, each, 10 * each, 8000 * each, 4000 * each), validation)[1]
        for each in (packs, packs + more)
    )
    assert few <= many * (1 + 1e-9)
    steps = -(-packs // packs_per_step)
    seconds = packs * speed.seconds_per_pack(run, 8000, 4000, 800) + steps * speed.optimizer_seconds(run)
    seconds += speed.mean_seconds(run, validation, learn=False)
    assert ranks > 1 or few * 3600 == pytest.approx(seconds)


def test_checkpointing_keeps_no_layer() -> None:
    assert fast.layers_kept(fit.decide(training(gradient_checkpointing=True))) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": devices.get("cpu", 1, 2)}, "no GPU"),
        ({"config": "gemma-2-9b"}, "architecture gemma2"),
        ({"config": "starcoder"}, "architecture gpt_bigcode"),
        ({"config": "phi-3-medium", "longest_sample": 3000}, "sliding window of 2047"),
        ({"config": "phi-3-medium"}, None),
        ({"config": "qwen2.5-7b", "longest_sample": 140_000}, None),
        ({"bits": 8}, "8 bits"),
        ({"method": "ia3"}, "another kind of adapter"),
        ({"lora": {"use_dora": True}}, "another kind of adapter"),
        ({"lora": {"modules_to_save": ["lm_head"]}}, "another kind of adapter"),
        ({"lora": {"target_modules": ["q_proj", "v_proj"]}}, "without adapter"),
        ({"lora": {"target_modules": list(PROJECTIONS)}}, None),
    ],
)
def test_where_the_fast_layers_serve(changes: dict[str, Any], reason: str | None) -> None:
    found = fast.unsupported(training(**changes))
    assert found is None if reason is None else found is not None and reason in found


MEASURED = [("ours, 80 GB", 32, True), ("ours, 40 GB", 32, False), ("ours, 12 GB", 1, False)]
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "training.json"


@pytest.mark.parametrize(("name", "kept", "dequantised"), MEASURED)
def test_fast_layers_against_measurements(name: str, kept: int, dequantised: bool) -> None:
    """Peak and speed on an H100, kept in benchmarks/results; samples of 488 tokens, 54 % of the tokens in the loss."""
    rows = {row["name"]: row["value"] for row in json.loads(RESULTS.read_text())["rows"]}
    run = training(targets=4443, layers_kept=kept, dequantised_base=dequantised)
    assert memory.allocated(fit.estimate(run)) == pytest.approx(rows[f"{name}: peak memory"] * GB, rel=0.05)
    seconds = speed.seconds_per_pack(run, 8192, 4443, 488) + speed.optimizer_seconds(run)
    assert 8192 / seconds == pytest.approx(rows[name], rel=0.15)


@pytest.mark.parametrize(
    ("config", "device", "dropout", "measured"),
    [
        ("llama-3-8b", "h100-80gb", 0.05, 7007),  # plain transformers and peft, without boundaries
        ("llama-2-7b", "a100-40gb", 0.0, 3128),  # published: LLaMA-Factory's wiki, 4 bits, 8192 tokens
    ],
)
def test_speed_of_plain_transformers_against_measurements(
    config: str, device: str, dropout: float, measured: float
) -> None:
    run = training(config, devices.GPUS[device], dropout=dropout, gradient_checkpointing=True)
    assert 8192 / speed.general_seconds(run, 8192, 8192, 8192, True) == pytest.approx(measured, rel=0.15)


def test_speed_on_a_cpu_against_a_measurement() -> None:
    """Measured: about 5 s for 512 tokens of the 135M model with r = 16 on 2 threads."""
    run = training("smollm2-135m", devices.get("cpu", ranks=1, threads=2), tokens=512, r=16)
    assert speed.seconds_per_pack(run, 512, 512, 512) == pytest.approx(5.0, rel=0.15)


def test_checkpointing_costs_about_a_third_more_time() -> None:
    kept, again = (
        speed.seconds_per_pack(training("starcoder", gradient_checkpointing=value), 1024, 512, 256)
        for value in (False, True)
    )
    assert 1.3 < again / kept < 1.5
    forward = speed.seconds_per_pack(training("starcoder"), 1024, 512, 256, learn=False)
    assert forward < kept / 1.9


def test_small_models_wait_for_the_host() -> None:
    """Measured, whatever the width: 13.5 ms to issue a layer, 9 ms with the dequantised base kept."""
    for dequantised, seconds in ((False, 30 * 0.0135), (True, 30 * 0.009)):
        run = training("smollm2-135m", layers_kept=30, dequantised_base=dequantised)
        assert speed.seconds_per_pack(run, 2048, 1024, 300) == pytest.approx(seconds)
    assert speed.seconds_per_pack(run, 262_144, 131_072, 300) > 0.5


def test_rows_are_planned_with_the_padding_that_they_get() -> None:
    assert general.PADDING == PADDING


@pytest.mark.parametrize(("method", "seconds"), [("lora", 0.24), ("full", 0.115)])
def test_small_models_wait_for_the_host_in_transformers_too(method: str, seconds: float) -> None:
    """Measured on an H100: one sample of 100 tokens, forward and backward."""
    run = training("smollm2-135m", method=method, bits=16, tokens=100)
    assert speed.seconds_per_pack(run, 100, 50, 100) == pytest.approx(seconds, rel=0.05)


def test_the_plan_says_how_long_packs_must_be_to_keep_the_gpu_busy() -> None:
    """The host's time for a pack does not depend on its length, the GPU's does."""
    run = training("smollm2-135m", layers_kept=30, dequantised_base=True)

    def factor(part: Part) -> float:
        found = speed.host_factor(run, part)
        assert found is not None
        return found

    few, many = (Part(1, packs=1, samples=10 * times, tokens=8192 * times, targets=4096 * times) for times in (1, 10))
    assert factor(few) > 10
    assert factor(few) == pytest.approx(10 * factor(many))
    assert speed.host_factor(training("starcoder"), Part(1, packs=1, samples=1, tokens=10, targets=5)) is None


@pytest.mark.parametrize(
    ("hours", "time"), [(0.01, "0:30:00"), (1, "1:45:00"), (10, "15:15:00"), (15.8, "24:00:00"), (500, "24:00:00")]
)
def test_slurm_time(hours: float, time: str) -> None:
    assert speed.slurm_request(training(), 20 * GB, hours).time == time


def test_slurm_request() -> None:
    four = speed.slurm_request(training(device=devices.GPUS["a100-40gb"], ranks=4), 20 * GB, 1)
    assert (four.nodes, four.gpus, four.cpus) == (1, 4, 72)
    assert 4 * 16 < four.mem_gb < 250
    cpu = speed.slurm_request(training("smollm2-135m", devices.get("cpu", 1, 2)), 2 * GB, 1)
    assert (cpu.gpus, cpu.cpus, cpu.mem_gb) == (0, 2, 3)


def test_ranks_on_a_cpu_share_its_memory() -> None:
    one, three = devices.get("cpu", 1, 2), devices.get("cpu", 3, 2)
    assert one.memory >= 2**30
    assert three.memory == one.memory // 3


SIZES = (*architectures.ALIASES, "num_key_value_heads")


def _folder(path: Path, config: dict[str, Any] | None = None) -> Path:
    """A model folder of two files: untied, one block, one linear layer."""
    weights = {
        "model.embed_tokens.weight": np.zeros((10, 4), np.float16),
        "model.layers.0.mlp.up_proj.weight": np.zeros((8, 4), np.float16),
        "model.layers.0.mlp.up_proj.bias": np.zeros(8, np.float16),
        "model.layers.0.norm.weight": np.zeros(4, np.float16),
        "lm_head.weight": np.zeros((10, 4), np.float16),
    }
    sized = dict.fromkeys(SIZES, 1) | {"hidden_size": 4}
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(sized if config is None else config))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_reads_a_model_folder(tmp_path: Path) -> None:
    found = model.read(_folder(tmp_path))
    assert found.linears == {"model.layers.0.mlp.up_proj": (8, 4)}
    assert found.parameters == 40 + 32 + 8 + 4 + 40


def test_reads_the_files_of_the_index_only(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    save_file({"layers.0.other.weight": np.zeros((9, 9))}, folder / "consolidated.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model.read(folder).parameters == 124


def test_tied_head_counts_once(tmp_path: Path) -> None:
    sized = dict.fromkeys(SIZES, 1) | {"hidden_size": 4, "tie_word_embeddings": True}
    assert model.read(_folder(tmp_path, sized)).parameters == 84


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json: missing"),
        ("config.json", b"{", "config.json: no valid JSON"),
        ("config.json", b"[]", "config.json: must be a JSON object"),
        ("config.json", b'{"hidden_size": 4}', "config.json: num_attention_heads is None"),
        ("model.safetensors", None, "model.safetensors: missing"),
        ("model.safetensors", b"", "model.safetensors: no valid safetensors file"),
        ("model.safetensors", b"\x10" + bytes(7) + b'{"a": ', "model.safetensors: no valid safetensors file"),
        ("model.safetensors", b"\xff" * 20, "model.safetensors: no valid safetensors file"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}", "no linear layers"),
        ("model.safetensors.index.json", b"{}", "weight_map is missing"),
    ],
)
def test_damaged_model_folder(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    folder = _folder(tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(CoraxError, match=message):
        model.read(folder)
