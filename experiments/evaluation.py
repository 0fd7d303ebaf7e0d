"""One engine owns the passes: methods and scores on the samples of one model, nothing run twice.

The samples go through in batches. A `Batch` remembers what was computed about its samples, so
that a table of methods × scores costs its shared plan and not the sum of its cells: one gradient
for all that are made of it, one backward pass for the CAM family, random masks, perturbed inputs
and randomised weights once for all methods, one removal path for all scores that walk it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments import attribution, lazy, scoring
from experiments.attribution import driver
from experiments.scoring import Context, Measurement, Score

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution.batch import Batch
    from experiments.data.dataset import Truth
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")

Spec = str | Mapping[str, Any]


@dataclass
class Evaluation:
    """What came out, by position of the method and of the score.

    maps          float32 [N, ...] per method
    measurements  [method][score]: a list of measurements; None for a cell nobody wanted
    count         the rows that went through the model
    """

    maps: list[Tensor]
    measurements: list[list[list[Measurement] | None]]
    count: passes.Count


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    methods: Sequence[Spec],
    scores: Sequence[Spec | Score] = (),
    target: Tensor | None = None,
    baseline: Tensor | float | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    prediction: Tensor | None = None,
    truth: Truth | None = None,
    regions: Mapping[str, Tensor] | None = None,
    meta: Mapping[str, Any] | None = None,
    background: Tensor | None = None,
    known: Mapping[int, Tensor] | None = None,
    wanted: Collection[tuple[int, int]] | None = None,
    batch_size: int | None = None,
    channels_last: bool = False,
) -> Evaluation:
    """Run methods and scores on the samples x [N, ...] of true classes y [N].

    Args:
        target: what to explain, as `attribution.attribute` takes it (one per sample); the true
            classes by default.
        known: maps [N, ...] that are there already, by position of their method: not run again.
        wanted: the cells (method, score) to measure; all by default.
        background: samples [M, ...] that stand for the data, as `attribution.attribute` has it.
        prediction, truth, regions, meta: what is known of the samples, see `scoring.Context`.
        channels_last: see `passes.channels_last`; changes the last bits.

    Raises:
        ValueError: whatever a method or a score says of what it was given, naming itself.
    """
    asked = [scoring.resolve(score) for score in scores]
    known = known or {}
    where = y if target is None else target
    resolved = [attribution.resolve(spec)[0] for spec in methods]
    for position, method in enumerate(resolved):
        if position not in known:
            driver.check(method, model, x, where, truth, regions)
    numbers = range(len(x)) if indices is None else [int(index) for index in indices]

    def context(rows: slice, batch: Batch | None, spec: Spec | None) -> Context:
        return Context(
            x=x[rows],
            y=y[rows],
            prediction=None if prediction is None else prediction[rows],
            truth=driver.rows_of(truth, rows),
            regions={role: masks[rows] for role, masks in (regions or {}).items()},
            indices=numbers[rows],
            batch=batch,
            explain=None if spec is None else (lambda other: other.maps(spec).float()),
            seed=seed,
            meta=meta or {},
        )

    cells = [(m, s) for m in range(len(methods)) for s in range(len(asked))]
    cells = [cell for cell in cells if wanted is None or cell in wanted]
    parts: dict[tuple[int, int], list[list[Measurement]]] = {cell: [] for cell in cells}
    maps = [torch.empty(x.shape, dtype=torch.float32, device=x.device) for _ in methods]
    asks_prediction = any("prediction" in score.needs for score in asked)
    predicted: list[Tensor] = []
    needs_batches = (
        len(known) < len(methods)
        or any("model" in score.needs for score in asked)
        or (asks_prediction and prediction is None)
    )
    with (
        driver.untouched(model),
        passes.channels_last(model, channels_last),
        passes.counted(model) as count,
    ):
        for rows, batch in driver.batches(
            model, x, where, baseline=baseline, seed=seed, indices=numbers, truth=truth,
            background=background, regions=regions, batch_size=batch_size,
        ) if needs_batches else ():  # fmt: skip
            for position, spec in enumerate(methods):
                if position in known:
                    batch.remember(spec, known[position][rows])
                found = batch.maps(spec).to(maps[position])
                driver.refuse_broken(resolved[position].name, found, numbers[rows])
                maps[position][rows] = found
                here = context(rows, batch, spec)
                for cell in cells:
                    score = asked[cell[1]]
                    if cell[0] == position and "model" in score.needs:
                        parts[cell].append(score.measure(found, here))
                batch.trim()
            if prediction is None and asks_prediction:
                predicted.append(batch.outputs().argmax(1))
    if predicted:
        prediction = torch.cat(predicted)
    for position, given in known.items():
        maps[position] = given
    for position, score_position in cells:
        if "model" not in asked[score_position].needs:
            measured = asked[score_position].measure(
                maps[position], context(slice(None), None, None)
            )
            parts[position, score_position] = [measured]
    table = [
        [joined(parts[m, s], asked[s].name) if (m, s) in parts else None for s in range(len(asked))]
        for m in range(len(methods))
    ]
    return Evaluation(maps, table, count)


def joined(parts: Sequence[list[Measurement]], name: str) -> list[Measurement]:
    """The measurements of a score on several batches as those on all samples.

    Raises RuntimeError if a score that runs on batches gives something else than a value for
    each of their samples, or other facets for one batch than for another.
    """
    if len(parts) == 1:
        return parts[0]
    found = []
    for same in zip(*parts, strict=True):
        first = same[0]
        samples = [m.samples for m in same]
        if any(m.facets != first.facets for m in same) or any(s is None for s in samples):
            raise RuntimeError(f"score {name!r} cannot be joined over batches")
        whole = Measurement.of(torch.cat([s for s in samples if s is not None]), first.headline)
        whole.facets = first.facets
        found.append(whole)
    return found


def score(
    spec: Spec | Score,
    maps: Tensor,
    x: Tensor,
    *,
    y: Tensor | None = None,
    model: nn.Module | None = None,
    target: Tensor | int | None = None,
    method: Spec | None = None,
    mask: Tensor | None = None,
    regions: Mapping[str, Tensor] | None = None,
    baseline: Tensor | float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    **facts: Any,
) -> list[Measurement]:
    """One score of maps [N, ...] of the samples x [N, ...], for a notebook.

    Args:
        model, target: the model and the outputs that the maps explain, for scores that run it.
        method: the method of the maps, for scores that run it on other inputs.
        mask: bool [N, ...], what the maps should point to; or `regions`, by role and object.
        facts: `prediction`, `truth`, `meta` and `indices`, see `evaluate`.

    Returns the measurements; that with `headline` stands for the score.
    Raises ValueError for an unknown score or parameter, and for whatever it lacks.
    """
    resolved = scoring.resolve(spec)
    if isinstance(target, int):
        target = torch.full((len(x),), target)
    classes = y if y is not None else target
    if classes is None or classes.is_floating_point():
        classes = torch.zeros(len(x), dtype=torch.long)
    if mask is not None:
        regions = {"relevant": mask.bool().unsqueeze(1), **(regions or {})}
    if "model" not in resolved.needs:
        here = Context(x=x, y=classes, regions=regions or {}, seed=seed, **facts)
        return resolved.measure(maps, here)
    if model is None or target is None:
        raise ValueError(f"score {resolved.name!r} runs the model: give `model` and `target`")
    if method is None and "method" in resolved.needs:
        raise ValueError(f"score {resolved.name!r} runs the method on other inputs: give `method`")
    evaluation = evaluate(
        model, x, classes, methods=[method or "random"], scores=[resolved], target=target,
        known={0: maps}, baseline=baseline, seed=seed, regions=regions, batch_size=batch_size,
        **facts,
    )  # fmt: skip
    measured = evaluation.measurements[0][0]
    assert measured is not None
    return measured
