"""Laws that hold for every map, whatever made it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import Truth
from experiments.data.andor import generate
from experiments.scoring import Context, resolve, scores

SPECS = [
    {"toplevel": top, **spec}
    for top in ("and", "or", "xor")
    for spec in (
        {},
        {"ands": 2, "xor_arity": 3, "xors": 1, "ors": 0, "irrelevant": 1},
        {"symbols": 3, "true_indexes": [0, 2], "and_arity": 1, "irrelevant": 1},
        {"redundant": [[0, 2]]},
    )
] + [{"toplevel": "xor", "xor": "parity"}]

# Their values depend on all samples by definition.
AGGREGATES = {"gib", "bayes_accuracy", "information_test", "full_dca", "minimal_dca"}

# Their defaults show maps as they are.
SCALED = {"mean_importance": {"of": "scaled"}}

# What is known of the samples here: scores that need more are tested with it, elsewhere.
KNOWN = {"truth", "baseline", "formula", "region"}
MEASURABLE = [name for name, cls in scores().items() if cls.needs <= KNOWN]


@cache
def context(which: int) -> Context:
    data = generate(SPECS[which])
    test = data.test
    return Context(test.x, test.y, truth=data.truth, meta=data.meta, indices=test.index.tolist())


def take(known: Context, rows: torch.Tensor) -> Context:
    truth = known.truth
    return Context(
        known.x[rows],
        known.y[rows],
        truth=Truth(truth.sufficient, truth.valid, truth.pattern[rows], truth.irrelevant),
        meta=known.meta,
    )


def values(spec: str | dict, maps: torch.Tensor, known: Context) -> dict[tuple, float]:
    return {tuple(m.facets.values()): m.value for m in resolve(spec).measure(maps, known)}


def applicable(name: str, which: int) -> bool:
    return not (name == "logical_accuracy_statistics" and SPECS[which].get("xor") == "parity")


@st.composite
def cases(draw, ties: bool = True):
    """A dataset and integer-valued maps for it, with many ties or with none."""
    which = draw(st.integers(0, len(SPECS) - 1))
    known = context(which)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    levels = draw(st.integers(1, 6)) if ties else 0
    if levels:
        maps = torch.randint(-levels, levels, known.x.shape, generator=generator)
    else:
        maps = torch.rand(known.x.shape, generator=generator).argsort(1) - 3
    return which, known, maps.double()


few = settings(max_examples=40, deadline=None)
fewer = settings(max_examples=12, deadline=None)  # of tests that go through all scores


@few
@given(cases(ties=False))
def test_logical_accuracy_at_baseline_is_what_nib_leaves(case):
    _, known, maps = case
    nib = values("nib", maps, known)
    accuracy = values("logical_accuracy", maps, known)[("baseline",)]
    shares = {c: (known.y == int(c)).double().mean().item() for (c,) in nib if c != "all"}
    expected = 1 - sum(share * nib[(c,)] for c, share in shares.items())
    assert accuracy == pytest.approx(expected, abs=1e-12)
    assert accuracy == pytest.approx(1 - nib[("all",)], abs=1e-12)


@few
@given(cases())
def test_with_ties_masked_and_counted_against_the_map_it_still_is(case):
    _, known, maps = case
    nib = values({"name": "nib", "ties": "pessimistic"}, maps, known)[("all",)]
    accuracy = values("logical_accuracy", maps, known)[("baseline",)]
    assert accuracy == pytest.approx(1 - nib, abs=1e-12)
    strict = values({"name": "nib", "ties": "strict"}, maps, known)[("all",)]
    keep = {"name": "logical_accuracy", "ties": "keep"}
    assert values(keep, maps, known)[("baseline",)] == pytest.approx(1 - strict, abs=1e-12)


@few
@given(cases(), st.sampled_from(["mean", "top"]), st.sampled_from(["mask", "keep"]))
def test_logic_never_knows_more_than_the_best_guess(case, rule, ties):
    _, known, maps = case
    masking = {"rule": rule, "ties": ties}
    logical = values({"name": "logical_accuracy", **masking}, maps, known)
    bayes = values({"name": "bayes_accuracy", **masking}, maps, known)
    for (threshold,), accuracy in logical.items():
        assert accuracy <= bayes[(threshold, "row")] + 1e-12
        assert bayes[(threshold, "mask")] <= 1


@pytest.mark.parametrize("which", range(len(SPECS)))
def test_without_a_mask_everything_is_known(which):
    known = context(which)
    maps = torch.rand(known.x.shape, generator=torch.Generator().manual_seed(0))
    everything = {"thresholds": [1.0], "rule": "top", "ties": "keep"}
    names = ["masked_share", "logical_accuracy", "bayes_accuracy", "logical_accuracy_statistics"]
    found = {
        name: values({"name": name, **everything}, maps, known)
        for name in names
        if applicable(name, which)
    }
    assert found["masked_share"] == {("1.0",): 0}
    assert found["logical_accuracy"] == {("1.0",): 1}
    assert found["bayes_accuracy"][("1.0", "row")] == 1
    assert found.get("logical_accuracy_statistics", {("1.0",): 1}) == {("1.0",): 1}


@few
@given(cases(), st.integers(0, 2**32))
def test_rankings_do_not_depend_on_shift_and_positive_scale(case, seed):
    which, known, maps = case
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(-3, 4, (2, len(maps), 1), generator=generator).double()
    changed = maps * 2 ** draw[0] + draw[1]  # exact in floating point
    for name in (
        "nib",
        "gib",
        "masked_share",
        "logical_accuracy",
        "logical_accuracy_statistics",
        "bayes_accuracy",
        "relevance_rank",
        "relevance_auc",
        "pointing_game",
    ):
        if applicable(name, which):
            assert values(name, changed, known) == values(name, maps, known)


@fewer
@given(cases(), st.sampled_from([0.25, 3.0, 1e-6, 1e6]))
def test_no_score_depends_on_positive_scale(case, scale):
    which, known, maps = case
    for name in MEASURABLE:
        if applicable(name, which):
            spec = {"name": name, **SCALED.get(name, {})}
            found, expected = values(spec, maps * scale, known), values(spec, maps, known)
            assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("which", range(len(SPECS)))
def test_indicators_of_relevant_and_irrelevant_inputs(which):
    known = context(which)
    irrelevant = known.truth.irrelevant.double().expand(known.x.shape)
    for ties in ("strict", "half", "pessimistic"):
        for name in ("nib", "gib"):
            spec = {"name": name, "ties": ties}
            assert set(values(spec, 1 - irrelevant, known).values()) == {0}
            assert set(values(spec, irrelevant, known).values()) == {1}
            assert set(values(spec, known.truth.relevant.double(), known).values()) == {0}


@few
@given(cases())
def test_ties_only_ever_cost(case):
    _, known, maps = case
    for name in ("nib", "gib"):
        strict, half, pessimistic = (
            values({"name": name, "ties": ties}, maps, known)
            for ties in ("strict", "half", "pessimistic")
        )
        for facet in strict:
            assert strict[facet] <= half[facet] + 1e-12 <= pessimistic[facet] + 2e-12
            middle = (strict[facet] + pessimistic[facet]) / 2
            assert half[facet] == pytest.approx(middle, abs=1e-12)


@fewer
@given(cases(), st.integers(0, 2**32))
def test_order_and_company_of_samples_do_not_matter(case, seed):
    which, known, maps = case
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))
    some = order[: len(order) // 3]
    for name in MEASURABLE:
        if not applicable(name, which):
            continue
        first, *_ = resolve(name).measure(maps, known)
        shuffled, *_ = resolve(name).measure(maps[order], take(known, order))
        assert shuffled.value == pytest.approx(first.value, abs=1e-9)
        assert shuffled.samples.allclose(first.samples[order], atol=1e-6, equal_nan=True)
        if name not in AGGREGATES:
            part, *_ = resolve(name).measure(maps[some], take(known, some))
            assert part.samples.equal(first.samples[some]) or (
                part.samples.isnan().equal(first.samples[some].isnan())
                and part.samples.nan_to_num().equal(first.samples[some].nan_to_num())
            )


@fewer
@given(cases())
def test_float32_maps_score_as_float64_ones(case):
    which, known, maps = case
    for name in MEASURABLE:
        if applicable(name, which):
            assert values(name, maps.float(), known) == values(name, maps, known)
