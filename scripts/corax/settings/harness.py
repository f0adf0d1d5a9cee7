"""Settings of `harness`."""

from pydantic import Field

from corax.settings.base import Settings


class HarnessSettings(Settings):
    """Base against tuned model on local task files of lm-evaluation-harness."""

    tasks: list[str] = []
    """Task files (YAML, with their data beside them). Without any there is no such stage."""
    num_fewshot: int | None = Field(None, ge=0)
    """Solved examples before each question; if not given, what each task file says."""
    limit: int | None = Field(None, ge=1)
    """Documents of each task, the first ones; all if not given."""
    batch_size: int = Field(8, ge=1)
    """Texts that the model reads together: bounds the memory."""
    threads: int = Field(2, ge=1)
    """CPU threads; on a CPU the result is bitwise the same only for the same number."""
