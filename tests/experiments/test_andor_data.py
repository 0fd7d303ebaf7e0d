from __future__ import annotations

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import Dataset
from experiments.data.andor import AndorSpec, Gate, generate
from experiments.data.andor_rows import enumerate_rows
from experiments.data.sufficiency import minimal_sufficient_sets

Sets = set[frozenset[int]]


def sets_of(dataset: Dataset, sample: int) -> Sets:
    truth = dataset.truth
    pattern = truth.pattern[sample]
    chosen = truth.sufficient[pattern][truth.valid[pattern]]
    found = [frozenset(row.nonzero().flatten().tolist()) for row in chosen]
    assert len(found) == len(set(found)), "a set is listed twice"
    return set(found)


# --- sufficient sets by the rules of logic, gate by gate: an independent second opinion ---


def gate_sets(kind: str, inputs: tuple[int, ...], bits: np.ndarray) -> tuple[bool, Sets]:
    """Value and minimal sufficient sets of a gate of inputs."""
    true = [i for i in inputs if bits[i]]
    false = [i for i in inputs if not bits[i]]
    everything, singles = {frozenset(inputs)}, lambda which: {frozenset([i]) for i in which}
    match kind:
        case "and":
            return not false, everything if not false else singles(false)
        case "or":
            return bool(true), singles(true) if true else everything
        case "exactly_one":
            pairs = {frozenset(pair) for pair in itertools.combinations(true, 2)}
            return len(true) == 1, pairs or everything
        case _:
            return len(true) % 2 == 1, everything


def one_of_each(families: list[Sets]) -> Sets:
    return {frozenset().union(*choice) for choice in itertools.product(*families)}


def sets_by_rule(formula: Gate, bits: np.ndarray) -> Sets:
    gates = [gate_sets(gate.kind, gate.children, bits) for gate in formula.children]
    every = one_of_each([family for _, family in gates])
    true = [family for value, family in gates if value]
    false = [family for value, family in gates if not value]
    match formula.kind:
        case "and":
            return set().union(*false) if false else every
        case "or":
            return set().union(*true) if true else every
        case "exactly_one":
            pairs = [one_of_each(list(two)) for two in itertools.combinations(true, 2)]
            return set().union(*pairs) if pairs else every
        case _:
            return every


@st.composite
def specs(draw):
    numbers = {name: draw(st.integers(0, 2)) for name in ("ands", "ors", "xors")}
    if not any(numbers.values()):
        numbers["ors"] = 1
    arities = {name: draw(st.integers(1, 3)) for name in ("and_arity", "or_arity", "xor_arity")}
    used = sum(n * a for n, a in zip(numbers.values(), arities.values(), strict=True))
    if used > 8:
        arities = dict.fromkeys(arities, 1)
    return {
        **numbers,
        **arities,
        "irrelevant": draw(st.integers(0, 2)),
        "toplevel": draw(st.sampled_from(["and", "or", "xor"])),
        "xor": draw(st.sampled_from(["exactly_one", "parity"])),
    }


@settings(max_examples=40, deadline=None)
@given(specs(), st.data())
def test_sufficient_sets_are_those_of_the_gate_rules(spec, data):
    dataset = generate(spec)
    formula = AndorSpec(**spec).formula
    for sample in data.draw(st.lists(st.integers(0, len(dataset.test) - 1), max_size=20)):
        bits = (dataset.test.x[sample] > 0).numpy()
        assert sets_of(dataset, sample) == sets_by_rule(formula, bits)


@pytest.mark.parametrize("toplevel", ["and", "or", "xor"])
def test_sufficient_sets_of_the_papers_formulas(toplevel):
    for arity in (2, 3):
        arities = {f"{gate}_arity": arity for gate in ("and", "or", "xor")}
        spec = AndorSpec(**arities, irrelevant=1, toplevel=toplevel)
        dataset = generate(spec)
        for sample in range(2**spec.used):
            bits = (dataset.test.x[sample] > 0).numpy()
            assert sets_of(dataset, sample) == sets_by_rule(spec.formula, bits)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.data())
def test_sufficient_sets_are_what_their_definition_says(inputs, data):
    table = st.lists(st.booleans(), min_size=2**inputs, max_size=2**inputs).map(np.array)
    labels, reachable = data.draw(table), data.draw(table)
    sets, valid = minimal_sufficient_sets(labels, reachable)
    patterns = np.arange(2**inputs)
    for pattern in patterns:
        sufficient = [
            care
            for care in patterns
            if len(set(labels[reachable & ((patterns & care) == (pattern & care))])) == 1
        ]
        minimal = {a for a in sufficient if not any(b != a and a & b == b for b in sufficient)}
        found = (sets[pattern][valid[pattern]] @ (1 << np.arange(inputs))).tolist()
        assert sorted(found) == (sorted(minimal) if reachable[pattern] else [])


def test_rows_run_through_all_symbols_first_input_fastest():
    data = generate({"symbols": 3, "true_indexes": [2], "and_arity": 1, "ors": 0, "xors": 0})
    assert data.test.x.tolist()[:4] == [[-1, -1, -1], [0, -1, -1], [1, -1, -1], [-1, 0, -1]]
    assert data.test.y.tolist()[:4] == [0, 0, 1, 0]
    assert AndorSpec(symbols=4, true_indexes=[1, 3]).values == [-1, -0.3333, 0.3333, 1]


