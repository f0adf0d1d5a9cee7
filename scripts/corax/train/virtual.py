"""The loss of a pack with trained tokens before each sample: its samples are the rows of padded batches."""

from typing import Any

import torch
from peft import PeftModel, PromptTuningConfig
from torch.nn.utils.rnn import pad_sequence

from corax.train.general import TransformersEngine, transformers_model
from corax.train.packs import Batch
from corax.train.rows import in_groups, split


def has_virtual_tokens(model: Any) -> bool:
    """Whether peft puts trained tokens before what `model` is given (prompt and prefix tuning)."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


class VirtualTokensEngine(TransformersEngine):
    """Prompt or prefix tuning of any decoder-only model, as transformers and peft compute it.

    Positions count on from the virtual tokens, which the model does by itself.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        prompt = model.active_peft_config
        # Those of a prompt are part of the sequence; a prefix stands in the cache of keys and values.
        self.before = prompt.num_virtual_tokens if isinstance(prompt, PromptTuningConfig) else 0
        self.head = transformers_model(model).get_output_embeddings()

    def _logits(self, batch: Batch) -> torch.Tensor:
        samples = split(batch)
        ids = [ids for ids, _ in samples]
        predicts = [is_target.roll(-1) for _, is_target in samples]  # a sample's first token is never a target
        counts = [int(each.sum()) for each in predicts]
        return in_groups(
            [len(each) for each in ids],
            counts,
            lambda group: self._group([ids[sample] for sample in group], [predicts[sample] for sample in group]),
        )

    def _group(self, ids: list[torch.Tensor], predicts: list[torch.Tensor]) -> torch.Tensor:
        """Logits (n, vocabulary) at the marked positions of all rows, row after row.

        Padding needs no mask: it stands behind the tokens, which only look back.
        """
        rows = pad_sequence(ids, batch_first=True)  # on the host, which takes a GPU fewer calls
        marked = torch.nn.functional.pad(pad_sequence(predicts, batch_first=True), (self.before, 0))
        places = marked.flatten().nonzero()[:, 0].to(self.device)
        # transformers' `logits_to_keep` are places common to all rows: with long rows too many.
        hook = self.head.register_forward_pre_hook(lambda _, hidden: (hidden[0].flatten(0, 1)[places],))
        try:
            with self.autocast:
                logits: torch.Tensor = self.model(input_ids=rows.to(self.device), use_cache=False).logits
        finally:
            hook.remove()
        return logits
