"""Randomness is a function of names and numbers, of nothing else."""

import itertools

import numpy as np
import torch

from ddfp_lib.seeds import derive_seed, generator


def test_every_tuple_has_a_seed_of_its_own():
    """Order, count and kind of the parts matter: nothing can be read in two ways."""
    parts = [0, 1, 11, -1, "", "0", "1", "1, 1", "order", "views"]
    tuples = [t for count in range(4) for t in itertools.product(parts, repeat=count)]
    assert len({derive_seed(*t) for t in tuples}) == len(tuples)


def test_seeds_fit_every_generator():
    seeds = [derive_seed(n) for n in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # and use the range


def test_seeds_are_the_same_everywhere():
    """Results on record depend on this value: with another one they cannot be repeated."""
    assert derive_seed(0, "order", 7) == 7303773047100772878
    assert derive_seed(np.int64(0), "order", np.int64(7)) == derive_seed(0, "order", 7)


def test_generators_start_alike_and_apart():
    state = torch.get_rng_state()
    first = torch.rand(5, generator=generator(0, "order"))
    assert torch.equal(torch.rand(5, generator=generator(0, "order")), first)
    assert not torch.equal(torch.rand(5, generator=generator(1, "order")), first)
    assert torch.equal(torch.get_rng_state(), state)
