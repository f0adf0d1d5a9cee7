"""Merging: what was trained added onto base weights, and how near the result comes to the trained model.

`lora` reads a plain adapter and `weights` adds it: `pieces` of the files at a time, with the `sums` and products made
here; `variants` and `unmerged` take what is more than W + scale · B·A. `quantisation` gives the weights that training
saw, with `four_bits`. `generation` sets how the merged model is talked to; `scores` compares it with the trained one;
`model_card` describes it. `memory` says what all this takes.
"""
