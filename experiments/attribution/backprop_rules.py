"""Gradients with a rule of their own for ReLUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.registry import RECTIFIED, method
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.attribution import interception
    from experiments.attribution.batch import Batch
else:
    interception = lazy.load("experiments.attribution.interception")

Start = Literal["one", "output"]


@method(
    "guided_backprop",
    library="assay",
    peer="captum",
    family="gradient",
    passes="1 FB",
    models=RECTIFIED,
    source="Springenberg et al. 2015",
)
def guided_backprop(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    start: Start = "one",
) -> Tensor:
    """Gradient that passes a ReLU only where it is positive (Springenberg et al. 2015, section 3).

    R_in = 1[a > 0] · 1[R_out > 0] · R_out at every ReLU: module, function or in place. Other
    activations keep their derivative, so that without ReLUs this is the gradient.
    start: what goes back from the output: 1, or the output itself (as innvestigate does), whose
        sign decides what counts as positive.
    Raises ValueError for a compiled model, whose ReLUs cannot be seen.
    """
    return _with(interception.guided, "guided_backprop", batch, start)


@method(
    "deconvolution",
    library="assay",
    peer="captum",
    family="gradient",
    passes="1 FB",
    models=RECTIFIED,
    aliases=("deconvnet",),
    source="Zeiler & Fergus 2014",
)
def deconvolution(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    start: Start = "one",
) -> Tensor:
    """ReLU applied to the gradient instead of the activation (Zeiler & Fergus 2014, section 2.1).

    R_in = 1[R_out > 0] · R_out at every ReLU, whatever its input was. Parameters and errors are
    those of `guided_backprop`.
    """
    return _with(interception.deconvolved, "deconvolution", batch, start)


def _with(rule: interception.Backward, name: str, batch: Batch, start: Start) -> Tensor:
    interception.refuse_compiled(name, batch.model)
    maps, outputs = interception.gradient_by(
        rule, batch.model, batch.x, batch.target, by_output=start == "output"
    )
    batch.once("outputs", lambda: outputs, per_target=False)
    return maps
