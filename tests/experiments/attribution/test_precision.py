from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import nn

from experiments.attribution import attribute
from experiments.attribution.precision import attribute_bfloat16, rank_agreement

N, D, K = 11, 40, 3


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(D, 32), nn.Tanh(), nn.Linear(32, K)).eval()


def samples():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def shifted_difference(model, x, target, *, baseline, generator):
    """A difference of large numbers, which bfloat16 rounds away."""
    return (1000 + x) - 1000


def unsupported(model, x, target, *, baseline, generator):
    if x.dtype == torch.bfloat16:
        return torch.linalg.svd(x).Vh[: len(x)]
    return x


CLASSES = torch.arange(N) % K


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "target",
    [1, CLASSES, nn.functional.one_hot(CLASSES, K) + 0.5, CLASSES[:, None].expand(N, 2)],
    ids=["class", "classes", "weights", "several"],
)
def test_maps_are_those_of_full_precision_but_for_rounding(target, autocast):
    network, x = model(), samples()
    full = attribute("gradient", network, x, target)
    seen = []
    handle = network[0].register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    found = attribute_bfloat16("gradient", network, x, target, autocast=autocast, agreement=0.9)
    handle.remove()
    assert torch.bfloat16 in seen
    assert found.dtype == torch.float32
    assert found.shape == full.shape
    assert (found - full).norm() < 0.02 * full.norm()
    assert not found.equal(full)
    assert next(network.parameters()).dtype == torch.float32
    assert next(network.parameters()).requires_grad


def test_random_numbers_are_those_of_the_samples():
    rest = {"seed": 4, "indices": list(range(50, 50 + N))}
    full = attribute("random", model(), samples(), 0, **rest)
    found = attribute_bfloat16("random", model(), samples(), 0, check=3, batch_size=2, **rest)
    torch.testing.assert_close(found, full, rtol=2**-8, atol=0)


def test_a_method_that_loses_its_ranking_is_refused():
    spec = f"{__name__}:shifted_difference"
    with pytest.raises(ValueError, match=r"sample 7\d .* below 0.99: use full precision") as error:
        attribute_bfloat16(spec, model(), samples(), 0, indices=range(70, 70 + N))
    assert "shifted_difference" in str(error.value)
    assert "\n" not in str(error.value)
    attribute_bfloat16(spec, model(), samples(), 0, agreement=-1)


def test_a_method_that_cannot_compute_in_bfloat16_is_refused():
    with pytest.raises(ValueError, match=r"unsupported.* cannot compute in bfloat16 .*use full"):
        attribute_bfloat16(f"{__name__}:unsupported", model(), samples(), 0)
    with pytest.raises(ValueError, match="at least 1 sample"):
        attribute_bfloat16("gradient", model(), samples(), 0, check=0)


def test_rank_agreement_is_spearmans_correlation():
    a, b = torch.randint(0, 5, (2, 6, 30), generator=torch.Generator().manual_seed(0)) / 1.0
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert rank_agreement(a, b).tolist() == pytest.approx(expected)
    flat = torch.ones(2, 3)
    assert rank_agreement(flat, torch.tensor([[2.0, 2, 2], [1, 2, 3]])).tolist() == [1, 0]
