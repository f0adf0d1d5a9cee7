"""Token ids and tables to text.

`stage` goes through the data that `files` finds. `hdf5` reads token ids, which `rows` checks and `text` spells.
`tables` reads the rows of `lines` (JSON lines, `json_array`, CSV, plain text) and `arrow` (Parquet too), which
`records` makes samples. Either way a `block` at a time, which `shard` writes into the parts, by `hashing`; `errors` are
rows that are wrong, `columns` says what an error says of a missing one.
"""
