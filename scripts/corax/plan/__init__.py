"""The plan of a run: which samples in which pack and step, the memory and time they need.

`blocks` reads `samples`, some shards at a time; `packing` puts them into packs, `schedule` packs into steps. `model`
knows a model's shapes (`architectures`: without its weights), `devices` what it is trained on. Memory is a sum
(`memory`) of what is always there (`states`) and what comes and goes with either engine (`fast`, `general`). `fit`
decides what is kept, `speed` how long it takes, and `summary` says all of it.
"""
