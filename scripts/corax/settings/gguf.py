"""Settings of `export`."""

from typing import Literal

from corax.settings.base import Settings


class GgufSettings(Settings):
    """The merged model as one GGUF file, for llama.cpp and what builds on it."""

    outtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """Type of the weight matrices (q8_0: 8 bits, blocks of 32); the others stay float32. Without one no such stage."""
