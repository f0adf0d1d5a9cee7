"""Prompt and prefix tuning on packs: each sample is computed as if it were alone behind the virtual tokens."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_trainings import training

from corax.plan import general
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import VIRTUAL_TOKENS, TuningSettings
from corax.train.adapter import add_adapter
from corax.train.engine import make_engine
from corax.train.isolation import check_isolation
from corax.train.packs import flatten
from corax.train.rows import alike
from corax.train.virtual import VirtualTokensEngine

TOKENS = 4
Sample = tuple[np.ndarray, np.ndarray]


def model(method: str) -> Any:
    """A tiny Llama in float32 whose virtual tokens matter, the same for the same method."""
    tuned = add_adapter(
        tiny.model().float(),
        LoraSettings(),
        0,
        TuningSettings.model_validate({"method": method, "num_virtual_tokens": TOKENS}),
    )
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return tuned


def engine(method: str) -> VirtualTokensEngine:
    """What `make_engine` has for the method."""
    found = make_engine(model(method), TrainSettings(), longest=64)
    assert isinstance(found, VirtualTokensEngine)
    return found


def sample(generator: np.random.Generator, length: int, share: float) -> Sample:
    """Random ids, of which about so many carry loss; of one token none can."""
    places = np.flatnonzero(generator.random(length) < share)
    return generator.integers(3, 300, length).astype(np.uint32), places[places > 0]


def pack(lengths: list[int], seed: int = 0) -> list[Sample]:
    """Samples of these lengths; the last token of the longest carries loss, so that there is one target."""
    generator = np.random.default_rng(seed)
    rows = [sample(generator, length, 0.4) for length in lengths]
    longest = max(range(len(rows)), key=lambda number: lengths[number])
    ids, places = rows[longest]
    rows[longest] = ids, np.union1d(places, [len(ids) - 1])
    return rows


def alone(tuned: Any, ids: np.ndarray) -> torch.Tensor:
    """peft's own logits (tokens, vocabulary) of one sample, without padding or a choice of places."""
    logits: torch.Tensor = tuned(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]
    return logits[-len(ids) :]


def gradients(tuned: Any) -> list[torch.Tensor]:
    """The gradients of all that is trained."""
    return [parameter.grad for parameter in tuned.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("method", VIRTUAL_TOKENS)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7).filter(lambda lengths: max(lengths) > 1))
@settings(max_examples=8)
def test_loss_logits_and_gradient_are_those_of_the_samples_alone(method: str, lengths: list[int]) -> None:
    rows = pack(lengths, seed=len(lengths))
    ours, reference = engine(method), model(method)
    batch = flatten(rows)
    loss = ours.loss_sum(batch, seed=0)
    loss.backward()  # type: ignore[no-untyped-call]

    logits = torch.cat([alone(reference.train(), ids)[places - 1] for ids, places in rows])
    expected = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.target_logits(batch), logits.detach(), rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients(ours.model), gradients(reference), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", VIRTUAL_TOKENS)
def test_every_sample_of_a_pack_has_the_virtual_tokens_before_it(method: str) -> None:
    """Without them, or with the first sample's only, logits of all but the first would be those of the base."""
    rows = pack([9, 12, 9, 30])
    found = engine(method).target_logits(flatten(rows))
    base = tiny.model().float().eval()
    with torch.no_grad():
        plain = torch.cat([alone(base, ids)[places - 1] for ids, places in rows])
    assert ((found - plain).abs().amax(1) > 0.05 * plain.abs().max()).all()


@pytest.mark.parametrize("method", VIRTUAL_TOKENS)
def test_a_sample_never_sees_another(method: str) -> None:
    rows = pack([17, 5, 33, 8, 16])
    ours = engine(method)
    check_isolation(ours, flatten(rows))
    counts = [len(places) for _, places in rows]
    before = torch.split(ours.target_logits(flatten(rows)), counts)
    ids, places = rows[2]
    changed = [*rows[:2], (ids[::-1].copy(), places), *rows[3:]]
    after = torch.split(ours.target_logits(flatten(changed)), counts)
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        assert torch.allclose(one, other, atol=1e-5) == (number != 2)


def test_prompt_tuning_with_recomputed_layers_has_the_same_gradient() -> None:
    batch = flatten(pack([17, 5, 33, 8, 16]))
    found = []
    for checkpointing in (False, True):
        ours = make_engine(model("prompt_tuning"), TrainSettings(gradient_checkpointing=checkpointing), longest=64)
        ours.loss_sum(batch, seed=0).backward()  # type: ignore[no-untyped-call]
        found.append(gradients(ours.model)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", VIRTUAL_TOKENS)
def test_16_bits_are_near_to_32(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = flatten(pack([17, 5, 33, 8, 16]))
    wide = engine(method).loss_sum(batch, seed=None).item()
    monkeypatch.setattr("corax.hardware.compute_dtype", lambda device: torch.bfloat16)
    narrow = engine(method)
    loss = narrow.loss_sum(batch, seed=0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert narrow.target_logits(batch).dtype == torch.bfloat16
    assert loss.item() == pytest.approx(wide, rel=2e-2)
    assert all(each.dtype == torch.float32 and each.abs().sum() > 0 for each in gradients(narrow.model))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.sampled_from(VIRTUAL_TOKENS))
def test_the_plan_counts_at_least_the_places_of_the_rows(lengths: list[int], method: str) -> None:
    run = training(tokens=sum(lengths), longest_sample=max(lengths), samples=len(lengths), method=method)
    before = run.tuning.num_virtual_tokens if method == "prompt_tuning" else 0
    found = sum(len(group) * (lengths[group[0]] + before) for group in alike(lengths))
    assert found <= general.places(run) <= 1.5 * found + 1
