"""Products of per-example gradients, and solutions of (H + λI) v = g for many g at once.

H is the Hessian of the mean loss over the samples that the weights were fitted on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments import passes
from experiments.examples.layers import exact_kernels

if TYPE_CHECKING:
    from experiments.examples.problem import Examples, Side

Map = Callable[[Tensor], Tensor]

FEW = 1000  # weights up to which the exact solution costs less than the iterations
MANY = 4096  # weights beyond which a dense Hessian is no longer reasonable
RESIDUAL = 1e-3  # of an exact solution, relative: more means a singular matrix


def products(
    examples: Examples,
    transform: Map = lambda gradients: gradients,
    *,
    cosine: bool = False,
    checkpoint: int | None = None,
) -> Tensor:
    """[N_test, N_train]: dot products of gradients, those of the smaller side transformed.

    `transform` maps [M, P] to [M, P] and stands for a symmetric matrix, so that either side will
    do. Blocks of the smaller side are held while the larger one streams by.
    """
    held: Side = "test"
    streamed: Side = "train"
    if len(examples.x["test"]) > len(examples.x["train"]):
        held, streamed = streamed, held

    def gradients(side: Side, rows: slice) -> Tensor:
        found = examples.gradients(side, rows, checkpoint)
        return torch.nn.functional.normalize(found, dim=1) if cosine else found

    blocks = []
    for rows in examples.blocks(held):
        left = transform(gradients(held, rows))
        parts = [left @ gradients(streamed, other).T for other in examples.blocks(streamed)]
        blocks.append(torch.cat(parts, 1))
    found = torch.cat(blocks)
    return found if held == "test" else found.T


def hessian_product(
    examples: Examples, vectors: Tensor, x: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    """H v for each v of `vectors` [M, P], of the mean loss over x (over `fitted_on` by default).

    The derivative of ∇L·v (Pearlmutter 1994): the graph of ∇L is built once for all vectors.
    """
    if x is None:
        x, y = examples.fitted_x, examples.fitted_y
    rows = examples.batch_size or passes.rows_per_pass(examples.model, x)
    at_once = max(1, rows // min(rows, len(x)))
    total = torch.zeros_like(vectors)
    for part in torch.arange(len(x), device=x.device).split(rows):
        with examples.untouched(), exact_kernels(examples.model), torch.enable_grad():
            weights = examples.vector().requires_grad_()
            loss = examples.loss(weights, x[part], None if y is None else y[part]).sum() / len(x)
            (slope,) = torch.autograd.grad(loss, weights, create_graph=True)
            if not slope.requires_grad:  # a loss without curvature
                continue
            products = [
                torch.autograd.grad(slope, weights, some, retain_graph=True, is_grads_batched=True)[
                    0
                ]
                for some in vectors.split(at_once)
            ]
        total += torch.cat(products)
    return total


def exact(examples: Examples, damping: float) -> Map:
    """The solution by the dense Hessian, formed once. Raises ValueError if it is singular."""
    size = examples.size
    if size > MANY:
        raise ValueError(
            f"example method 'influence': solver 'exact' forms a Hessian of {size}² numbers; "
            f"take solver 'cg', or fewer weights (at most {MANY})"
        )
    identity = torch.eye(size, dtype=examples.vector().dtype, device=examples.vector().device)
    hessian = examples.once("hessian", lambda: hessian_product(examples, identity))
    matrix = (hessian + hessian.T) / 2 + damping * identity

    def solve(gradients: Tensor) -> Tensor:
        found, broken = torch.linalg.solve_ex(matrix, gradients.T)
        error = (matrix @ found - gradients.T).norm(dim=0)
        if broken.any() or not (error <= RESIDUAL * gradients.norm(dim=1)).all():
            raise ValueError(
                f"example method 'influence': the Hessian with damping {damping} is singular; "
                "raise damping"
            )
        return found.T

    return solve


def conjugate_gradients(
    examples: Examples, damping: float, tolerance: float, iterations: int
) -> Map:
    """The solution by conjugate gradients, for all right sides together.

    Raises ValueError at a direction of negative curvature, and if it does not converge.
    """

    def solve(gradients: Tensor) -> Tensor:
        found = torch.zeros_like(gradients)
        residual = gradients.clone()
        direction = residual.clone()
        square = residual.square().sum(1)
        goal = tolerance**2 * square
        for _ in range(iterations):
            active = square > goal
            if not active.any():
                return found
            d, r, s = direction[active], residual[active], square[active, None]
            image = hessian_product(examples, d) + damping * d
            curved = (d * image).sum(1, keepdim=True)
            _refuse_negative(curved, d, damping)
            found[active] += s / curved * d
            residual[active] = r - s / curved * image
            square = residual.square().sum(1)
            direction[active] = residual[active] + square[active, None] / s * d
        if (square > goal).any():
            worst = (square / goal).max().sqrt().item() * tolerance
            raise ValueError(
                f"example method 'influence': after {iterations} iterations of 'cg' the residual "
                f"is {worst:.1e}, above {tolerance}; raise damping, iterations or tolerance"
            )
        return found

    return solve


def _refuse_negative(curved: Tensor, direction: Tensor, damping: float) -> None:
    curvature = (curved / direction.square().sum(1, keepdim=True)).min().item()
    if not curvature > 0:
        raise ValueError(
            f"example method 'influence': with damping {damping} the curvature along a direction "
            f"is {curvature:.2g}; for solver 'cg' raise damping above {damping - curvature:.2g}"
        )


def lissa(examples: Examples, damping: float, scale: float, depth: int, rows: int) -> Map:
    """The truncated Neumann series of Agarwal et al. (2017), for all right sides together.

    The samples of each step are drawn with replacement and are the same for all right sides, since
    the recursion is linear. Raises ValueError if it diverges.
    """
    x, y = examples.fitted_x, examples.fitted_y

    def solve(gradients: Tensor) -> Tensor:
        drawn = examples.shared_generator("lissa").uniform(depth, rows)[0]
        found = gradients.clone()
        for step in (drawn * len(x)).long().to(x.device):
            labels = None if y is None else y[step]
            curved = hessian_product(examples, found, x[step], labels)
            found = gradients + (1 - damping / scale) * found - curved / scale
        if not found.isfinite().all():
            raise ValueError(
                f"example method 'influence': solver 'lissa' diverges with scale {scale}; raise "
                "it above the largest eigenvalue of the Hessian"
            )
        return found / scale

    return solve