@pytest.mark.parametrize("symbols", [2, 4])
def test_class_shares_are_those_of_probability(symbols):
    true = list(range(1, symbols, 2))  # half of the symbols
    only = {"symbols": symbols, "true_indexes": true, "irrelevant": 0}
    shares = {
        "and": generate({**only, "and_arity": 3, "ors": 0, "xors": 0}).test.y.double().mean(),
        "or": generate({**only, "or_arity": 3, "ands": 0, "xors": 0}).test.y.double().mean(),
        "xor": generate({**only, "xor_arity": 3, "ands": 0, "ors": 0}).test.y.double().mean(),
    }
    assert shares == {"and": 1 / 8, "or": 7 / 8, "xor": 3 / 8}


def test_layout_puts_gates_side_by_side_and_irrelevant_inputs_last():
    spec = AndorSpec(ands=1, ors=2, or_arity=3, or_offset=1, xors=1, xor_arity=3, irrelevant=2)
    assert [gate.children for gate in spec.formula.children] == [(0, 1), (2, 3), (4, 5), (6, 7, 8)]
    assert (spec.used, spec.inputs) == (9, 11)
    assert generate(spec).truth.irrelevant.tolist() == [False] * 9 + [True] * 2


def test_gates_nest_and_survive_json():
    nested = Gate("parity", (0, Gate("and", (1, Gate("or", (2, 3)))), 4))
    assert Gate.from_json(nested.to_json()) == nested
    bits = (np.arange(32)[:, None] >> np.arange(5) & 1).astype(bool)
    a, b, c, d, e = bits.T
    assert (nested(bits) == a ^ (b & (c | d)) ^ e).all()


def test_redundant_inputs_are_copies_and_can_stand_in_for_each_other():
    spec = {"and_arity": 2, "ors": 0, "xors": 0, "irrelevant": 0, "redundant": [[0, 1]]}
    data = generate(spec)
    assert data.test.x.tolist() == [[-1, -1], [1, 1]]
    assert sets_of(data, 1) == {frozenset([0]), frozenset([1])}
    assert len(generate({**spec, "preset": "paper"}).test) == 4
    assert (
        enumerate_rows(AndorSpec(**spec))[:, 0] == enumerate_rows(AndorSpec(**spec))[:, 1]
    ).all()


def test_fixed_preset_has_no_leak_and_splits_by_class():
    whole = generate({})
    assert whole.train.index.tolist() == whole.test.index.tolist() == list(range(256))
    for fold in range(5):
        data = generate({"test_size": 0.2, "fold": fold})
        parts = [set(s.index.tolist()) for s in (data.train, data.validation, data.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 256
        assert all(abs(s.y.double().mean() - 24 / 256) < 0.02 for s in (data.train, data.test))
        for split in (data.train, data.validation, data.test):
            assert (whole.test.x[split.index] == split.x).all()
            assert (whole.test.y[split.index] == split.y).all()
    other = generate({"test_size": 0.2, "seed": 1}).test.index
    assert set(other.tolist()) != set(data.test.index.tolist())


def test_truth_belongs_to_the_test_split():
    data, whole = generate({"test_size": 0.2}), generate({})
    assert len(data.truth.pattern) == len(data.test)
    for part in ("relevant", "necessary"):
        expected = getattr(whole.truth, part)[data.test.index]
        assert (getattr(data.truth, part) == expected).all()
    assert (data.truth.relevant | ~data.truth.necessary).all()
    assert not (data.truth.relevant & data.truth.irrelevant).any()


def test_a_dataset_survives_storage():
    data = generate({"test_size": 0.1, "redundant": [[0, 2]]})
    file = io.BytesIO()
    torch.save(data.state(), file)
    file.seek(0)
    copy = Dataset.from_state(torch.load(file, weights_only=True))
    assert copy.content_hash() == data.content_hash()
    assert copy.meta == data.meta
    assert (copy.truth.relevant == data.truth.relevant).all()


def test_content_hash_tells_datasets_apart():
    hashes = {
        generate(spec).content_hash()
        for spec in ({}, {"toplevel": "or"}, {"test_size": 0.2}, {"preset": "paper"})
    }
    assert len(hashes) == 4
    assert generate({}).content_hash() in hashes


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"symbols": 1}, "symbols: input should be greater than or equal to 2"),
        ({"true_indexes": [2]}, "true_indexes: [2] must be distinct numbers from 0 to 1"),
        ({"true_indexes": [0, 1]}, "some symbols, but not all, must count as true"),
        ({"true_index": [1]}, "unknown key 'true_index'; did you mean 'true_indexes'?"),
        ({"and_arity": 13}, "the formula has 17 inputs"),
        ({"symbols": 4, "irrelevant": 9}, "1,073,741,824 rows; at most 1,048,576"),
        ({"preset": "papr"}, "preset: input should be 'fixed' or 'paper', not 'papr'"),
        ({"redundant": [[0, 7]]}, "name inputs of the formula, 0 to 5"),
        ({"redundant": [[0, 1], [1, 2]]}, "never from a copy"),
        ({"xor_offset": 2}, "xor_offset: 2 leaves no input"),
        ({"ands": 0, "ors": 0, "xors": 0}, "at least one gate"),
        ({"fold": 5}, "fold: 5 must be less than folds, 5"),
        ({"test_size": 1}, "test_size: input should be less than 1"),
        ({"test_size": 0.001}, "cannot be split by class"),
        ({"test_size": 0.9, "folds": 10}, "fewer rows than folds"),
        ({"ands": 0, "ors": 0, "redundant": [[0, 1]]}, "the formula is always False"),
    ],
)
def test_mistakes_get_one_clear_line(spec, says):
    with pytest.raises(ValueError, match=r"^andor: ") as error:
        generate(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_specs_are_checked_without_torch():
    code = (
        "import sys\nfrom experiments.data.andor import AndorSpec\nAndorSpec()\n"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
