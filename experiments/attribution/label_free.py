"""Explanations of representations, for models that have no classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.attribution.registry import method as attribution_method
from experiments.attribution.registry import resolve
from experiments.randomness import SampleGenerators
from experiments.specs import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution import driver
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    driver = lazy.load("experiments.attribution.driver")

SOURCE = "Crabbé & van der Schaar 2022"


@attribution_method(
    "label_free",
    library="assay",
    family="wrapper",
    passes="1 F + those of `method`",
    stochastic=True,
    source=SOURCE,
)
def label_free(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    method: str | dict[str, Any] = "integrated_gradients",
) -> Tensor:
    """What `method` says of g(x̃) = ⟨f(x), f(x̃)⟩, f(x) held fixed: which inputs make the latent.

    After Crabbé & van der Schaar (2022). The target plays no role; the weights of the outputs
    are the outputs themselves. Outputs [B, ...] of more axes count as [B, K], flattened; explicit
    names of layers in `method` then begin with "encoder.". A complete method's map sums to
    ‖f(x)‖² − ⟨f(x), f(baseline)⟩; maps do not change if the latent space is rotated.

    Raises ValueError if `method` is unknown or does not apply to the model.
    """

    def explain() -> Tensor:
        encoder = latent_batch(batch)
        found, _ = resolve(method)
        driver.check(found, encoder.model, encoder.x, encoder.target, encoder.truth)
        return encoder.maps(method)

    # For all targets alike: several classes per sample cost no more than one.
    return batch.once(("label_free", _key(method)), explain, per_target=False)


@attribution_method(
    "label_free_tiled",
    library="assay",
    family="wrapper",
    passes="1 F + `samples` FB",
    stochastic=True,
    source=f"{SOURCE} (code)",
)
def label_free_tiled(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 5,
) -> Tensor:
    """Label-free Gradient SHAP with the latents of the wrong samples, as first published.

    Only to reproduce published numbers: copy r = i·samples + s of sample i in a batch of B is
    explained with the latent of sample r mod B, (x − x̄) ⊙ ∇⟨f(x_{r mod B}), f⟩(x̄ + α(x − x̄)),
    α uniform, averaged over s. So it depends on the batch: give `attribute` the batch_size that
    the numbers were computed with. The right one is
    {name: label_free, method: {name: gradient_shap, ...}}.
    """
    encoder = latent_batch(batch)
    alpha = generator.uniform(samples).to(x).flatten()  # [B·S], sample by sample
    away = (x - baseline).repeat_interleave(samples, 0)
    rows = torch.arange(len(alpha), device=x.device) % len(x)
    along = baseline + alpha.view(-1, *[1] * (x.ndim - 1)) * away
    gradient, _ = passes.gradients(encoder.model, along, encoder.target[rows])
    return (away * gradient).view(len(x), samples, *x.shape[1:]).mean(1)


def latent_batch(batch: Batch) -> Batch:
    """The batch whose explained number is ⟨f(x), f(·)⟩; one per batch, for all label-free maps."""

    def make() -> Batch:
        outputs = batch.outputs()
        if outputs.ndim == 2:
            return batch.at(outputs)
        from experiments.attribution.flat_outputs import FlatOutputs

        flat = batch.under("flat outputs", FlatOutputs(batch.model).eval())
        weights = flat.once("outputs", lambda: outputs.reshape(len(outputs), -1), per_target=False)
        return flat.at(weights)

    return batch.once("label-free batch", make)


def _key(method: str | Mapping[str, Any]) -> str:
    return json.dumps(method, sort_keys=True)
