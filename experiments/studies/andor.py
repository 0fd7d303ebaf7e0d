"""ANDOR: do saliency maps rank what a logical formula needs above what it cannot need?

Schwenke & Atzmueller, "Saliency Methods are Encoders" (arXiv 2412.16204). Inputs are symbols, the
label is a formula of AND, OR and XOR gates, some inputs are irrelevant by construction. For every
sample the minimal sufficient sets of inputs are known, so a map can be held against the truth.

    for each fold:  dataset → trained → attributed (one per method) → scores
                                          └→ inputs that score low are masked → retrained → scores

The models of all folds are trained as one stack, and so are all that are retrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments import lazy, models, scoring
from experiments.cells import Cells, Chosen, choose
from experiments.choices import Methods, Model, Scores, Spec, unusual
from experiments.data.andor import MASK_VALUE, AndorSpec, truth_of
from experiments.data.dataset import Dataset, Split
from experiments.randomness import derive_seed
from experiments.rows import Explained, label, rows
from experiments.stages import Artifact, checkpoint, runtime, stage
from experiments.studies import Table, define
from experiments.training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.evaluation import Evaluation
    from experiments.training import loop, stacked
else:
    torch = lazy.load("torch")
    loop = lazy.load("experiments.training.loop")
    stacked = lazy.load("experiments.training.stacked")

VERSION = 2
PRELOAD = (
    "torch", "torch._dynamo", "torch.fx", "scipy.stats", "sklearn.model_selection",
    "pyarrow.parquet", "experiments.evaluation", "experiments.attribution.batch",
    "experiments.attribution.lrp", "experiments.attribution.multipliers", "experiments.models.tail",
    "experiments.models.andor", "experiments.training.stacked_group",
)  # fmt: skip

# Models trained at once. A measured number would be faster by a little on some machines, and make
# the last digits of a result depend on the load of the machine.
STACK = 64
BACKGROUND = 1024  # rows that stand for the data, where a method compares with it

Threshold = float | Literal["baseline"]


class Config(BaseModel):
    """One experiment: one formula, one architecture, many methods, many scores.

    Attributes:
        data: which formula over which symbols; see `AndorSpec`.
        model: an architecture by name, with parameters.
        training: how it is trained; see `Recipe`.
        methods, scores: names, or mappings with a `name` and parameters; `assay methods` and
            `assay scores` list them. A dotted path `package.module:function` is a method, too.
        target: explain the class that the model predicts, or the true one.
        baseline: the value that stands for a missing input. Zero is no symbol of a binary
            alphabet, and lies between the two.
        folds: how many models are trained, each on its own fold; without a test size all folds
            have all rows, and differ by their seed.
        retrain: train the architecture (and a random forest, with `forest`) anew on rows masked
            by each method's maps, at each of the `thresholds`. Without, scores of retrained
            models are left out, and the result says so.
        seed: of the weights, the order of batches, and every random draw.
    """

    model_config = ConfigDict(extra="forbid")

    data: AndorSpec = AndorSpec()
    model: Model = {"name": "andor_cnn"}
    training: Recipe = Recipe.model_validate({})
    methods: Methods = ["integrated_gradients", "random"]
    scores: Scores = ["nib"]
    target: Literal["predicted", "true"] = "predicted"
    baseline: float = 0.0
    dtype: Literal["float32", "float64"] = "float64"
    folds: Annotated[int, Field(ge=1)] = 1
    retrain: bool = False
    forest: bool = False
    thresholds: Annotated[list[Threshold], Field(min_length=1)] = ["baseline", 1.0, 0.8, 0.5]
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _what_scores_need(self) -> Config:
        """Found out now, and not after hours of training."""
        for spec in self.scores if self.retrain else ():
            score = scoring.resolve(spec)
            wanted = retraining_needed(score)
            if wanted == "forest" and not self.forest:
                raise ValueError(f"score {score.name!r} needs retrained forests: set forest: true")
            missing = set(getattr(score, "thresholds", ())) - set(self.thresholds)
            if wanted and missing:
                shown = ", ".join(sorted(map(str, missing)))
                raise ValueError(
                    f"score {score.name!r} has thresholds at which nothing is retrained: {shown}; "
                    "add them to `thresholds`, or set those of the score"
                )
        return self


def retraining_needed(score: scoring.Score) -> str | None:
    """ "network" or "forest", if the score is about models trained on masked inputs."""
    if score.name in ("forest_accuracy", "forest_importance"):
        return "forest"
    if "retraining" in score.needs or getattr(score, "labels", None) == "retrained":
        return str(getattr(score, "model", "network"))
    return None


# ---- stages ----------------------------------------------------------------------------------


@stage(version="1", device=False)
def dataset(*, spec: dict[str, Any]) -> dict[str, Any]:
    """All rows of the formula with their minimal sufficient sets."""
    from experiments.data.andor import generate

    return generate(spec).state()


@stage(version="3")
def trained(
    *,
    data: dict[str, Any],
    model: Spec,
    training: dict[str, Any],
    seed: int,
    order: int,
    dtype: str,
) -> dict[str, Any]:
    """A model's weights, with its accuracy and its predictions on the test rows."""
    samples = _dataset(data)
    network = _network(samples, model, seed, dtype)
    history = loop.fit(
        network, samples.train, samples.validation, recipe=Recipe.model_validate(training),
        seed=derive_seed("training", seed), order_seed=order, checkpoint=checkpoint(),
    )  # fmt: skip
    return _outcome(network, history, loop.evaluate(network, samples.test))


