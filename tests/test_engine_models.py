"""Whole models: the fast engine, the general one, and a float64 reference in plain transformers and peft."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import engine_models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import Prepared

from corax import hardware
from corax.model import load_plain, load_quantised
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.stop import StopRequest
from corax.tokens import TokenShards
from corax.train import general
from corax.train.adapter import add_adapter
from corax.train.engine import Engine, make_engine
from corax.train.fast.engine import FastEngine, unsupported
from corax.train.general import GeneralEngine
from corax.train.isolation import check_isolation
from corax.train.loop import Loop
from corax.train.packs import Batch, Packs, flatten

FAMILIES = ("llama", "mistral", "qwen2", "phi3")
LAYERS = engine_models.SIZES["num_hidden_layers"]
SAMPLES = st.lists(st.tuples(st.integers(2, 20), st.integers(1, 19)), min_size=1, max_size=5)


@cache
def folder(family: str) -> Path:
    return Path(mkdtemp(prefix=family))


@cache
def pair(family: str) -> tuple[Any, Any]:
    """(the 4-bit model, a plain float64 model with the same weights), both with the same adapter."""
    lora = LoraSettings(r=3, lora_alpha=7.0)
    model = engine_models.quantised(folder(family), family, lora)
    return engine_models.widened(model), engine_models.reference(model, folder(family), lora)


def batch_of(samples: list[tuple[int, int]], seed: int = 0) -> Batch:
    """A pack of samples of (length, prompt length)."""
    random = np.random.default_rng(seed)
    rows = [(random.integers(1, 300, length).astype(np.uint32), min(prompt, length - 1)) for length, prompt in samples]
    return flatten([(ids, np.arange(prompt, len(ids))) for ids, prompt in rows])


def loss_and_gradients(engine: Engine, batch: Batch, seed: int | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    engine.model.zero_grad()
    loss = engine.loss_sum(batch, seed)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), engine_models.gradients(engine.model)


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Gradients agree to float32's rounding; some are zero, as those of the query of a one-token document."""
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * largest, name


@settings(max_examples=12)
@given(st.sampled_from(FAMILIES), SAMPLES, st.integers(0, LAYERS), st.booleans())
def test_fast_engine_agrees_with_transformers_and_peft(
    family: str, samples: list[tuple[int, int]], kept: int, resident: bool
) -> None:
    model, reference = pair(family)
    assert unsupported(model, longest=20) is None
    batch = batch_of(samples)
    loss, gradients = loss_and_gradients(FastEngine(model, kept, resident), batch)
    wanted_loss, wanted = loss_and_gradients(GeneralEngine(reference), batch)
    # transformers' own RMSNorm and the general engine's loss are float32 whatever the model's type.
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert gradients.keys() == wanted.keys() and len(gradients) in (2 * 7 * LAYERS, 2 * 4 * LAYERS)
    assert_close(gradients, wanted)


def test_fast_logits_agree_with_transformers_and_peft() -> None:
    model, reference = pair("llama")
    batch = batch_of([(7, 2), (9, 4)])
    logits = [engine.target_logits(batch) for engine in (FastEngine(model, 0, False), GeneralEngine(reference))]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


@cache
def with_dropout() -> Any:
    lora = LoraSettings(r=3, lora_dropout=0.2)
    return engine_models.quantised(folder("dropout"), "llama", lora)


def test_memory_choices_do_not_change_a_bit() -> None:
    batch = batch_of([(19, 4), (2, 1), (11, 3)])
    results = [
        loss_and_gradients(FastEngine(with_dropout(), kept, resident), batch, seed=5)
        for kept, resident in ((LAYERS, True), (LAYERS, False), (1, False), (0, True))
    ]
    first_loss, first = results[0]
    for loss, gradients in results[1:]:
        assert loss == first_loss
        assert all(torch.equal(gradients[name], gradient) for name, gradient in first.items())


