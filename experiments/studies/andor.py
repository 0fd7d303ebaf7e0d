"""ANDOR: do saliency maps rank what a logical formula needs above what it cannot need?

Schwenke & Atzmueller, "Saliency Methods are Encoders" (arXiv 2412.16204). Inputs are symbols, the
label is a formula of AND, OR and XOR gates, some inputs are irrelevant by construction. For every
sample the minimal sufficient sets of inputs are known, so a map can be held against the truth.

    dataset → trained → attributed (one per method) → scores
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from experiments import attribution, models, scoring
from experiments.cells import Cells, choose
from experiments.data.andor import AndorSpec
from experiments.randomness import derive_seed
from experiments.rows import Explained, label, rows
from experiments.stages import checkpoint, runtime, stage
from experiments.studies import Table, define
from experiments.training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.evaluation import Evaluation

VERSION = 1
PRELOAD = (
    "torch", "torch._dynamo", "torch.fx", "scipy.stats", "sklearn.model_selection",
    "pyarrow.parquet", "experiments.evaluation", "experiments.attribution.batch",
    "experiments.attribution.lrp",
    "experiments.attribution.multipliers", "experiments.models.tail", "experiments.models.andor",
    "experiments.training.loop",
)  # fmt: skip

Spec = str | dict[str, Any]


def _method(spec: Spec) -> Spec:
    attribution.resolve(spec)
    return spec


def _score(spec: Spec) -> Spec:
    scoring.resolve(spec)
    return spec


def _model(spec: Spec) -> dict[str, Any]:
    models.resolve(spec)
    return {"name": spec} if isinstance(spec, str) else spec


class Config(BaseModel):
    """One experiment: one formula, one trained model, many methods, many scores.

    Attributes:
        data: which formula over which symbols; see `AndorSpec`.
        model: an architecture by name, with parameters.
        training: how it is trained; see `Recipe`.
        methods, scores: names, or mappings with a `name` and parameters; `assay methods` and
            `assay scores` list them. A dotted path `package.module:function` is a method, too.
        target: explain the class that the model predicts, or the true one.
        baseline: the value that stands for a missing input. Zero is no symbol of a binary
            alphabet, and lies between the two.
        seed: of the weights, the order of batches, and every random draw.
    """

    model_config = ConfigDict(extra="forbid")

    data: AndorSpec = AndorSpec()
    model: Annotated[dict[str, Any], BeforeValidator(_model)] = {"name": "andor_cnn"}
    training: Recipe = Recipe.model_validate({})
    methods: Annotated[list[Annotated[Spec, AfterValidator(_method)]], Field(min_length=1)] = [
        "integrated_gradients",
        "random",
    ]
    scores: Annotated[list[Annotated[Spec, AfterValidator(_score)]], Field(min_length=1)] = ["nib"]
    target: Literal["predicted", "true"] = "predicted"
    baseline: float = 0.0
    dtype: Literal["float32", "float64"] = "float64"
    seed: Annotated[int, Field(ge=0)] = 0


@stage(version="1", device=False)
def dataset(*, spec: dict[str, Any]) -> dict[str, Any]:
    """All rows of the formula with their minimal sufficient sets."""
    from experiments.data.andor import generate

    return generate(spec).state()


@stage(version="1")
def trained(
    *, data: dict[str, Any], model: Spec, training: dict[str, Any], seed: int, dtype: str
) -> dict[str, Any]:
    """A model's weights, with its accuracy and its predictions on the test rows."""
    from experiments.training.loop import evaluate, fit

    samples = _dataset(data)
    network = _network(samples, model, seed, dtype)
    history = fit(
        network,
        samples.train,
        samples.validation,
        recipe=Recipe.model_validate(training),
        seed=derive_seed("training", seed),
        checkpoint=checkpoint(),
    )
    evaluation = evaluate(network, samples.test)
    return {
        "weights": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
        "accuracy": evaluation.accuracy,
        "prediction": evaluation.prediction.cpu(),
        "epochs": len(history.train_loss),
        "stopped": history.stopped,
    }


@stage(version="2")
def attributed(
    *, data: dict[str, Any], model: dict[str, Any], subject: dict[str, Any], method: Spec,
    code: str | None,
) -> Tensor:  # fmt: skip
    """Raw, signed maps [N, D] of the test rows."""
    return _evaluated(data, model, subject, methods=[method]).maps[0].cpu()


