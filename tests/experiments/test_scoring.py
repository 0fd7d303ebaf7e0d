from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch

from experiments.data.andor import generate
from experiments.scoring import Context, Measurement, logic, metric, resolve, scores, spec_of
from experiments.scoring import functional as F
from experiments.scoring.base import REGISTRY

# What is known of the samples here: scores that need more are tested with it, elsewhere.
KNOWN = {"truth", "baseline", "formula", "region"}


@cache
def context(top: str = "and", **spec) -> Context:
    data = generate({"toplevel": top, **spec})
    test = data.test
    return Context(test.x, test.y, truth=data.truth, meta=data.meta, indices=test.index.tolist())


def noise(known: Context, seed: int = 0) -> torch.Tensor:
    return torch.randn(known.x.shape, generator=torch.Generator().manual_seed(seed))


def headline(spec: str | dict, maps: torch.Tensor, known: Context) -> float:
    return next(m.value for m in resolve(spec).measure(maps, known) if m.headline)


# --- registry ---


def test_every_score_measures_with_its_defaults():
    known = context("xor")
    for name, cls in scores().items():
        if not cls.needs <= KNOWN:
            continue
        measurements = resolve(name).measure(noise(known), known)
        assert sum(m.headline for m in measurements) == 1
        assert cls.summary.endswith(".")
        assert cls.direction in ("lower", "higher")
        assert cls().passes((8,)) == (0, 0)
        for m in measurements:
            assert cls.range[0] <= m.value <= cls.range[1]
            assert m.samples is not None
            defined = m.samples[~m.samples.isnan()]
            assert len(defined) == m.n
            assert defined.double().mean().item() == pytest.approx(m.value, abs=1e-6)


