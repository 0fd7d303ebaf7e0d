"""DeepLIFT: how the difference from a reference is passed back through a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.attribution.path_methods import background
from experiments.attribution.references import CONSTANT, Reference, data, references
from experiments.attribution.registry import RECTIFIED, method
from experiments.randomness import SampleGenerators
from experiments.specs import Count, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution import interception, multipliers, reveal_cancel
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    interception = lazy.load("experiments.attribution.interception")
    multipliers = lazy.load("experiments.attribution.multipliers")
    reveal_cancel = lazy.load("experiments.attribution.reveal_cancel")


@method(
    "deeplift",
    library="assay",
    peer="captum",
    family="gradient",
    passes="1 FB, and 1 F for the baseline",
    models=RECTIFIED,
    aliases=("deeplift_rescale",),
    source="Shrikumar et al. 2017",
)
def deeplift(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
) -> Tensor:
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017, section 3.5.1).

    A nonlinear function passes back Δy / Δx instead of its derivative (Δ: difference from the
    baseline), a maximum what it changed by to where it stands; sums to f(x) − f(baseline).
    Explain logits: there is no rule for softmax, for layer norm and for products of inputs, as in
    attention. Raises ValueError if the map does not sum to that difference (the model has such
    functions), and for a compiled model.
    """
    interception.refuse_compiled("deeplift", model)
    recording = batch.once(
        "deeplift baseline", lambda: multipliers.record(model, baseline[None]), per_model=True
    )

    def explain(part: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return multipliers.rescale("deeplift", model, part, classes, [(baseline, recording)])

    maps, outputs = passes.in_passes(explain, model, x, target)
    batch.once("outputs", lambda: outputs, per_target=False)
    return maps


@method(
    "deeplift_reveal_cancel",
    library="assay",
    family="gradient",
    passes="2 FB, and 1 F for the baseline",
    models=RECTIFIED,
    aliases=("deeplift_rc",),
    source="Shrikumar et al. 2017",
)
def deeplift_reveal_cancel(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
) -> Tensor:
    """DeepLIFT with the RevealCancel rule (Shrikumar et al. 2017, section 3.5.3).

    An activation gets positive and negative contributions Δx⁺, Δx⁻ apart, and
    Δy⁺ = ½ (f(x₀ + Δx⁺) − f(x₀)) + ½ (f(x₀ + Δx⁺ + Δx⁻) − f(x₀ + Δx⁻)), passed back by
    Δy⁺ / Δx⁺; Δy⁻ likewise: Shapley values of the two. Maxima have the rescale rule.
    Sums to f(x) − f(baseline); errors are those of `deeplift`, and ValueError for a linear layer
    that is neither nn.Linear nor a convolution.
    """
    interception.refuse_compiled("deeplift_reveal_cancel", model)
    recording = batch.once(
        "reveal-cancel baseline",
        lambda: multipliers.record(model, baseline[None], reveal_cancel.LINEAR),
        per_model=True,
    )

    def explain(part: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return reveal_cancel.reveal_cancel(model, part, classes, baseline, recording)

    maps, outputs = passes.in_passes(explain, model, x, target)
    batch.once("outputs", lambda: outputs, per_target=False)
    return maps


@method(
    "deep_shap",
    library="assay",
    peer="captum",
    family="gradient",
    passes="1 F + `samples` B, and `samples` F for the references",
    models=RECTIFIED,
    stochastic=True,
    aliases=("deeplift_shap",),
    source="Lundberg & Lee 2017",
)
def deep_shap(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 10,
    reference: Reference = "shuffled",
    scale: Positive = 1.0,
) -> Tensor:
    """Mean of DeepLIFT (rescale) over references (Lundberg & Lee 2017, section 4.2).

    reference, scale: how they are made; see `references.Reference`. With "data" all samples share
        `samples` rows of the background data (all of it if there are no more), drawn once;
        otherwise each sample has its own, and one that never varies is used once.
    Sums to f(x) − mean f(reference). Errors are those of `deeplift`.
    """
    interception.refuse_compiled("deep_shap", model)
    count = 1 if reference in CONSTANT else samples

    def record(starts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        return ((start, multipliers.record(model, start)) for start in starts)

    def of_each(part: Tensor, classes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        own = generator.subset(slice(int(rows[0]), int(rows[-1]) + 1))
        starts = references(
            reference, part, baseline, own, count=count, scale=scale, background=None
        )
        return multipliers.rescale("deep_shap", model, part, classes, record(starts))

    def of_all(part: Tensor, classes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return multipliers.rescale("deep_shap", model, part, classes, shared)

    shared = _shared(batch, samples) if reference == "data" else []
    explain = of_all if reference == "data" else of_each
    maps, outputs = passes.in_passes(explain, model, x, target, torch.arange(len(x)))
    batch.once("outputs", lambda: outputs, per_target=False)
    return maps


def _shared(batch: Batch, most: int) -> list[tuple[Tensor, Any]]:
    """Up to `most` rows of the background data with their recordings, the same for all samples."""

    def compute() -> list[tuple[Tensor, Any]]:
        rows = data(background(batch), batch.x)
        if len(rows) > most:
            stream = SampleGenerators(batch.seed, [0], "deep_shap/background")
            order = stream.uniform(len(rows))[0].argsort()
            rows = rows[order[:most].sort().values.to(rows.device)]
        recording = multipliers.record(batch.model, rows)
        return list(zip(rows, recording.one_by_one(), strict=True))

    return batch.once(("deep_shap background", most), compute, per_target=False)
