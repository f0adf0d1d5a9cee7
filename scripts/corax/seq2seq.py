"""The logits of an encoder-decoder model (T5): the encoder reads the prompt, the decoder predicts the completion."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


def target_logits(model: Any, prompts: Sequence[torch.Tensor], completions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits (n, vocabulary) at the n ids of all completions, sample after sample, in the type the model computes in.

    `prompts` and `completions` are ids (int64) of the same samples, which are the rows of one batch, padded on the
    right: no sample sees another. They are best on the host: a batch that is padded there takes the GPU a few calls
    instead of some for each sample. The decoder is given the completion one place later, behind its start token, as
    transformers does with `labels`.
    """
    start = torch.full((1,), model.config.decoder_start_token_id, device=completions[0].device)
    padding = model.config.pad_token_id
    shifted = [torch.cat((start, ids[:-1])) for ids in completions]
    logits = model(
        input_ids=pad_sequence(list(prompts), batch_first=True, padding_value=padding).to(model.device),
        attention_mask=_inside(prompts).to(model.device),
        decoder_input_ids=pad_sequence(shifted, batch_first=True, padding_value=padding).to(model.device),
        use_cache=False,
    ).logits
    places = _inside(completions).flatten().nonzero()[:, 0]
    found: torch.Tensor = logits.flatten(0, 1)[places.to(model.device)]
    return found


def _inside(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 where a padded batch of `rows` has an id of theirs, 0 in the padding: the attention mask."""
    return pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True)
