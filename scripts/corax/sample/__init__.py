"""Sampling of completions: many at once, each with its own random stream.

`prompts` gathers what is asked, `requests` lists what to draw. `slots` decodes with one place a sequence that the next
prompt takes as soon as it is free, `batches` with transformers' own loop for models that `slots` does not know, `vllm`
hands over to vLLM. `choice` draws a token, `sampler` holds what that needs for every row, `constraint` keeps tokens to
a task's grammar, and `parts` keeps finished samples for a job that is killed.
"""
