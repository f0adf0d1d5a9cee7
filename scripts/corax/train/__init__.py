"""Training: packs, loss, checkpoints and the loop around them.

`packs` are the plan's; `adapter` puts what is trained onto the model. `engine` chooses what computes the loss: the
layers in `fast`, or transformers and peft as they are (`general`; `seq2seq` and `virtual` have samples as padded
`rows`). `attention` keeps samples apart, `isolation` proves that they are, `probe` tries two steps. `loop` trains, with
`optimization`, `validation`, `ahead` and `curves`. `checkpoint` writes what it needs to go on, as `tensors`, which the
ranks may share (`sharded`).
"""
