"""The loss of a pack with an encoder-decoder model: its samples are the rows of padded batches."""

import torch

from corax import seq2seq
from corax.train.general import TransformersEngine
from corax.train.packs import Batch
from corax.train.rows import in_groups, split


class Seq2SeqEngine(TransformersEngine):
    """Any encoder-decoder model, as transformers and peft compute it.

    A sample is a row of a batch, so it cannot see another. The model's own dropout (T5: 0.1) acts in training, beside
    that of the adapter.
    """

    def _logits(self, batch: Batch) -> torch.Tensor:
        samples = split(batch)
        prompts = [ids[~is_target] for ids, is_target in samples]
        completions = [ids[is_target] for ids, is_target in samples]
        lengths, counts = [len(ids) for ids in prompts], [len(ids) for ids in completions]

        def logits(group: list[int]) -> torch.Tensor:
            with self.autocast:
                return seq2seq.target_logits(
                    self.model, [prompts[sample] for sample in group], [completions[sample] for sample in group]
                )

        return in_groups(lengths, counts, logits)
