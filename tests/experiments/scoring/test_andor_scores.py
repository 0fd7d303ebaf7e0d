"""Scores of the ANDOR study: numbers of the original, loops that count by hand, exact laws."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.andor import Gate, generate
from experiments.scoring import Context, Measurement, logic, resolve

TOPS = ("and", "or", "xor")
CONFIGS = {
    "2inBinary": {},
    "3inBinary": {"and_arity": 3, "or_arity": 3, "xor_arity": 3, "irrelevant": 3},
    "stacks": {"ands": 2, "xors": 2, "ors": 0, "xor_arity": 3, "irrelevant": 1},
}
THRESHOLDS = ("baseline", 1.0, 0.8, 0.5)
NIB_PAPER = {"name": "nib", "preset": "paper"}
few = settings(max_examples=25, deadline=None)


@cache
def context(top: str, config: str = "2inBinary") -> Context:
    data = generate({**CONFIGS[config], "toplevel": top})
    return Context(data.test.x, data.test.y, truth=data.truth, meta=data.meta)


def reference_maps(known: Context) -> torch.Tensor:
    r, k = torch.arange(len(known.x))[:, None], torch.arange(known.x.shape[1])[None]
    return ((7919 * r + 104729 * k + 13) % 1009).double() / 1009


def noise(known: Context, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(known.x.shape, generator=generator, dtype=torch.float64)


def measured(spec: str | dict, maps: torch.Tensor, known: Context) -> dict[tuple, Measurement]:
    return {tuple(m.facets.values()): m for m in resolve(spec).measure(maps, known)}


def values(spec: str | dict, maps: torch.Tensor, known: Context) -> dict[tuple, float]:
    return {facets: m.value for facets, m in measured(spec, maps, known).items()}


def masks(maps: torch.Tensor, known: Context) -> dict[str, torch.Tensor]:
    return {str(t): logic.kept(maps, t, known.truth.irrelevant) for t in THRESHOLDS}


# --- needed information, as the original has it ---


def outranked_by_hand(scores: list[float], true: list[bool], gates, top: str, y: int) -> bool:
    """What the original's loops decide for one sample, maxima from -1 and all."""
    used = sum(len(inputs) for inputs in gates.values())
    peak = max(scores[used:])
    slipping = top == "xor" and y == 0
    strengths, on = [], []
    for name, inputs in gates.items():
        hot = [scores[k] for k in inputs if true[k]]
        cold = [scores[k] for k in inputs if not true[k]]
        weakest = min(scores[k] for k in inputs)
        if name.startswith("and"):
            on.append(not cold)
            strengths.append(max([0 if slipping else -1, *cold]) if cold else weakest)
        elif name.startswith("or"):
            on.append(bool(hot))
            strengths.append(max([-1, *hot]) if hot else weakest)
        else:
            on.append(len(hot) == 1)
            second = sorted(hot)[-2] if len(hot) > 1 else weakest
            if len(hot) > 1 and slipping:
                first = second = -1
                for score in hot:
                    if score > first:
                        first = score
                    elif score > second:
                        second = score
            strengths.append(second)
    if top == "xor":
        two = sorted([-1, -1, *(s for s, is_on in zip(strengths, on, strict=True) if is_on)])[-2]
        return (two if sum(on) > 1 else min(strengths)) < peak
    deciding = [s for s, is_on in zip(strengths, on, strict=True) if is_on == (top == "or")]
    return (max([-1, *deciding]) if deciding else min(strengths)) < peak


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("config", ["2inBinary", "stacks"])
def test_nib_of_the_paper_is_what_its_loops_count(config, top):
    known = context(top, config)
    gates = logic.input_gates(Gate.from_json(known.meta["formula"]))
    for maps in (noise(known), 4 * noise(known, 1) - 3, (4 * noise(known, 2)).round() - 3):
        expected = [
            outranked_by_hand(scores, true, gates, top, y)
            for scores, true, y in zip(
                maps.tolist(), (known.x > 0).tolist(), known.y.tolist(), strict=True
            )
        ]
        found = measured(NIB_PAPER, maps, known)[("all",)].samples
        assert found.bool().tolist() == expected


