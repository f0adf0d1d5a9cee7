"""What to draw: every prompt at every temperature and top-p, one number a sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from corax.errors import CoraxError
from corax.sample.prompts import Prompt
from corax.settings.sample import SampleSettings
from corax.template import Template

Tick = Callable[[int], None]
"""Called with the number of tokens generated since the last call, every few steps; may raise to stop."""


@dataclass(frozen=True)
class Request:
    """Sample `number`: `ids` are the prompt's tokens."""

    number: int
    prompt: Prompt
    ids: Sequence[int]
    temperature: float
    top_p: float


@dataclass(frozen=True)
class Completion:
    """Generated text, its number of tokens (the end token included) and why it stopped: "end" or "length"."""

    text: str
    tokens: int
    finish_reason: str


def requests(
    prompts: Sequence[Prompt], prompt_ids: Callable[[str], Sequence[int]], settings: SampleSettings
) -> list[Request]:
    """All prompts at the first temperature and top-p, then at the next: a longer sweep adds samples at the end."""
    sweep = product(settings.temperature, settings.top_p, prompts)
    return [
        Request(number, prompt, prompt_ids(prompt.text), temperature, top_p)
        for number, (temperature, top_p, prompt) in enumerate(sweep)
    ]


def longest_first(items: Sequence[Request]) -> list[Request]:
    """Prompts of similar length together, the longest first, so that a lack of memory shows early."""
    return sorted(items, key=lambda item: (-len(item.ids), item.number))


def completion(tokens: Sequence[int], template: Template) -> Completion:
    """Generated token ids as text."""
    reason = "end" if tokens[-1] == template.end_id else "length"
    return Completion(template.decode_completion(tokens), len(tokens), reason)


def check_context(items: Sequence[Request], max_new_tokens: int, context: int | None) -> None:
    """Raise CoraxError if prompt and completion may exceed the model's `context` of so many tokens."""
    longest = max(len(item.ids) for item in items)
    if context is not None and longest + max_new_tokens > context:
        raise CoraxError(
            f"sample.max_new_tokens: {max_new_tokens} after a prompt of {longest} tokens exceed the model's "
            f"context of {context}, allowed: at most {max(context - longest, 0)}"
        )
