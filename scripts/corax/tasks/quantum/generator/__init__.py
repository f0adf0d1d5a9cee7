"""Generator of training data: random experiments in the layout and distribution of arXiv 2406.02470.

A topology is a pattern of program lines without colours (`topologies`); a program is a topology with
colours and weights whose states are small (`programs`), by what its perfect matchings add up to (`matchings`);
`dataset` makes the rows of one shard and keeps its parts apart; `rows` and `layout` write them as HDF5.
"""