@stage(version="3")
def attributed(
    *, data: dict[str, Any], model: dict[str, Any], subject: dict[str, Any], method: Spec,
    rows: str, code: str | None,
) -> Tensor:  # fmt: skip
    """Raw, signed maps [N, D] of the test rows, or of all the "other" ones."""
    return _evaluated(data, model, subject, rows, methods=[method]).maps[0].cpu()


@stage(version="2")
def scored(
    *, data: dict[str, Any], model: dict[str, Any], maps: Tensor, subject: dict[str, Any],
    method: Spec, rows: str, score: Spec, code: str | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measurements of a score that runs the model, as `Measurement.state` gives them."""
    found = _evaluated(
        data, model, subject, rows, methods=[method], scores=[score], known={0: maps}
    )
    return [measurement.state() for measurement in found.measurements[0][0] or []]


@stage(version="1")
def retrained(
    *, data: dict[str, Any], maps: Tensor, others: Tensor, subject: dict[str, Any],
    training: dict[str, Any], thresholds: list[Threshold], order: int,
) -> dict[str, Any]:  # fmt: skip
    """Per threshold, what the architecture makes of the test rows after it was trained on rows
    in which only what the maps score above the threshold is visible."""
    (found,) = _retrained([(data, maps, others, subject)], training, thresholds, order)
    return found


@stage(version="1", device=False)
def forests(
    *, data: dict[str, Any], maps: Tensor, others: Tensor, thresholds: list[Threshold], seed: int
) -> dict[str, Any]:
    """The same of a random forest; "all" is one that sees everything."""
    from experiments.models import forest

    samples = _dataset(data)
    whole = forest.fit(samples.train, seed=seed)
    found = {"all": whole.predict(samples.test.x), "importances": whole.importances}
    for threshold in thresholds:
        masked = _masked(samples, maps, others, threshold)
        found[str(threshold)] = forest.fit(masked.train, seed=seed).predict(masked.test.x)
    return found


# ---- the study -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """One fold of the data, and the model that was trained on it."""

    number: int
    seed: int
    data: Artifact
    model: Artifact


def study(config: Config) -> tuple[Table, dict[str, Any]]:
    """Rows for every fold, method and score, and facts about the models."""
    kind = models.resolve(config.model)[0].kind
    methods = choose(config.methods)
    fit = [chosen for chosen in methods if chosen.method.applies_to(kind)]
    asked = [scoring.resolve(spec) for spec in config.scores]
    scores = [score for score in asked if config.retrain or not retraining_needed(score)]
    folds = _folds(config)
    cells = [_cells(config, fold, fit, scores) for fold in folds]
    masked = _after_masking(config, folds, cells, fit) if config.retrain else {}
    table: list[dict[str, Any]] = []
    for fold, of_fold in zip(folds, cells, strict=True):
        context = _context(fold, config.seed)
        for m, (chosen, maps) in enumerate(zip(fit, of_fold.maps, strict=True)):
            context.retrained = _predictions(masked, fold.number, m)
            if "forest" in masked:
                found = masked["forest"][fold.number, m].value["importances"]
                context.meta = {**context.meta, "forest_importance": found}
            explained = _explained(config, fold, chosen, maps)
            for score, measurements in of_fold.measured(m, context):
                table += rows(explained, score, measurements)
    left_out = {
        label(chosen.method.name, chosen.given): f"not for a {kind}"
        for chosen in methods
        if chosen not in fit
    }
    left_out |= {score.name: "needs retrain: true" for score in asked if score not in scores}
    outcomes = [fold.model.value for fold in folds]
    facts = {key: [outcome[key] for outcome in outcomes] for key in ("accuracy", "epochs")}
    if len(folds) == 1:
        facts = {key: values[0] for key, values in facts.items()}
    return table, {"model": facts, "not_applicable": left_out}


def _folds(config: Config) -> list[Fold]:
    """The models of all folds, trained together where some are missing."""
    training = config.training.model_dump(mode="json")
    seeds, data, calls = [], [], []
    for number in range(config.folds):
        fold = number if config.data.test_size > 0 else 0
        spec = config.data if number == 0 else config.data.model_copy(update={"fold": fold})
        seeds.append(config.seed if number == 0 else derive_seed("fold", config.seed, number))
        data.append(dataset(spec=spec.model_dump(mode="json")))
        calls.append(
            {
                "data": data[-1], "model": config.model, "training": training,
                "seed": seeds[-1], "order": config.seed, "dtype": config.dtype,
            }
        )  # fmt: skip

    def work(missing: list[int]) -> list[dict[str, Any]]:
        samples = [_dataset(data[f].value) for f in missing]
        networks = [
            _network(of_fold, config.model, seeds[f], config.dtype)
            for f, of_fold in zip(missing, samples, strict=True)
        ]
        histories = stacked.fit_many(
            networks, [s.train for s in samples], [s.validation for s in samples],
            recipe=config.training, seeds=[derive_seed("training", seeds[f]) for f in missing],
            order_seed=config.seed, checkpoint=checkpoint(), stack=STACK,
        )  # fmt: skip
        tested = stacked.evaluate_many(networks, [s.test for s in samples])
        return [_outcome(*each) for each in zip(networks, histories, tested, strict=True)]

    fitted = [trained(**calls[0])] if config.folds == 1 else trained.together(calls, work)
    return [Fold(f, seeds[f], data[f], fitted[f]) for f in range(config.folds)]


def _cells(
    config: Config, fold: Fold, methods: Sequence[Chosen], scores: Sequence[scoring.Score]
) -> Cells:
    subject = _subject(config, fold)

    def evaluate(**what: Any) -> Evaluation:
        return _evaluated(fold.data.value, fold.model.value, subject, "test", **what)

    common = {"data": fold.data, "model": fold.model, "subject": subject, "rows": "test"}
    return Cells(common, attributed, scored, evaluate, methods, scores)


def _after_masking(
    config: Config, folds: Sequence[Fold], cells: Sequence[Cells], methods: Sequence[Chosen]
) -> dict[str, dict[tuple[int, int], Artifact]]:
    """Per kind of model, (fold, method): what was trained on masked rows."""
    inputs = {}
    for fold, of_fold in zip(folds, cells, strict=True):
        others = of_fold.maps if config.data.test_size == 0 else _other_maps(config, fold, methods)
        for m, (maps, more) in enumerate(zip(of_fold.maps, others, strict=True)):
            inputs[fold.number, m] = {"data": fold.data, "maps": maps, "others": more}
    common: dict[str, Any] = {
        "training": config.training.model_dump(mode="json"),
        "thresholds": config.thresholds,
        "order": config.seed,
    }
    calls = [
        {**each, **common, "subject": _subject(config, folds[f])} for (f, _), each in inputs.items()
    ]

    def work(missing: list[int]) -> list[dict[str, Any]]:
        chosen = [calls[position] for position in missing]
        tasks = [
            (call["data"].value, call["maps"].value, call["others"].value, call["subject"])
            for call in chosen
        ]
        return _retrained(tasks, **common)

    group = max(1, STACK // len(config.thresholds))
    found = {"network": retrained.together(calls, work, group=group)}
    if config.forest:
        found["forest"] = [
            forests(**each, thresholds=config.thresholds, seed=folds[f].seed)
            for (f, _), each in inputs.items()
        ]
    return {kind: dict(zip(inputs, results, strict=True)) for kind, results in found.items()}


def _other_maps(config: Config, fold: Fold, methods: Sequence[Chosen]) -> list[Artifact]:
    """The maps of the rows that are not tested, by method."""
    subject = _subject(config, fold)

    def evaluate(**what: Any) -> Evaluation:
        return _evaluated(fold.data.value, fold.model.value, subject, "others", **what)

    common = {"data": fold.data, "model": fold.model, "subject": subject, "rows": "others"}
    return Cells(common, attributed, scored, evaluate, methods, ()).maps


# ---- what the stages do ----------------------------------------------------------------------


def _subject(config: Config, fold: Fold) -> dict[str, Any]:
    """Which outputs of which model are explained, against what."""
    return {
        "architecture": config.model, "target": config.target, "baseline": config.baseline,
        "seed": fold.seed, "dtype": config.dtype,
    }  # fmt: skip


def _evaluated(
    data: dict[str, Any], model: dict[str, Any], subject: dict[str, Any], rows: str, **what: Any
) -> Evaluation:
    """The engine on rows of a trained model."""
    from experiments.evaluation import evaluate

    samples = _dataset(data)
    network = _network(samples, subject["architecture"], subject["seed"], subject["dtype"])
    network.load_state_dict(model["weights"])
    device = next(network.parameters()).device
    split = samples.test if rows == "test" else _others(samples)
    tested = rows == "test"
    prediction = model["prediction"] if tested else loop.evaluate(network, split).prediction
    classes = prediction if subject["target"] == "predicted" else split.y
    return evaluate(
        network, split.x.to(device), split.y.to(device), target=classes.to(device),
        baseline=subject["baseline"], seed=derive_seed("attribution", subject["seed"]),
        indices=split.index.tolist(), prediction=prediction.to(device),
        truth=samples.truth if tested else truth_of(samples, split.x), meta=samples.meta,
        background=samples.train.x[:BACKGROUND].to(device), **what,
    )  # fmt: skip


def _retrained(
    tasks: Sequence[tuple[dict[str, Any], Tensor, Tensor, dict[str, Any]]],
    training: dict[str, Any],
    thresholds: Sequence[Threshold],
    order: int,
) -> list[dict[str, Any]]:
    """For each (data, maps, other maps, subject) the outcome per threshold, all trained at once.

    All models of a fold start from the same weights and see the rows in the same order, so that
    only the masks differ. Where these are the same, as a constant map's at every threshold, one
    model stands for all.
    """
    masked: list[Dataset] = []
    networks: list[torch.nn.Module] = []
    seeds: list[int] = []
    number: list[int] = []  # per task and threshold, that of its model
    for data, maps, others, subject in tasks:
        samples = _dataset(data)
        seed = derive_seed("retrained", subject["seed"])
        first = len(networks)
        for threshold in thresholds:
            hidden = _masked(samples, maps, others, threshold)
            alike = (k for k in range(first, len(networks)) if _same_rows(masked[k], hidden))
            number.append(next(alike, len(networks)))
            if number[-1] == len(networks):
                masked.append(hidden)
                networks.append(_network(samples, subject["architecture"], seed, subject["dtype"]))
                seeds.append(derive_seed("training", seed))
    histories = stacked.fit_many(
        networks, [m.train for m in masked], [m.validation for m in masked],
        recipe=Recipe.model_validate(training), seeds=seeds, order_seed=order,
        checkpoint=checkpoint(), stack=STACK,
    )  # fmt: skip
    tested = stacked.evaluate_many(networks, [m.test for m in masked])
    outcomes = [
        {
            "accuracy": evaluation.accuracy,
            "prediction": evaluation.prediction,
            "epochs": len(history.train_loss),
        }
        for history, evaluation in zip(histories, tested, strict=True)
    ]
    models = iter(number)
    return [{str(threshold): outcomes[next(models)] for threshold in thresholds} for _ in tasks]


def _same_rows(left: Dataset, right: Dataset) -> bool:
    splits = ("train", "validation", "test")
    return all(torch.equal(getattr(left, s).x, getattr(right, s).x) for s in splits)


def _masked(samples: Dataset, maps: Tensor, others: Tensor, threshold: Threshold) -> Dataset:
    """The data with every input hidden that its row's map does not score above the threshold."""
    from experiments.scoring.logic import kept

    assert samples.truth is not None
    rest = _others(samples)
    index = torch.cat([samples.test.index, rest.index])
    known = torch.cat([maps, others]) if len(rest) else maps
    visible = kept(known, threshold, samples.truth.irrelevant)
    order = index.argsort()

    def hide(split: Split) -> Split:
        row = order[torch.searchsorted(index[order], split.index)]
        return Split(split.x.masked_fill(~visible[row], MASK_VALUE), split.y, split.index)

    return Dataset(
        hide(samples.train), hide(samples.validation), hide(samples.test), samples.n_classes
    )


def _others(samples: Dataset) -> Split:
    """The distinct rows that are trained or validated on, and not tested."""
    x, y, index = (
        torch.cat([getattr(samples.train, part), getattr(samples.validation, part)])
        for part in ("x", "y", "index")
    )
    row = dict(zip(index.tolist(), range(len(index)), strict=True))
    for tested in samples.test.index.tolist():
        row.pop(tested, None)
    rows = torch.tensor([row[i] for i in sorted(row)], dtype=torch.int64)
    return Split(x[rows], y[rows], index[rows])


def _predictions(
    masked: dict[str, dict[tuple[int, int], Artifact]], fold: int, method: int
) -> dict[tuple[str, Any], Tensor]:
    """Per model and threshold, as scores look for them."""
    found: dict[tuple[str, Any], Tensor] = {}
    for kind, results in masked.items():
        for name, outcome in results[fold, method].value.items():
            if name == "importances":
                continue
            threshold = name if name in ("baseline", "all") else float(name)
            found[kind, threshold] = outcome if kind == "forest" else outcome["prediction"]
    return found


def _context(fold: Fold, seed: int) -> scoring.Context:
    """What scores that look at maps alone may know."""
    samples = _dataset(fold.data.value)
    return scoring.Context(
        x=samples.test.x,
        y=samples.test.y,
        prediction=fold.model.value["prediction"],
        truth=samples.truth,
        meta=samples.meta,
        seed=seed,
        indices=samples.test.index.tolist(),
    )


def _explained(config: Config, fold: Fold, chosen: Chosen, maps: Artifact) -> Explained:
    """What the rows of a method on a fold have in common."""
    return Explained(
        study="andor",
        dataset=_dataset_name(config.data),
        model=config.model | unusual(Config(), training=config.training, dtype=config.dtype),
        seed=config.seed,
        fold=fold.number,
        method=chosen.method.name,
        method_params={**chosen.given}
        | unusual(Config(), target=config.target, baseline=config.baseline),
        library=chosen.method.origin,
        family=chosen.method.family,
        model_accuracy=fold.model.value["accuracy"],
        data_key=fold.data.key,
        model_key=fold.model.key,
        map_key=maps.key,
    )


def _outcome(network: Any, history: Any, tested: Any) -> dict[str, Any]:
    return {
        "weights": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
        "accuracy": tested.accuracy,
        "prediction": tested.prediction.cpu(),
        "epochs": len(history.train_loss),
        "stopped": history.stopped,
    }


def _dataset(state: dict[str, Any]) -> Dataset:
    return Dataset.from_state(state)


def _network(samples: Dataset, model: Spec, seed: int, dtype: str) -> torch.nn.Module:
    inputs = samples.test.x.shape[1]
    network = models.build(
        model, inputs=inputs, classes=samples.n_classes, seed=seed, dtype=getattr(torch, dtype)
    )
    return network.to(runtime().device)


def _dataset_name(spec: AndorSpec) -> str:
    """`2inBinary/and`: inputs per gate, alphabet, top-level gate; then what else is not usual."""
    alphabet = {2: "Binary", 4: "Quaternary"}.get(spec.symbols, f"{spec.symbols}ary")
    arities = {spec.and_arity, spec.or_arity, spec.xor_arity}
    inputs = "-".join(str(arity) for arity in sorted(arities))
    said = {"symbols", "and_arity", "or_arity", "xor_arity", "toplevel"}
    usual = AndorSpec()
    given = {
        name: value
        for name, value in spec.model_dump(mode="json").items()
        if name not in said and getattr(spec, name) != getattr(usual, name)
    }
    return label(f"{inputs}in{alphabet}/{spec.toplevel}", given)


ex = define("andor", Config, study, __file__)

if __name__ == "__main__":
    ex.run_commandline()
