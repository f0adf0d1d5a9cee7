"""Text to token shards.

`stage` goes through the files: `lines` reads them in blocks, `samples` parses these, `encoders` makes texts ids, `rows`
joins them with what `corax.template` puts around each, `contract` checks the result and `shard` writes it.
"""
