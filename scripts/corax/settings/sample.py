"""Settings of `sample`: completions of the tuned model."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from corax.settings.base import Settings, to_number


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Temperature = Annotated[float, Field(ge=0, le=5), BeforeValidator(to_number)]
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(to_number)]
Temperatures = Annotated[
    list[Temperature],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=Temperature | list[Temperature]),
]
Shares = Annotated[
    list[Share], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=Share | list[Share])
]


class SampleSettings(Settings):
    """Sampling from the tuned model."""

    targets: bool = True
    """Sample for the task's own targets (the 20 classes of quantum states)."""
    samples_per_target: int = Field(1, ge=1)
    """Samples for each target, at each temperature and top-p."""
    held_out_prompts: int = Field(16, ge=0)
    """Prompts of the test part to sample for, one sample each at each temperature and top-p, the first ones."""
    temperature: Temperatures = [0.2]
    """Softmax temperature; 0 takes the most likely token. Of several every one is sampled at."""
    top_p: Shares = [0.95]
    """Smallest set of tokens with at least this probability is sampled from. Of several every one is sampled with."""
    constrained: bool = False
    """Allow only tokens that keep the text the beginning of one that the task's grammar accepts."""
    max_new_tokens: int = Field(640, ge=1)
    """Longest completion in tokens, its end token included."""
    batch_size: int = Field(16, ge=1)
    """Sequences decoded together: bounds the memory. On a GPU 128 is far faster."""
    backend: Literal["auto", "transformers", "vllm"] = "auto"
    """What decodes; auto is vllm where it is installed, with a GPU and without `constrained`, else transformers."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed; every sample has its own stream made from it and the sample's number."""
    threads: int = Field(2, ge=1)
    """CPU threads; on a CPU the result is bitwise the same only for the same number."""
