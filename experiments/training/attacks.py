"""Adversarial inputs, to train on and to test with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from experiments import lazy
from experiments.training.recipe import Adversary

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = lazy.load("torch")


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    adversary: Adversary,
    generator: torch.Generator,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Inputs within `epsilon` of x [B, ...], and in [low, high], that raise the loss of classes y.

    "fgsm" takes one step of size epsilon along the sign of the gradient (Goodfellow et al. 2015,
    section 4); "pgd" as many steps as the adversary has, from a start drawn uniformly around x,
    each projected back (Madry et al. 2018, section 2.1). One pass per step, of all B inputs.

    The loss of logits [B, C] and classes [B] is cross-entropy unless another one is given; one
    that is flat, as "clipped_bce" is where the model is sure, leads nowhere, and makes a model
    look more robust than it is. The start comes from `generator`, on the CPU; "fgsm" draws
    nothing. The model is attacked in eval mode: its batch norms do not learn from the attack, and
    what is attacked is the function that will be used. Its mode and gradients are left as they
    were.
    """
    loss = loss or torch.nn.functional.cross_entropy
    training = model.training
    model.eval()
    found, size = x.detach(), adversary.epsilon
    least = (found - size).clamp(min=adversary.low)
    most = (found + size).clamp(max=adversary.high)
    steps = 1
    if adversary.attack == "pgd":
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        found = (found + size * (2 * noise - 1)).clamp(least, most)
        steps, size = adversary.iterations, adversary.step
    for _ in range(steps):
        found.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(model(found), y), found)
        found = (found.detach() + size * gradient.sign()).clamp(least, most)
    model.train(training)
    return found
