"""Draw the samples that are missing: keep them as they come, stop on a signal, say how it goes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from corax.architecture import is_encoder_decoder
from corax.errors import CoraxError
from corax.model import ADAPTER, load_plain
from corax.progress import Progress
from corax.sample import batches, slots, vllm
from corax.sample.constraint import Constraint
from corax.sample.parts import Parts
from corax.sample.requests import Request, Tick, completion
from corax.sample.sampler import Sampler
from corax.settings.sample import SampleSettings
from corax.stop import StopRequest
from corax.template import Template

SECONDS_BETWEEN_PARTS = 5.0
"""So much finished work may a kill cost."""


class SamplingPaused(Exception):
    """Stopped on a signal, with what is finished kept."""


@dataclass(frozen=True)
class Decoder:
    """All that decides a sample but its prompt."""

    folder: Path
    template: Template
    settings: SampleSettings
    constraint: Constraint | None
    device: torch.device
    dtype: torch.dtype

    @property
    def backend(self) -> str:
        """What decodes: vllm or transformers; raises CoraxError if it cannot do what is asked."""
        constrained, has_encoder = self.constraint is not None, is_encoder_decoder(self.folder)
        has_adapter = (self.folder / ADAPTER).is_dir()
        if self.settings.backend == "auto":
            possible = self.device.type == "cuda" and not constrained and not has_encoder and not has_adapter
            return "vllm" if possible and vllm.installed() else "transformers"
        if self.settings.backend == "vllm" and constrained:
            raise CoraxError("sample.constrained: not with sample.backend vllm, allowed: auto, transformers")
        if self.settings.backend == "vllm" and has_encoder:
            raise CoraxError("sample.backend: vllm decodes no encoder-decoder model, allowed: auto, transformers")
        if self.settings.backend == "vllm" and has_adapter:
            raise CoraxError(
                f"sample.backend: vllm would not read {self.folder / ADAPTER}, allowed: auto, transformers"
            )
        return self.settings.backend

    def decode(self, requests: Sequence[Request], done: set[int], tick: Tick) -> Iterator[tuple[Request, list[int]]]:
        """Each of `requests` that is not in `done` with its generated token ids, as they end.

        `requests` are all samples of the run, done or not: they decide the shapes, and with them the rounding.
        """
        settings, end_id = self.settings, self.template.end_id
        missing = [request for request in requests if request.number not in done]
        length = max(len(request.ids) for request in requests) + settings.max_new_tokens
        if self.backend == "vllm":
            yield from vllm.decode(self.folder, self.dtype, end_id, length, settings, missing, tick)
            return
        model = load_plain(self.folder, self.dtype, self.device)
        if slots.supports(model.config) and not isinstance(model, PeftModel):
            count = min(settings.batch_size, len(requests))
            sampler = Sampler(count, settings.seed, settings.max_new_tokens, self.device, self.constraint)
            yield from slots.decode(model, sampler, end_id, count, length, missing, tick)
        else:
            yield from batches.decode(model, self.template, self.constraint, settings, requests, done, tick)


def draw(decoder: Decoder, requests: Sequence[Request], parts: Parts) -> float:
    """Draw those of `requests` that `parts` lacks into it; returns the generated tokens a second.

    Raises SamplingPaused after SIGTERM or SIGUSR1.
    """
    if len(parts.done) == len(requests):
        return 0.0
    with StopRequest() as stop, Progress("sample", len(requests), "sample", start=len(parts.done)) as progress:
        watch = _Watch(parts, progress, stop)
        for request, tokens in decoder.decode(requests, set(parts.done), watch.tick):
            parts.add(request.number, completion(tokens, decoder.template))
            progress.advance(1, watch.note())
        parts.save()
    return watch.rate()


class _Watch:
    """Looks up from the work every few steps."""

    def __init__(self, parts: Parts, progress: Progress, stop: StopRequest) -> None:
        self.parts, self.progress, self.stop = parts, progress, stop
        self.tokens = 0
        self.began = self.saved = time.monotonic()

    def tick(self, tokens: int) -> None:
        """`tokens` more are generated."""
        self.tokens += tokens
        self.progress.advance(0, self.note())
        if self.stop.made or time.monotonic() - self.saved >= SECONDS_BETWEEN_PARTS:
            self.parts.save()
            self.saved = time.monotonic()
        if self.stop.made:
            done, total = len(self.parts.done), self.progress.total
            raise SamplingPaused(f"stopped by a signal with {done} of {total} samples, which are kept")

    def rate(self) -> float:
        return self.tokens / max(time.monotonic() - self.began, 1e-9)

    def note(self) -> str:
        return f"{self.rate():.0f} token/s"
