"""Random numbers for compiled code: integers only, the same on every machine and library version."""

import hashlib

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled

State = npt.NDArray[np.uint64]
"""State of a generator: one word, advanced in place."""

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
HALF = np.uint64(32)


def hash64(*key: object) -> int:
    """64 bits that follow from the values of `key` (numbers, text, bytes) and nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def stream(*key: object) -> State:
    """A generator of its own for `key`, such as (seed, shard, "topologies", family)."""
    return np.array([hash64(*key)], np.uint64)


@compiled
def next_word(rng: State) -> np.uint64:
    """The next 64 random bits (splitmix64: Steele, Lea, Flood, OOPSLA 2014)."""
    rng[0] += INCREMENT
    word: np.uint64 = rng[0]
    word = (word ^ (word >> SHIFTS[0])) * FACTORS[0]
    word = (word ^ (word >> SHIFTS[1])) * FACTORS[1]
    return word ^ (word >> SHIFTS[2])


@compiled
def below(limit: int, rng: State) -> int:
    """A random integer from 0 to limit - 1; uniform up to limit / 2^32, which is nothing here."""
    return int(((next_word(rng) >> HALF) * np.uint64(limit)) >> HALF)


@compiled
def shuffle(items: npt.NDArray[np.int64], rng: State) -> None:
    """Permute `items` in place (Fisher and Yates)."""
    for last in range(len(items) - 1, 0, -1):
        other = below(last + 1, rng)
        items[last], items[other] = items[other], items[last]
