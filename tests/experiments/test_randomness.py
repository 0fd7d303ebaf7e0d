"""Random numbers depend on (seed, sample, purpose, draw) and on nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from experiments.randomness import SampleGenerators, derive_seed, isolated_rng


def global_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_derived_seed_is_stable_and_63_bits_wide():
    assert derive_seed("weights", "andor_cnn", 0) == 4910256332000155148
    assert derive_seed({"a": 1, "b": 2}) == derive_seed({"b": 2, "a": 1})
    seeds = {derive_seed("x", i) for i in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seed_refuses_what_json_does_not_know():
    with pytest.raises(ValueError, match="JSON"):
        derive_seed(float("nan"))
    with pytest.raises(TypeError):
        derive_seed(object())


def test_row_depends_on_its_own_sample_only():
    whole = SampleGenerators(7, range(10), "noise").normal(4)
    one = SampleGenerators(7, [3], "noise").normal(4)
    assert torch.equal(whole[3], one[0])
    shuffled = SampleGenerators(7, [9, 3, 0], "noise").normal(4)
    assert torch.equal(shuffled, whole[[9, 3, 0]])


def test_subset_goes_on_where_the_whole_stands():
    whole = SampleGenerators(7, range(10), "noise")
    whole.normal(4)
    part = whole.subset(slice(2, 5))
    second = whole.normal(4)
    assert len(part) == 3
    assert torch.equal(part.normal(4), second[2:5])


def test_seed_purpose_and_draw_all_matter():
    def rows(seed, purpose):
        return SampleGenerators(seed, range(5), purpose)

    first = rows(0, "a")
    draws = [first.uniform(3), first.uniform(3), rows(1, "a").uniform(3), rows(0, "b").uniform(3)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4


def test_seeds_are_one_per_sample_and_never_repeat():
    generators = SampleGenerators(0, range(100), "noise")
    seeds = generators.seeds() + generators.seeds()
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_distributions_and_precision():
    generators = SampleGenerators(0, range(200), "noise")
    uniform, normal = generators.uniform(50), generators.normal(50)
    assert uniform.dtype == normal.dtype == torch.float64
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    assert abs(float(normal.mean())) < 0.05
    assert abs(float(normal.std()) - 1) < 0.03
    half = SampleGenerators(0, range(200), "noise").uniform(50, dtype=torch.float32)
    assert half.dtype == torch.float32
    assert torch.equal(half, uniform.float())


def test_uniform_numbers_stay_below_one_in_low_precision():
    numbers = SampleGenerators(0, range(50), "noise").uniform(2000, dtype=torch.float16)
    assert numbers.max() < 1


def test_no_samples_is_no_problem():
    assert SampleGenerators(0, [], "noise").normal(3).shape == (0, 3)


def test_isolated_rng_is_reproducible_and_leaves_no_trace():
    def draw():
        with isolated_rng(3):
            return random.random(), np.random.rand(), float(torch.rand(()))

    before = global_state()
    assert draw() == draw()

    def fail():
        with isolated_rng(4):
            draw()
            torch.rand(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert global_state() == before