@stage(version="1")
def scored(
    *, data: dict[str, Any], model: dict[str, Any], maps: Tensor, subject: dict[str, Any],
    method: Spec, score: Spec, code: str | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measurements of a score that runs the model, as `Measurement.state` gives them."""
    found = _evaluated(data, model, subject, methods=[method], scores=[score], known={0: maps})
    return [measurement.state() for measurement in found.measurements[0][0] or []]


def study(config: Config) -> tuple[Table, dict[str, Any]]:
    """Rows for every method and score, and facts about the model."""
    data = dataset(spec=config.data.model_dump(mode="json"))
    model = trained(
        data=data,
        model=config.model,
        training=config.training.model_dump(mode="json"),
        seed=config.seed,
        dtype=config.dtype,
    )
    subject = {
        "architecture": config.model,
        **config.model_dump(mode="json", include={"target", "baseline", "seed", "dtype"}),
    }
    cells = Cells(
        common={"data": data, "model": model, "subject": subject},
        attributed=attributed,
        scored=scored,
        evaluate=lambda **what: _evaluated(data.value, model.value, subject, **what),
    )
    kind = models.resolve(config.model)[0].kind
    methods = choose(config.methods)
    fit = [chosen for chosen in methods if chosen.method.applies_to(kind)]
    scores = [scoring.resolve(spec) for spec in config.scores]
    table: list[dict[str, Any]] = []
    for chosen, maps, score, measurements in cells.measured(
        fit, scores, lambda: _context(data.value, model.value, config.seed)
    ):
        explained = Explained(
            study="andor",
            dataset=_dataset_name(config.data),
            model=config.model | _unusual(training=config.training, dtype=config.dtype),
            seed=config.seed,
            method=chosen.method.name,
            method_params={**chosen.given}
            | _unusual(target=config.target, baseline=config.baseline),
            library=chosen.method.origin,
            family=chosen.method.family,
            model_accuracy=model.value["accuracy"],
            data_key=data.key,
            model_key=model.key,
            map_key=maps.key,
        )
        table += rows(explained, score, measurements)
    facts = {"accuracy": model.value["accuracy"], "epochs": model.value["epochs"]}
    left_out = {
        label(chosen.method.name, chosen.given): f"not for a {kind}"
        for chosen in methods
        if chosen not in fit
    }
    return table, {"model": facts, "not_applicable": left_out}


def _evaluated(
    data: dict[str, Any],
    model: dict[str, Any],
    subject: dict[str, Any],
    **what: Any,
) -> Evaluation:
    """The engine on the test rows of a trained model."""
    from experiments.evaluation import evaluate

    samples = _dataset(data)
    network = _network(samples, subject["architecture"], subject["seed"], subject["dtype"])
    network.load_state_dict(model["weights"])
    test = samples.test
    device = next(network.parameters()).device
    classes = model["prediction"] if subject["target"] == "predicted" else test.y
    return evaluate(
        network, test.x.to(device), test.y.to(device), target=classes.to(device),
        baseline=subject["baseline"], seed=derive_seed("attribution", subject["seed"]),
        indices=test.index.tolist(), prediction=model["prediction"].to(device),
        truth=samples.truth, meta=samples.meta, **what,
    )  # fmt: skip


def _context(data: dict[str, Any], model: dict[str, Any], seed: int) -> scoring.Context:
    """What scores that look at maps alone may know."""
    samples = _dataset(data)
    return scoring.Context(
        x=samples.test.x,
        y=samples.test.y,
        prediction=model["prediction"],
        truth=samples.truth,
        meta=samples.meta,
        seed=seed,
        indices=samples.test.index.tolist(),
    )


def _dataset(state: dict[str, Any]) -> Any:
    from experiments.data.dataset import Dataset

    return Dataset.from_state(state)


def _network(samples: Any, model: Spec, seed: int, dtype: str) -> torch.nn.Module:
    import torch

    inputs = samples.test.x.shape[1]
    network = models.build(
        model, inputs=inputs, classes=samples.n_classes, seed=seed, dtype=getattr(torch, dtype)
    )
    return network.to(runtime().device)


def _unusual(**settings: Any) -> dict[str, Any]:
    """Those that are not at their default: what distinguishes rows in one table."""
    usual = Config()
    return {
        name: value.model_dump(mode="json", exclude_defaults=True)
        if isinstance(value, BaseModel)
        else value
        for name, value in settings.items()
        if value != getattr(usual, name)
    }


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