@pytest.mark.parametrize(
    ("config", "top", "nib"),
    [
        ("2inBinary", "and", (37.5, 83.3333)),
        ("2inBinary", "or", (100, 55.6034)),
        ("2inBinary", "xor", (87.5, 91.3462)),
        ("3inBinary", "and", (73.2434, 100)),
        ("3inBinary", "or", (100, 50.6289)),
        ("3inBinary", "xor", (100, 97.417)),
    ],
)
def test_nib_of_reference_maps_is_the_same_by_either_preset(config, top, nib):
    known = context(top, config)
    for spec in ("nib", NIB_PAPER):
        found = values(spec, reference_maps(known), known)
        assert [100 * found[("0",)], 100 * found[("1",)]] == pytest.approx(nib, abs=1e-4)


def test_the_original_depends_on_the_order_of_inputs_and_on_the_scale():
    known = context("xor")
    for order, paper in (((0.9, 0.8), 0), ((0.8, 0.9), 7.8947)):
        maps = torch.tensor([1, 1, 1, 1, *order, 0.5, 0.5]).expand(256, -1)
        assert 100 * values(NIB_PAPER, maps, known)[("0",)] == pytest.approx(paper, abs=1e-4)
        assert values("nib", maps, known)[("0",)] == 0
    for top in TOPS:
        known, maps = context(top), noise(context(top))
        assert values("nib", maps - 3, known) == values("nib", maps, known)
        assert values(NIB_PAPER, maps - 3, known) != values(NIB_PAPER, maps, known)


@few
@given(st.sampled_from(TOPS), st.sampled_from(list(CONFIGS)), st.integers(0, 2**32))
def test_the_presets_of_nib_agree_where_the_original_has_no_slip(top, config, seed):
    known = context(top, config)
    maps = noise(known, seed)
    fixed, paper = (measured(spec, maps, known) for spec in ("nib", NIB_PAPER))
    if top != "xor":
        assert all(paper[c].value == fixed[c].value for c in fixed)
    else:
        assert paper[("1",)].value == fixed[("1",)].value
        assert (paper[("0",)].samples >= fixed[("0",)].samples).all()
    accuracy = values("logical_accuracy", maps, known)[("baseline",)]
    shares = torch.bincount(known.y) / len(known.y)
    lost = sum(float(shares[c]) * fixed[(str(c),)].value for c in (0, 1))
    assert accuracy == pytest.approx(1 - lost, abs=1e-6)


def test_the_slip_of_gib_lets_an_irrelevant_input_count():
    for top in TOPS:
        known = context(top)
        inverse = known.truth.irrelevant.double().expand(256, -1)
        paper = values({"name": "gib", "definition": "paper"}, inverse, known)
        assert 100 * paper[("0",)] == pytest.approx(600 / 7)
        assert paper[("1",)] == values("gib", inverse, known)[("0",)] == 1


# --- double class assignment ---

FULL = {  # |both|, |0|, |1| by threshold
    "and": ((8, 56, 11), (13, 58, 14), (15, 71, 15), (12, 110, 17)),
    "or": ((14, 17, 56), (15, 17, 57), (15, 17, 69), (13, 18, 110)),
    "xor": ((28, 50, 37), (35, 52, 42), (45, 64, 52), (46, 92, 69)),
}
MINIMAL = {  # of the gates and, or, xor, by threshold
    "and": (
        ((2, 6, 3), (3, 3, 5), (3, 5, 5)),
        ((3, 8, 4), (3, 4, 8), (5, 7, 7)),
        ((3, 8, 4), (3, 4, 8), (5, 7, 7)),
        ((3, 8, 4), (2, 3, 7), (3, 5, 6)),
    ),
    "or": (
        ((2, 6, 3), (3, 3, 5), (3, 5, 5)),
        ((3, 8, 4), (3, 4, 8), (5, 7, 7)),
        ((3, 8, 4), (3, 4, 8), (5, 7, 7)),
        ((1, 6, 3), (2, 3, 7), (3, 5, 5)),
    ),
    "xor": (
        ((2, 6, 3), (3, 3, 5), (3, 5, 5)),
        ((3, 8, 4), (3, 4, 8), (5, 7, 7)),
        ((3, 8, 4), (3, 4, 8), (5, 7, 7)),
        ((2, 8, 3), (2, 3, 7), (3, 6, 5)),
    ),
}


def share(both: int, zero: int, one: int) -> float:
    return both / min(zero, one)


@pytest.mark.parametrize("top", TOPS)
def test_double_class_assignment_as_the_original_counts_it(top):
    known = context(top)
    full = values("full_dca", reference_maps(known), known)
    minimal = values("minimal_dca", reference_maps(known), known)
    for threshold, counts, gates in zip(THRESHOLDS, FULL[top], MINIMAL[top], strict=True):
        assert full[(str(threshold),)] == pytest.approx(share(*counts))
        for name, gate_counts in zip(("and0", "or0", "xor0"), gates, strict=True):
            found = minimal[(str(threshold), name)]
            assert found == pytest.approx(share(*gate_counts)), (threshold, name)


