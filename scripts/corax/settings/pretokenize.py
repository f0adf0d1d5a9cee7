"""Settings of `pretokenize`: text to the model's token ids."""

from pydantic import Field

from corax.settings.base import Settings


class PretokenizeSettings(Settings):
    """Samples to token ids in the model's template; the headers are those of prompts and completions."""

    prompt_header: str = "{quantum state}"
    """Header (role) before the prompt; it is text like any other, braces included. This one is the quantum task's; the
    configuration gives the data of other tasks `user`, and `assistant` for the completion."""
    completion_header: str = "{code}"
    """Header (role) before the completion."""
    chunk_length: int | None = Field(None, ge=2)
    """Of plain texts: longer ones are cut into samples of so many tokens; null: a text is one sample."""
