from __future__ import annotations

import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import nn

from experiments import passes
from experiments.attribution.batch import Batch
from experiments.scoring import segments
from experiments.scoring.imputation import Imputation, blur, harmonic


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holes(*shape: int, share: float) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < share


def batch_of(x: torch.Tensor, rows: slice = slice(None), **given) -> Batch:
    known = {"baseline": torch.full_like(x[0], 7.0), "seed": 0} | given
    indices = range(len(x))[rows]
    target = torch.zeros(len(indices), dtype=torch.long)
    return Batch(nn.Flatten().eval(), x[rows], target, indices=indices, **known)


def dense(x: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """The equations written out for one image [C, H, W] and solved by elimination."""
    _, height, width = x.shape
    result = x.clone()
    pixels = [(r, c) for r in range(height) for c in range(width) if removed[0, r, c]]
    number = {pixel: i for i, pixel in enumerate(pixels)}
    matrix = torch.zeros(len(pixels), len(pixels), dtype=x.dtype)
    right = torch.zeros(len(pixels), len(x), dtype=x.dtype)
    for (r, c), i in number.items():
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                near = (r + dr, c + dc)
                if (dr, dc) == (0, 0) or not (0 <= near[0] < height and 0 <= near[1] < width):
                    continue
                weight = 1 / 6 if dr == 0 or dc == 0 else 1 / 12
                matrix[i, i] += weight
                if near in number:
                    matrix[i, number[near]] -= weight
                else:
                    right[i] += weight * x[:, near[0], near[1]]
    solution = torch.linalg.solve(matrix, right)
    for (r, c), i in number.items():
        result[:, r, c] = solution[i]
    return result


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_noisy_linear_solves_the_equations(share):
    x, removed = seeded(4, 3, 8, 8), holes(4, 1, 8, 8, share=share)
    solved = harmonic(x, removed)
    assert solved.equal(torch.where(removed, solved, x))
    expected = torch.stack([dense(*pair) for pair in zip(x, removed, strict=True)])
    assert torch.allclose(solved, expected, atol=1e-6)
    assert torch.allclose(harmonic(x.float(), removed).double(), expected, atol=1e-4)
    alone = torch.cat([harmonic(x[i : i + 1], removed[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, solved, atol=1e-14)  # each stops where it has converged


def test_noisy_linear_is_that_of_pytorch_grad_cam():
    x, removed = seeded(3, 2, 9, 14).float(), holes(3, 1, 9, 14, share=0.7)
    theirs = NoisyLinearImputer(noise=0)
    expected = [theirs(a, (~b[0]).float()) for a, b in zip(x, removed, strict=True)]
    assert torch.allclose(harmonic(x, removed), torch.stack(expected), atol=1e-4)
    # channels that are removed apart are imputed apart
    apart = holes(3, 2, 9, 14, share=0.5)
    each = torch.cat([harmonic(x[:, c : c + 1], apart[:, c : c + 1]) for c in range(2)], 1)
    assert torch.allclose(harmonic(x, apart), each, atol=1e-6)


def test_noisy_linear_knows_constants_and_ramps():
    removed = holes(5, 1, 12, 12, share=0.6)
    constant = torch.full((5, 3, 12, 12), 0.3)
    assert torch.allclose(harmonic(constant, removed), constant, atol=1e-6)
    removed[..., [0, -1], :] = removed[..., [0, -1]] = False
    ramp = torch.linspace(-1, 1, 12, dtype=torch.float64)
    ramp = (ramp[:, None] + 3 * ramp).expand(5, 1, 12, 12)
    assert torch.allclose(harmonic(ramp, removed), ramp, atol=1e-8)
    x = seeded(5, 1, 12, 12)
    kept = torch.where(removed, torch.nan, x).flatten(1)
    low, high = kept.nan_to_num(torch.inf).amin(1), kept.nan_to_num(-torch.inf).amax(1)
    solved = harmonic(x, removed).flatten(1)
    assert (solved >= low[:, None] - 1e-8).all()
    assert (solved <= high[:, None] + 1e-8).all()


def test_a_series_is_interpolated():
    time = torch.arange(10.0, dtype=torch.float64)
    series = torch.stack([time, time**2])[None]
    removed = torch.zeros(1, 1, 10, dtype=torch.bool)
    removed[..., [0, 4, 5, 6]] = True
    solved = harmonic(series, removed)
    assert torch.allclose(solved[0, 0, 1:], time[1:])
    assert torch.allclose(solved[0, 1, [0, 5]], torch.tensor([1.0, (9 + 49) / 2]).double())


def test_what_stands_in_for_the_removed():
    x = seeded(4, 3, 6, 5) + 10
    batch = batch_of(x)
    rows = torch.tensor([2, 0])
    removed = holes(2, 1, 6, 5, share=0.5)

    def filled(fill: str, **more) -> torch.Tensor:
        result = Imputation(fill, **more).remove(batch, rows, removed)
        assert torch.where(removed, x[rows], result).equal(x[rows])
        return torch.where(removed, result, torch.nan)

    gone = removed.expand(-1, 3, -1, -1)
    assert (filled("baseline")[gone] == 7).all()
    assert (filled("zero")[gone] == 0).all()
    means = x[rows].mean((2, 3), keepdim=True).expand_as(x[rows])
    assert filled("mean")[gone].equal(means[gone])
    assert filled("blur")[gone].equal(blur(x, 5.0, 11, "zeros")[rows][gone])
    low, high = x[rows].amin((2, 3), True), x[rows].amax((2, 3), True)
    for fill in ("uniform", "color"):
        noise = filled(fill)
        assert ((noise >= low) & (noise <= high))[gone].all()
        assert not torch.equal(noise.nan_to_num(0), filled(fill, draw=1).nan_to_num(0))
    flat = filled("color").flatten(2)
    assert (flat.nan_to_num(-99).amax(2) == flat.nan_to_num(99).amin(2)).all()
    exact = filled("noisy_linear", sigma=0.0)
    noise = (filled("noisy_linear", sigma=0.5) - exact)[gone]
    assert 0.3 < noise.std() < 0.7


@pytest.mark.parametrize("fill", ["uniform", "normal", "color", "noisy_linear"])
def test_noise_is_the_samples_own(fill):
    x = seeded(5, 2, 4, 4)
    removed = holes(5, 1, 4, 4, share=0.5)
    whole = Imputation(fill).remove(batch_of(x), torch.arange(5), removed)
    part = batch_of(x, slice(3, 5))
    alone = Imputation(fill).remove(part, torch.arange(2), removed[3:])
    assert torch.allclose(whole[3:], alone, atol=1e-14)


@pytest.mark.parametrize("fill", ["baseline", "zero", "mean", "uniform", "noisy_linear"])
def test_nothing_is_one_row_if_it_is_the_same_for_all(fill):
    batch = batch_of(seeded(4, 1, 3, 3))
    everything = torch.ones(4, 1, 3, 3, dtype=torch.bool)
    with passes.counted(batch.model) as count:
        outputs = Imputation(fill).outputs_of_nothing(batch)
        assert Imputation(fill).outputs_of_nothing(batch).equal(outputs)
    assert count.rows == (4 if fill in ("mean", "uniform") else 1)
    removed = Imputation(fill).remove(batch, torch.arange(4), everything)
    assert removed.flatten(1).equal(outputs)


def test_blur_is_that_of_rise():
    image = seeded(1, 1, 21, 21)
    # A Gaussian that is mirrored at the ends of its 11 positions, then a convolution with zeros.
    offsets = torch.arange(-40, 41)
    gauss = torch.exp(-(offsets.double() ** 2) / 50)
    folded = torch.zeros(11, dtype=torch.float64)
    for offset, weight in zip(offsets.tolist(), gauss, strict=True):
        if abs(offset) <= 20:  # scipy cuts at four standard deviations
            place = (5 + offset) % 22
            folded[place if place < 11 else 21 - place] += weight
    folded = folded / folded.sum()
    kernel = (folded[:, None] * folded)[None, None]
    expected = nn.functional.conv2d(image, kernel, padding=5)
    assert torch.allclose(blur(image, 5.0, 11, "zeros"), expected, atol=1e-12)
    box = blur(torch.ones(1, 1, 9, 9, dtype=torch.float64), 5.0, 5, "zeros")
    assert torch.allclose(box[0, 0, 0, 0], torch.tensor(9 / 25).double(), atol=1e-3)
    level = blur(torch.full((1, 2, 9), 0.4), 2.0, 5, "replicate")
    assert torch.allclose(level, torch.full((1, 2, 9), 0.4))


@pytest.mark.parametrize("fill", ["blur", "noisy_linear"])
def test_a_table_has_no_neighbours(fill):
    batch = batch_of(seeded(2, 6))
    with pytest.raises(ValueError, match=rf"fill '{fill}' needs neighbours.*are \[6\]"):
        Imputation(fill).remove(batch, torch.arange(2), torch.ones(2, 6, dtype=torch.bool))


# --- what is removed together ---


def test_patches_and_cells_cover_every_position():
    labels, number = segments.patches((5, 7), 3)
    assert number == 6
    assert labels.view(5, 7)[:, [0, 3, 6]].tolist() == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 2
    labels, number = segments.grid((7,), 3)
    assert (labels.tolist(), number) == ([[0, 0, 0, 1, 1, 2, 2]], 3)
    assert segments.grid((32, 32), 64).labels[0].bincount().tolist() == [16] * 64
    assert segments.grid((2, 2), 64).number == 4


def test_superpixels_follow_colours():
    image = torch.zeros(2, 3, 16, 16)
    image[0, :, :, 5:] = 1  # an edge that no regular grid of 4 x 4 has
    image[1] = 0.5
    labels, number = segments.slic(image, 16, 0.1)
    assert number == 16
    left, right = labels[0].view(16, 16)[:, :5], labels[0].view(16, 16)[:, 5:]
    assert not set(left.flatten().tolist()) & set(right.flatten().tolist())
    regular = segments.grid((16, 16), 16).labels
    assert labels[1].equal(regular[0])  # without colours, the grid it started from
    assert segments.slic(image[1:], 16, 0.1).labels.equal(labels[1:])
    with pytest.raises(ValueError, match="superpixels need images"):
        segments.slic(image[0], 16, 0.1)
