"""Decoding with vLLM, where it is installed: seeded for each sample, with vLLM's own random numbers."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from corax.errors import CoraxError
from corax.sample.choice import uniforms
from corax.sample.requests import Request, Tick, longest_first
from corax.settings.sample import SampleSettings

REQUESTS_AT_ONCE = 2048
"""Requests handed over together; finished samples are kept after each such group."""


def installed() -> bool:
    """Whether vLLM can be imported."""
    return find_spec("vllm") is not None


def decode(
    folder: Path,
    dtype: torch.dtype,
    end_id: int,
    context: int,
    settings: SampleSettings,
    requests: Sequence[Request],
    tick: Tick,
) -> Iterator[tuple[Request, list[int]]]:
    """Each request with its generated token ids; `context` is the longest prompt with its completion, in tokens.

    The model computes in `dtype`. Raises CoraxError if vLLM is not installed.
    """
    if not installed():
        raise CoraxError("sample.backend: vllm is not installed here, allowed: auto, transformers")
    vllm = import_module("vllm")

    engine = vllm.LLM(
        model=str(folder),
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=context,
        max_num_seqs=settings.batch_size,
        seed=0,
        generation_config="vllm",  # the model's own defaults, such as penalties, must not interfere
        trust_remote_code=False,
    )
    ordered = longest_first(requests)
    for start in range(0, len(ordered), REQUESTS_AT_ONCE):
        group = ordered[start : start + REQUESTS_AT_ONCE]
        prompts: list[Any] = [{"prompt_token_ids": list(request.ids)} for request in group]
        parameters = [
            vllm.SamplingParams(
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=settings.max_new_tokens,
                seed=int(uniforms(settings.seed, request.number, 1)[0] * 2**53),
                ignore_eos=True,
                stop_token_ids=[end_id],
            )
            for request in group
        ]
        for request, result in zip(group, engine.generate(prompts, parameters), strict=True):
            tokens = list(result.outputs[0].token_ids)
            tick(len(tokens))
            yield request, tokens