def row_lookup(visible: torch.Tensor, known: Context) -> torch.Tensor:
    """The classes of the best model of masked rows, on the rows it was made from."""
    rows = [tuple(row) for row in known.x.masked_fill(~visible, -2).tolist()]
    seen = defaultdict(Counter)
    for row, y in zip(rows, known.y.tolist(), strict=True):
        seen[row][y] += 1
    return torch.tensor([seen[row].most_common(1)[0][0] for row in rows])


def after_retraining(maps: torch.Tensor, known: Context, **more: object) -> Context:
    at = {
        ("network", t): row_lookup(visible, known)
        for t, visible in zip(THRESHOLDS, masks(maps, known).values(), strict=True)
    }
    forest = {("forest", t): 1 - classes for (_, t), classes in at.items()}
    return replace(known, retrained={**at, **forest}, prediction=known.y, **more)


@pytest.mark.parametrize("top", TOPS)
def test_full_dca_with_labels_of_a_retrained_model(top):
    known = after_retraining(noise(context(top)), context(top))
    maps = noise(known)
    found = values({"name": "full_dca", "labels": "retrained"}, maps, known)
    for t, visible in zip(THRESHOLDS, masks(maps, known).values(), strict=True):
        classes = known.retrained["network", t]
        patterns = (set(), set())
        for row, label, truly in zip(
            known.x.masked_fill(~visible, -2)[:, :6].tolist(), classes, known.y, strict=True
        ):
            if -2 in row and label == truly:
                patterns[label].add(tuple(row))
        zero, one = patterns
        assert found[(str(t),)] == pytest.approx(share(len(zero & one), len(zero), len(one)))


@few
@given(st.sampled_from(TOPS), st.integers(0, 2**32))
def test_full_dca_of_the_paper_is_zero_at_baseline_for_every_map(top, seed):
    maps = noise(context(top), seed)
    known = after_retraining(maps, context(top))
    for name in ("full_dca", "minimal_dca"):
        found = measured({"name": name, "labels": "retrained"}, maps, known)
        assert all(0 <= m.value <= 1 + 1e-12 for m in found.values() if m.n)  # a mean
        if name == "full_dca":
            assert found[("baseline",)].n == 0 or found[("baseline",)].value == 0
    lost = replace(known, prediction=1 - known.y)
    found = measured({"name": "full_dca", "labels": "retrained"}, maps, lost)
    assert found[("baseline",)].n == 0 or found[("baseline",)].value == 0


# --- retraining ---


def test_accuracy_and_leakage_of_retrained_models():
    maps = reference_maps(context("xor"))
    known = after_retraining(maps, context("xor"))
    accuracy = values("retrained_accuracy", maps, known)
    plug_in = values({"name": "bayes_accuracy", "draws": 0}, maps, known)
    logical = values("logical_accuracy", maps, known)
    guessed = values("logical_accuracy_statistics", maps, known)
    assert list(accuracy.values()) == pytest.approx(
        [0.714844, 0.773438, 0.843750, 0.910156], abs=1e-6
    )
    forest = values("forest_accuracy", maps, known)
    for against, expected in (("logical", logical), ("statistics", guessed), ("bayes", None)):
        for model, right in (("network", accuracy), ("forest", forest)):
            found = measured({"name": "leakage", "against": against, "model": model}, maps, known)
            for (t,), measurement in found.items():
                known_by = expected[(t,)] if expected else plug_in[(t, "row")]
                assert measurement.value == pytest.approx(right[(t,)] - known_by, abs=1e-12)
                assert measurement.samples.abs().max() <= 1
                assert measurement.headline == (t == "1.0")
    assert all(forest[t] == pytest.approx(1 - accuracy[t]) for t in accuracy)