def test_dropout_follows_the_seed_and_is_off_in_validation() -> None:
    engine, batch = FastEngine(with_dropout(), LAYERS, False), batch_of([(19, 4), (11, 3)])
    losses = [engine.loss_sum(batch, seed).item() for seed in (1, 1, 2, None, None)]
    assert losses[0] == losses[1] and losses[3] == losses[4]
    assert len(set(losses)) == 3
    plain = GeneralEngine(with_dropout()).loss_sum(batch, None).item()
    assert losses[3] == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_every_architecture_trains_on_the_general_path(family: str) -> None:
    model = engine_models.quantised(folder(f"general-{family}"), family, LoraSettings(r=3))
    engine, batch = GeneralEngine(model), batch_of([(19, 4), (40, 5), (2, 1)])
    check_isolation(engine, batch)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.01)
    before, gradients = loss_and_gradients(engine, batch, seed=0)
    assert all(gradient.norm() > 0 for gradient in gradients.values())
    optimizer.step()
    assert engine.loss_sum(batch, None).item() < before


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_general_path_gives_the_same_with_explicit_boundaries(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way of telling samples apart, with the CPU's arithmetic, with and without checkpointing."""
    model = engine_models.quantised(folder(f"boundaries-{family}"), family, LoraSettings(r=3))
    batch = batch_of([(19, 4), (40, 5), (2, 1)])
    loss, wanted = loss_and_gradients(GeneralEngine(model), batch)
    monkeypatch.setattr(general, "has_varlen", lambda device, dtype: True)
    for _ in range(2):
        engine = GeneralEngine(model)
        assert engine.boundaries
        found, gradients = loss_and_gradients(engine, batch, seed=0)
        assert found == pytest.approx(loss, rel=1e-5)
        assert_close(gradients, wanted)
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})


@pytest.mark.parametrize("load", [load_quantised, load_plain])
def test_adapters_compute_in_16_bits_where_the_base_does(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's types with the CPU's arithmetic: float32 weights, 16-bit products, the gradients of float32."""
    lora, batch = LoraSettings(r=3), batch_of([(19, 4), (40, 5)])
    adapter = engine_models.quantised(folder("narrow"), "llama", lora).state_dict()
    adapter = {name: value for name, value in adapter.items() if ".lora_" in name}
    cpu, rounded = torch.device("cpu"), folder("rounded")  # both types quantise the same weights
    load_plain(folder("narrow"), torch.bfloat16, cpu).save_pretrained(rounded)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = add_adapter(load(rounded, dtype, cpu), lora, seed=1)
        model.load_state_dict(adapter, strict=False)
        monkeypatch.setattr(hardware, "compute_dtype", lambda device, dtype=dtype: dtype)
        engine = GeneralEngine(model)
        seen: list[torch.dtype] = []
        for name, module in model.named_modules():
            if name.endswith(("lora_A.default", "lora_B.default")):
                module.register_forward_hook(lambda _, x, y, seen=seen: seen.extend((x[0].dtype, y.dtype)))
        _, gradients = loss_and_gradients(engine, batch, seed=0)
        assert set(seen) == {dtype}
        found.append(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    wide, narrow = found
    assert torch.nn.functional.cosine_similarity(wide, narrow, dim=0) > 0.99


@pytest.mark.parametrize(
    ("family", "lora", "longest", "reason"),
    [
        ("gemma2", LoraSettings(r=3), 20, "gemma2"),
        ("llama", LoraSettings(r=3, target_modules=["q_proj", "v_proj"]), 20, "no adapter"),
        ("llama", LoraSettings(r=3), 20, None),
    ],
)
def test_what_the_fast_engine_cannot_do_is_named(
    family: str, lora: LoraSettings, longest: int, reason: str | None
) -> None:
    model = engine_models.quantised(folder(f"{family}-{len(lora.target_modules)}"), family, lora)
    found = unsupported(model, longest)
    assert (found is None) if reason is None else (found is not None and reason in found)
    model.config.sliding_window = 10
    if reason is None:
        assert "sliding window" in str(unsupported(model, 11)) and unsupported(model, 10) is None


def test_on_a_cpu_the_general_path_is_taken() -> None:
    assert isinstance(make_engine(with_dropout(), TrainSettings(), longest=20), GeneralEngine)


def trained(prepared: Prepared, work: Path, kind: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and adapter after four steps on real quantum programs."""
    model = add_adapter(load_quantised(prepared.model, torch.float32, torch.device("cpu")), LoraSettings(r=4), seed=0)
    packs, validation = (
        Packs(prepared.plan, TokenShards([prepared.tokens], part), part) for part in ("train", "validation")
    )
    engine = FastEngine(model, 1, False) if kind == "fast" else GeneralEngine(model)
    loop = Loop(engine, packs, validation, TrainSettings(learning_rate=0.01, eval_steps=2), work, StopRequest())
    loop.steps = 4
    rows = loop.run()
    adapter = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    return [value for row in rows for key, value in row.items() if "loss" in key], adapter


def test_both_engines_learn_the_same_and_the_fast_one_repeats_itself(prepared: Prepared, tmp_path: Path) -> None:
    losses, adapter = trained(prepared, tmp_path / "one", "fast")
    again, same = trained(prepared, tmp_path / "two", "fast")
    other, _ = trained(prepared, tmp_path / "three", "general")
    assert losses == again and all(torch.equal(adapter[name], same[name]) for name in adapter)
    assert losses == pytest.approx(other, rel=1e-3)
    assert losses[-1] < losses[0]
