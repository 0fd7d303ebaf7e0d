"""What stands in for a removed input.

A position is a place of the input where all channels are removed together: an input of a table
[D], a step of a series [C, T], a pixel of an image [C, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional

from experiments import passes
from experiments.attribution.batch import Batch

Fill = Literal["baseline", "zero", "mean", "blur", "uniform", "normal", "color", "noisy_linear"]
Padding = Literal["zeros", "replicate"]

# Where conjugate gradients stop: the residual relative to the right-hand side. In float32 the
# imputed values are then within some 1e-4 of the exact ones, far below the noise that hides them.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
MOST_ITERATIONS = 2000
ITERATIONS_BETWEEN_CHECKS = 8  # on a GPU, which has to wait for the answer
TINY = 1e-30


@dataclass(frozen=True)
class Imputation:
    """How removed inputs are filled in.

    fill:
        "baseline"      the batch's baseline
        "zero"          zero, in the units of the input
        "mean"          the sample's mean over the positions of each channel (ROAD's "fixed")
        "blur"          the sample, blurred
        "uniform"       noise, uniform between the sample's least and largest value of each channel
        "normal"        noise with the sample's mean and standard deviation of each channel
        "color"         one number per channel, uniform as above: the same at every position
        "noisy_linear"  weighted means of the neighbours, and noise: `harmonic` (Rong et al. 2022)
    sigma: the standard deviation of the blur, in positions (5 if None), or of noisy_linear's noise
        (0.01 if None; ROAD's, for inputs in [0, 1]).
    kernel, padding: how many positions wide the blur is, and what it finds beyond the border.
    draw: fills that are random differ between draws; each sample has noise of its own.
    """

    fill: Fill = "baseline"
    sigma: float | None = None
    kernel: int = 11
    padding: Padding = "zeros"
    draw: int = 0

    @property
    def one_for_all(self) -> bool:
        """Every sample that is removed entirely looks the same."""
        return self.fill in ("baseline", "zero", "noisy_linear")

    def remove(self, batch: Batch, rows: Tensor, removed: Tensor) -> Tensor:
        """Samples `rows` int64 [R] of the batch without the `removed`, bool [R, 1 or C, ...]."""
        kept = batch.x[rows]
        if self.fill == "noisy_linear":
            return self._interpolate(batch, rows, kept, removed)
        values = self.values(batch)
        return torch.where(removed, values if self.one_for_all else values[rows], kept)

    def outputs_of_nothing(self, batch: Batch) -> Tensor:
        """Outputs [B, K] of the samples without any of their inputs.

        One row for all of them if they are then the same (for noisy_linear, which has nothing to
        start from, the baseline), else one row each.
        """
        if self.fill in ("baseline", "noisy_linear"):
            return batch.baseline_outputs().expand(len(batch), -1)

        def compute() -> Tensor:
            return passes.outputs(batch.model, self.values(batch))

        return batch.once(("nothing", self), compute, per_target=False).expand(len(batch), -1)

    def values(self, batch: Batch) -> Tensor:
        """What takes the place of the removed, [B or 1, ...].

        Not for noisy_linear, where it depends on what is removed.
        """
        if self.fill == "baseline":
            return batch.baseline[None]
        if self.fill == "zero":
            return torch.zeros_like(batch.baseline)[None]
        # Draws are cheaper to repeat than to keep; the first is what all scores walk with.
        if self.draw:
            return self._values(batch)
        return batch.once(("fill", self), lambda: self._values(batch), per_target=False)

    def _values(self, batch: Batch) -> Tensor:
        x = batch.x
        over = tuple(range(2 if x.ndim > 2 else 1, x.ndim))
        generator = batch.generator(f"fill/{self.fill}/{self.draw}")
        low, high = x.amin(over, keepdim=True), x.amax(over, keepdim=True)
        match self.fill:
            case "mean":
                return x.mean(over, keepdim=True).expand_as(x)
            case "blur":
                return blur(x, 5.0 if self.sigma is None else self.sigma, self.kernel, self.padding)
            case "uniform":
                return low + (high - low) * generator.uniform(*x.shape[1:]).to(x)
            case "normal":
                spread = x.std(over, keepdim=True, correction=0)
                return x.mean(over, keepdim=True) + spread * generator.normal(*x.shape[1:]).to(x)
            case "color":
                numbers = generator.uniform(*low.shape[1:]).to(x)
                return (low + (high - low) * numbers).expand_as(x)
            case _:
                raise ValueError(f"fill {self.fill!r} depends on what is removed")

    def _interpolate(self, batch: Batch, rows: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
        filled = harmonic(kept, removed)
        nothing = removed.flatten(1).all(1).view(-1, *[1] * (kept.ndim - 1))
        filled = torch.where(nothing, batch.baseline, filled)
        sigma = 0.01 if self.sigma is None else self.sigma
        if sigma == 0:
            return filled
        shape = batch.x.shape[1:]

        def draw() -> Tensor:
            return batch.generator(f"fill/noisy_linear/{self.draw}").normal(*shape).to(batch.x)

        noise = batch.once(("noise of noisy_linear", self.draw), draw, per_target=False)
        return torch.where(removed & ~nothing, filled + sigma * noise[rows], filled)


# --- blur ---


def blur(x: Tensor, sigma: float, kernel: int, padding: Padding) -> Tensor:
    """Samples [B, C, T] or [B, C, H, W], each channel blurred along its axes.

    The weights are those of RISE's code: a peak in the middle of `kernel` positions, filtered by a
    Gaussian that is mirrored at their ends, so almost a box where sigma is not small.
    Raises ValueError for an even kernel, and for tables, whose columns have no neighbours.
    """
    _need_neighbours("blur", x)
    if kernel % 2 == 0:
        raise ValueError(f"fill 'blur': the kernel must be odd, got {kernel}")
    peak = torch.zeros(kernel, dtype=torch.float64)
    peak[kernel // 2] = 1
    weights = torch.from_numpy(gaussian_filter1d(peak.numpy(), sigma)).to(x)
    mode = "constant" if padding == "zeros" else "replicate"
    for axis in range(2, x.ndim):
        moved = x.movedim(axis, -1)
        lines = moved.reshape(-1, 1, moved.shape[-1])
        lines = functional.pad(lines, (kernel // 2, kernel // 2), mode)
        x = functional.conv1d(lines, weights.view(1, 1, -1)).view(moved.shape).movedim(-1, axis)
    return x


# --- noisy linear imputation ---


def harmonic(x: Tensor, removed: Tensor) -> Tensor:
    """Samples [R, C, T] or [R, C, H, W] whose removed positions are weighted means of neighbours.

    Each removed position i solves  Σ_j w_ij x_i = Σ_j w_ij x_j  over its neighbours j inside the
    image, removed or not, for each channel by itself; w is 1/6 for direct and 1/12 for diagonal
    neighbours, and 1/2 for those of a series (Rong et al. 2022, section 5.2). A sample that is
    removed entirely has no solution, and becomes zero.

    Solved for all samples at once by conjugate gradients. A sample stops when it has converged,
    so that its values do not depend on those it shares a batch with. Raises ValueError for tables.
    """
    _need_neighbours("noisy_linear", x)
    # Everything below is written into a few tensors that stay in the cache: allocating them anew
    # in each iteration takes three times as long.
    x = x.contiguous()
    removed = removed.expand_as(x)
    unknown = removed.to(x).contiguous()
    lines, changed = torch.empty_like(x), torch.empty_like(x)
    own = _spread(torch.ones_like(x), lines, changed)[:1, :1].clone()

    def applied(vector: Tensor) -> Tensor:
        """The system times a vector: negative definite on the removed positions."""
        return _spread(vector, lines, changed).addcmul_(own, vector, value=-1).mul_(unknown)

    kept = 1 - unknown
    over = tuple(range(2, x.ndim))
    # Starting from the mean of what is kept makes a constant image exact.
    mean = (x * kept).sum(over, keepdim=True) / kept.sum(over, keepdim=True).clamp(min=1)
    value = torch.where(removed, mean, x)
    residual = applied(value).clone()
    value.mul_(unknown)
    direction = residual.clone()
    left = _dot(residual, residual)
    right = _spread(x * kept, lines, changed).mul_(unknown)
    enough = TOLERANCE.get(x.dtype, 1e-3) ** 2 * _dot(right, right)
    patience = ITERATIONS_BETWEEN_CHECKS if x.is_cuda else 1
    for iteration in range(MOST_ITERATIONS):
        going = left > enough
        if iteration % patience == 0 and not going.any():
            break
        curved = applied(direction)
        step = torch.where(going, left / _dot(direction, curved).clamp(max=-TINY), 0)
        value.addcmul_(step, direction, value=-1)
        residual.addcmul_(step, curved, value=-1)
        rest = torch.where(going, _dot(residual, residual), left)
        direction.mul_(rest / left.clamp(min=TINY)).add_(residual)
        left = rest
    return torch.where(removed, value, x)


def _spread(x: Tensor, lines: Tensor, out: Tensor) -> Tensor:
    """Into `out`: the neighbours' sum, in multiples of the smallest weight; `lines` is scratch.

    The weights of an image times 12, [1 2 1; 2 0 2; 1 2 1], are an outer product but for the
    middle, which gets 4 here and cancels later: additions instead of a convolution, which for one
    channel takes several times as long.
    """
    if x.ndim == 3:
        out.zero_()
        out[..., 1:] += x[..., :-1]
        out[..., :-1] += x[..., 1:]
        return out
    torch.mul(x, 2, out=lines)
    lines[..., 1:] += x[..., :-1]
    lines[..., :-1] += x[..., 1:]
    torch.mul(lines, 2, out=out)
    out[..., 1:, :] += lines[..., :-1, :]
    out[..., :-1, :] += lines[..., 1:, :]
    return out


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[R, C, 1, ...]: inner products over the positions."""
    rows = a.shape[0] * a.shape[1]
    products = torch.bmm(a.view(rows, 1, -1), b.view(rows, -1, 1))
    return products.view(*a.shape[:2], *[1] * (a.ndim - 2))


def _need_neighbours(fill: str, x: Tensor) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(
            f"fill {fill!r} needs neighbours, inputs [C, T] or [C, H, W]; these are "
            f"{list(x.shape[1:])}: choose the fill 'baseline', 'mean' or 'uniform'"
        )