def test_a_score_is_its_config():
    for name in scores():
        assert resolve(spec_of(resolve(name))) == resolve(name)
        assert spec_of(resolve(name), defaults=False) == {"name": name}
    half = resolve({"name": "nib", "ties": "half"})
    assert spec_of(half, defaults=False) == {"name": "nib", "ties": "half"}
    assert spec_of(half) == {"name": "nib", "ties": "half", "preset": "fixed"}
    assert resolve(half) is half
    assert len({half, resolve({"name": "nib", "ties": "half"}), resolve("nib")}) == 2
    masking = resolve({"name": "masked_share", "thresholds": ["baseline", 1], "headline": 1})
    assert spec_of(masking)["thresholds"] == ["baseline", 1.0]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nibb", "unknown score 'nibb'; did you mean 'nib'?"),
        ({"ties": "half"}, "has the key 'name'"),
        (3, "a score is a name"),
        ({"name": "nib", "tie": "half"}, "score 'nib': unknown parameter 'tie'"),
        ({"name": "nib", "ties": "soft"}, "ties: input should be 'strict', 'half' or 'pessim"),
        ({"name": "masked_share", "headline": 0.7}, "headline 0.7 is not one of the thresholds"),
        ("no_such_module:Score", "cannot be imported"),
        ("json:JSONDecoder", "not a class decorated with"),
        ("experiments.scoring:Score", "not a class decorated with"),
    ],
)
def test_mistakes_get_one_clear_line(spec, says):
    with pytest.raises(ValueError, match=r"score") as error:
        resolve(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


PLUGIN = """
from dataclasses import dataclass
from experiments.scoring import Measurement, Score, metric

@metric("largest", family="mine", direction="higher", range=(0, 9))
@dataclass(frozen=True)
class Largest(Score):
    '''The largest value.'''
    scale: float = 1.0

    def measure(self, maps, context):
        return [Measurement.of(self.scale * maps.amax(1), headline=True)]
"""


def test_a_dotted_path_is_a_plugin(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        largest = resolve({"name": "my_scores:Largest", "scale": 2})
        known = Context(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
        (measurement,) = largest.measure(torch.tensor([[1.0, 2, 3], [0, 0, 1]]), known)
        assert measurement.value == 4
        assert spec_of(largest) == {"name": "largest", "scale": 2.0}
    finally:
        REGISTRY.pop("largest", None)
        sys.modules.pop("my_scores", None)


def test_two_scores_cannot_share_a_name():
    with pytest.raises(ValueError, match="two scores are called 'nib'"):

        @metric("nib", family="truth", direction="lower", range=(0, 1))
        class Other(type(resolve("nib"))):
            pass


def test_scores_are_named_and_checked_without_torch():
    code = (
        "import sys, experiments.scoring as s\ns.resolve({'name': 'nib', 'ties': 'half'})\n"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what a score refuses ---


@pytest.mark.parametrize("name", sorted(scores()))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_map_that_is_not_finite_is_refused(name, value):
    known = replace(context(), indices=range(100, 356))
    maps = noise(known)
    maps[7, 2] = value
    with pytest.raises(ValueError, match=rf"score '{name}': the map of sample 7 \(index 107\)"):
        resolve(name).measure(maps, known)


def test_missing_knowledge_is_refused():
    known = context()
    blind = replace(known, truth=None)
    with pytest.raises(ValueError, match="'nib' needs to know the truth"):
        resolve("nib").measure(noise(known), blind)
    assert math.isfinite(headline("entropy", noise(known), blind))
    bare = context(irrelevant=0)
    with pytest.raises(ValueError, match="'gib' compares with irrelevant inputs"):
        resolve("gib").measure(noise(bare), bare)
    assert 0 < headline("relevance_rank", noise(bare), bare) < 1
    with pytest.raises(ValueError, match="needs a dataset made by a formula"):
        resolve("logical_accuracy_statistics").measure(noise(known), replace(known, meta={}))
    with pytest.raises(ValueError, match="5 maps for 256 samples"):
        resolve("nib").measure(noise(known)[:5], known)
    with pytest.raises(ValueError, match=r"maps of shape \[7\] for 8 inputs"):
        resolve("nib").measure(noise(known)[:, :7], known)


def test_parity_has_truth_but_no_rules_of_thumb():
    known = context("xor", xor="parity")
    maps = noise(known)
    assert 0 < headline("nib", maps, known) < 1
    assert 0 < headline("gib", maps, known) < 1
    for spec in ("logical_accuracy_statistics", {"name": "gib", "definition": "paper"}):
        with pytest.raises(ValueError, match="parity"):
            resolve(spec).measure(maps, known)


# --- measurements ---


def test_undefined_samples_are_left_out_and_counted():
    measurement = Measurement.of(torch.tensor([1.0, math.nan, 3.0]), class_="0")
    assert (measurement.value, measurement.n, measurement.facets) == (2, 2, {"class": "0"})
    assert measurement.sd == pytest.approx(math.sqrt(2))
    nothing = Measurement.of(torch.tensor([math.nan]))
    assert nothing.n == 0
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.sd)


def test_regions_that_are_empty_are_undefined():
    known = context("and")
    empty = ~known.truth.necessary.any(1)
    assert 0 < empty.sum() < 256
    for name in ("relevance_mass", "relevance_rank", "relevance_auc", "pointing_game"):
        measurements = resolve({"name": name, "region": "necessary"}).measure(noise(known), known)
        first = measurements[0]
        assert first.facets == {"class": "all"}
        assert first.samples.isnan().equal(empty)
        assert first.n == 256 - int(empty.sum())


def test_gib_per_sample_values_average_to_the_mean_over_inputs():
    known = context("xor")
    maps = noise(known)
    peak = maps[:, known.truth.irrelevant].amax(1, keepdim=True)
    for measurement in resolve("gib").measure(maps, known):
        c = measurement.facets["class"]
        rows = torch.ones(256, dtype=torch.bool) if c == "all" else known.y == int(c)
        counts = known.truth.relevant[rows]
        wrong = counts & (maps[rows] < peak[rows])
        by_input = (wrong.sum(0) / counts.sum(0))[counts.any(0)]
        assert measurement.value == pytest.approx(by_input.mean().item(), abs=1e-6)


# --- degenerate maps and ties ---


def constant(known: Context, value: float = 0.0) -> torch.Tensor:
    return torch.full(known.x.shape, value)


@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
@pytest.mark.parametrize("top", ["and", "or", "xor"])
def test_constant_maps(top, value):
    known = context(top)
    maps = constant(known, value)
    for name in ("nib", "gib"):
        for ties, expected in (("strict", 0), ("half", 0.5), ("pessimistic", 1)):
            assert headline({"name": name, "ties": ties}, maps, known) == expected
    for threshold in ("baseline", 1.0, 0.8, 0.5):
        at = {"headline": threshold}
        assert headline({"name": "masked_share", **at}, maps, known) == 1
        assert headline({"name": "masked_share", "ties": "keep", **at}, maps, known) == 0
        assert headline({"name": "logical_accuracy", **at}, maps, known) == 0
        assert headline({"name": "logical_accuracy", "ties": "keep", **at}, maps, known) == 1
        majority = max(known.y.double().mean().item(), 1 - known.y.double().mean().item())
        for of in ("row", "mask"):
            found = headline({"name": "bayes_accuracy", "of": of, **at}, maps, known)
            assert found == pytest.approx(majority)
    chance = known.truth.relevant.double().mean().item()
    for name in ("relevance_rank", "pointing_game"):
        assert headline(name, maps, known) == pytest.approx(chance)
    assert headline("relevance_auc", maps, known) == pytest.approx(0.5)
    view = {"name": "relevance_mass", "view": "abs"}
    assert headline(view, maps, known) == pytest.approx(chance)
    assert headline("entropy", maps, known) == pytest.approx(math.log(8))
    assert headline("sparseness", maps, known) == pytest.approx(0, abs=1e-12)


def test_classes_that_tie_in_a_group_share_it():
    groups, y = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    assert logic.majority_correct(groups, y).tolist() == [0.5, 0.5, 1, 1, 0]


def test_groups_of_codes_too_wide_for_a_number():
    codes = torch.randint(0, 3, (50, 60), generator=torch.Generator().manual_seed(0))
    codes[25:] = codes[:25]
    assert logic.group(codes, 3)[:25].equal(logic.group(codes, 3)[25:])
    assert len(logic.group(codes, 3).unique()) == len(logic.group(codes[:, :20], 3).unique()) == 25


def test_top_rule_keeps_the_share_it_is_given():
    maps = torch.tensor([[4.0, 3, 2, 1], [1, 1, 0, 0], [2, 2, 2, 2]])
    irrelevant = torch.tensor([False, False, False, True])
    for t, ties, shares in (
        (0.5, "mask", [2, 2, 0]),
        (0.5, "keep", [2, 2, 4]),
        (0.25, "mask", [1, 0, 0]),
        (0.25, "keep", [1, 2, 4]),
        (0.0, "keep", [0, 0, 0]),
        (1.0, "mask", [4, 4, 4]),
    ):
        assert logic.kept(maps, t, irrelevant, "top", ties).sum(1).tolist() == shares


# --- closed forms ---


def test_complexity_of_one_hot_and_uniform_maps():
    for inputs in (2, 8, 256):
        one_hot = torch.eye(inputs, dtype=torch.float64)
        uniform = torch.full((1, inputs), 0.7, dtype=torch.float64)
        assert F.gini(one_hot).tolist() == pytest.approx([1 - 1 / inputs] * inputs, abs=1e-12)
        assert F.gini(uniform).item() == pytest.approx(0, abs=1e-12)
        assert F.entropy(one_hot).tolist() == [0] * inputs
        assert F.entropy(uniform).item() == pytest.approx(math.log(inputs))


def random_masks(samples: int = 300, inputs: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(samples, inputs, generator=generator) < 0.4
    masks[:, 0], masks[:, 1] = True, False
    return masks


def test_localisation_of_a_map_that_is_the_mask_and_of_its_inverse():
    masks = random_masks()
    maps = masks.double()
    for measure in (F.mass, F.top_precision, F.top_one, F.ranking_auc):
        assert (measure(maps, masks) == 1).all()
    assert (F.ranking_auc(1 - maps, masks) == 0).all()
    assert (F.mass(1 - maps, masks) == 0).all()


def test_localisation_of_a_constant_map_is_chance_wherever_the_mask_is():
    masks = random_masks()
    maps = torch.ones(masks.shape, dtype=torch.float64)
    chance = masks.double().mean(1)
    for measure in (F.mass, F.top_precision, F.top_one):
        assert measure(maps, masks).tolist() == pytest.approx(chance.tolist())
    assert (F.ranking_auc(maps, masks) == 0.5).all()


def test_auc_of_noise_and_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    masks = random_masks()
    generator = torch.Generator().manual_seed(1)
    maps = torch.randint(0, 5, masks.shape, generator=generator).double()
    found = F.ranking_auc(maps, masks)
    expected = [roc_auc_score(m.numpy(), s.numpy()) for m, s in zip(masks, maps, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    assert abs(found.mean() - 0.5) < 3 * found.std() / math.sqrt(len(found))


def test_tied_ranks_count_their_expected_value():
    maps = torch.tensor([[3.0, 2, 2, 2, 1]]).double()
    mask = torch.tensor([[True, True, False, False, False]])
    assert F.top_precision(maps, mask).item() == pytest.approx((1 + 1 / 3) / 2)
    assert F.top_one(maps, mask).item() == 1
    assert F.top_one(maps.flip(1).clamp(max=2), mask).item() == pytest.approx(1 / 4)


def test_truth_regions():
    known = context("and")
    truth = known.truth
    used = (~truth.irrelevant).double().expand(256, -1)
    for name in ("relevance_mass", "relevance_rank", "pointing_game", "relevance_auc"):
        assert headline({"name": name, "region": "used"}, used, known) == 1
        assert headline(name, truth.relevant.double(), known) == 1