def test_what_was_not_retrained_is_said_in_one_line():
    maps = noise(context("and"))
    known = after_retraining(maps, context("and"))
    some = replace(known, retrained={("network", 1): known.y, ("network", "baseline"): known.y})
    for spec, here, says in (
        ("retrained_accuracy", context("and"), "no network .* at baseline; there are: none"),
        ("leakage", some, "masked at 0.8; there are: network at 1.0, network at baseline; retrain"),
        ("forest_accuracy", some, "no forest was retrained"),
        ({"name": "full_dca", "labels": "retrained"}, context("and"), "that the model predicts"),
        ({"name": "minimal_dca", "labels": "retrained"}, replace(some, prediction=known.y), "0.8"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            resolve(spec).measure(maps, here)
        assert "\n" not in str(error.value)
    two = {"name": "retrained_accuracy", "thresholds": ["baseline", 1], "headline": "baseline"}
    assert values(two, maps, some) == {("baseline",): 1, ("1.0",): 1}
    with pytest.raises(ValueError, match=r"headline 0\.7 is not one of"):
        resolve({"name": "retrained_accuracy", "headline": 0.7})


# --- what masks give away ---


@pytest.mark.parametrize(
    ("config", "top", "row", "mask"),
    [
        ("2inBinary", "and", (0.946, 0.994, 0.997, 0.998), (0.913, 0.936, 0.936, 0.924)),
        ("2inBinary", "or", (0.948, 0.994, 0.996, 0.998), (0.913, 0.937, 0.935, 0.925)),
        ("2inBinary", "xor", (0.806, 0.980, 0.988, 0.991), (0.690, 0.814, 0.809, 0.754)),
        ("3inBinary", "xor", (0.727, 0.995, 0.998, 0.999), (0.613, 0.814, 0.795, 0.709)),
    ],
)
def test_random_maps_and_the_control_beside_them_are_alike(config, top, row, mask):
    known = context(top, config)
    draws = 12 if config == "2inBinary" else 2  # sd of one draw: 0.021 at most
    drawn = [values("bayes_accuracy", noise(known, seed), known) for seed in range(draws)]
    for bucket, expected in (("row", row), ("mask", mask)):
        for threshold, number in zip(THRESHOLDS, expected, strict=True):
            for name in (bucket, f"{bucket} random"):
                mean = sum(found[(str(threshold), name)] for found in drawn) / draws
                assert mean == pytest.approx(number, abs=0.02)


@pytest.mark.parametrize("top", TOPS)
def test_reading_held_out_samples_by_hand(top):
    known = context(top)
    maps = noise(known)
    found = measured({"name": "bayes_accuracy", "estimate": "held_out"}, maps, known)
    bits = measured({"name": "information_test", "estimate": "held_out"}, maps, known)
    part = [tuple(row) for row in known.x[:, 6:].tolist()]
    y = known.y.tolist()
    for threshold, visible in masks(maps, known).items():
        shown = known.x.masked_fill(~visible, -2)
        shown[:, 6:] = visible[:, 6:].float()
        for bucket, codes in (("row", shown), ("mask", visible.float())):
            codes = [tuple(row) for row in codes.tolist()]
            seen = defaultdict(Counter)
            for code, at, label in zip(codes, part, y, strict=True):
                seen[code, at][label] += 1
                seen[code][label] += 1
                seen[at][label] += 1
                seen[()][label] += 1
            expected, said = [], []
            for code, at, label in zip(codes, part, y, strict=True):
                others = {c: seen[code][c] - seen[code, at][c] for c in (0, 1)}
                if not any(others.values()):
                    others = {c: seen[()][c] - seen[at][c] for c in (0, 1)}
                best = [c for c in (0, 1) if others[c] == max(others.values())]
                expected.append((label in best) / len(best))
                usual = y.count(label) / 256
                others = {c: seen[code][c] - seen[code, at][c] for c in (0, 1)}
                said.append((others[label] + usual) / (sum(others.values()) + 1) / usual)
            assert found[(threshold, bucket)].samples.tolist() == expected
            if bucket == "mask":
                hand = torch.tensor(said).log2()
                assert bits[(threshold, "map")].samples.allclose(hand, atol=1e-5)


@pytest.mark.parametrize("top", TOPS)
def test_held_out_samples_are_read_by_what_carries_over_and_by_nothing_else(top):
    known = context(top)
    majority = float(torch.bincount(known.y).max()) / 256
    held = {"name": "bayes_accuracy", "estimate": "held_out"}
    test = {"name": "information_test", "estimate": "held_out"}
    constant = torch.zeros(known.x.shape)
    found = values(held, constant, known).values()
    assert list(found) == pytest.approx([majority] * len(found))
    assert values(test, constant, known)[("1.0", "map")] == pytest.approx(0, abs=1e-12)

    spelled = torch.zeros(known.x.shape)
    spelled[:, :3] = 2.0 * known.y[:, None]  # the mask is the class
    spelled[:, 6:] = 1.0
    assert values(held, spelled, known)[("1.0", "mask")] == 1
    assert values(test, spelled, known)[("1.0", "excess")] > 0.2

    everything = {"thresholds": [1.0], "rule": "top", "ties": "keep"}
    assert values({**held, **everything}, constant, known)[("1.0", "row")] == 1

    plug_in = values("bayes_accuracy", noise(known), known)
    for facets, number in values(held, noise(known), known).items():
        assert number <= plug_in[facets] + 1e-12
        if "mask" in facets[1]:
            assert number < majority + 0.04  # nothing is learnt from random masks
    excess = values(test, noise(known), known)
    assert all(abs(excess[(str(t), "excess")]) < 0.1 for t in THRESHOLDS)


def test_held_out_needs_samples_to_hold_out():
    known = context("and")
    rows = torch.arange(64)
    part = Context(
        known.x[rows],
        known.y[rows],
        truth=replace(known.truth, pattern=known.truth.pattern[rows]),
        meta=known.meta,
    )
    with pytest.raises(ValueError, match="differ in their irrelevant inputs"):
        resolve({"name": "bayes_accuracy", "estimate": "held_out"}).measure(noise(part), part)


# --- where the importance goes ---


def test_mean_importance_by_gate_kind_and_input():
    known = context("or", "stacks")
    maps = 5 * noise(known) - 2
    ones = known.y == 1
    gate = values("mean_importance", maps, known)
    assert gate[("all", "xor1")] == pytest.approx(maps[:, 7:10].mean().item())
    assert gate[("1", "and1")] == pytest.approx(maps[ones][:, 2:4].mean().item())
    assert gate[("0", "irrelevant")] == pytest.approx(maps[~ones][:, 10].mean().item())
    kind = values({"name": "mean_importance", "per": "kind"}, maps, known)
    assert kind[("all", "xor")] == pytest.approx(maps[:, 4:10].mean().item())
    assert {name for _, name in kind} == {"contrast", "and", "xor", "irrelevant"}
    even = (maps - maps.amin(1, keepdim=True)) / (maps.amax(1) - maps.amin(1))[:, None]
    spec = {"name": "mean_importance", "per": "input", "of": "scaled"}
    each = values(spec, maps, known)
    assert [each[("1", f"input {i}")] for i in range(11)] == pytest.approx(
        even[ones].mean(0).tolist()
    )
    for found in (gate, kind, each):
        expected = (even[:, :10].mean(1) - even[:, 10]).mean().item()
        assert found[("all", "contrast")] == pytest.approx(expected)
    used = (~known.truth.irrelevant).double().expand(known.x.shape)
    for scale in (1, 1e-9, 1e6):
        assert values("mean_importance", scale * used, known)[("0", "contrast")] == 1
        assert values("mean_importance", -scale * used, known)[("0", "contrast")] == -1
    assert values("mean_importance", 0 * used, known)[("all", "contrast")] == 0


@pytest.mark.parametrize("top", TOPS)
def test_wrong_importance_by_hand(top):
    known = context(top)
    maps = (4 * noise(known)).round()

    def by_hand(rows: list[list[float]]) -> list[float]:
        wrong = [sum(row[k] < max(row[6:]) for row in rows) for k in range(6)]
        under = [sum(row[k] < row[p] for row in rows for k in range(6)) for p in (6, 7)]
        return [count / len(rows) for count in (*wrong, *under)]

    def found(of: str, c: str) -> list[float]:
        return [
            values({"name": "wrong_importance", "of": of}, maps, known)[(c, f"input {i}")]
            for i in range(8)
        ]

    for c, rows in (("all", maps), ("0", maps[known.y == 0]), ("1", maps[known.y == 1])):
        assert found("samples", c) == pytest.approx(by_hand(rows.tolist()))
        assert found("mean_map", c) == by_hand([rows.mean(0).tolist()])
    mean = measured("wrong_importance", maps, known)[("all", "relevant")]
    assert mean.headline
    assert mean.value == pytest.approx(sum(found("samples", "all")[:6]) / 6)


def test_wrong_importance_of_controls():
    known = context("and")
    used = (~known.truth.irrelevant).double().expand(256, -1)
    for of in ("samples", "mean_map"):
        spec = {"name": "wrong_importance", "of": of}
        assert set(values(spec, used, known).values()) == {0}
        inverse = values(spec, 1 - used, known)
        assert inverse[("all", "relevant")] == 1
        assert inverse[("1", "input 7")] == 6
        ties = {**spec, "ties": "half"}
        assert values(ties, 0 * used, known)[("all", "relevant")] == 0.5
