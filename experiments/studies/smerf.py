"""SMERF: do saliency maps point to what an image classifier is known to look at?

Kim, Plumb & Talwalkar, "Sanity Simulations for Saliency Methods" (ICML 2022). Images hold a letter
and two boxes; the label follows by a rule from some of them. A model that is right whatever else
is in the image has to reason by the rule, so its maps can be held against the objects it uses.

    data → trained → verified, or trained again from the next seed
                 └→ attributed (one per method) → scores, by bucket: images with the same objects

Scores of `preset: paper` see the images that the original makes of a map (`scoring.smerf_view`),
all others the raw map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from experiments import lazy, models, scoring
from experiments.cells import Cells, Chosen, choose
from experiments.choices import Methods, Model, Scores, Spec, unusual
from experiments.data import smerf as data_of
from experiments.data.smerf import EDITS, Images, SmerfSpec
from experiments.randomness import derive_seed
from experiments.rows import Explained, label, rows
from experiments.scoring import Measurement, Score
from experiments.scoring.object_share import ObjectShare
from experiments.stages import Artifact, checkpoint, runtime, stage
from experiments.studies import define
from experiments.training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.data import backdrops, textbox
    from experiments.evaluation import Evaluation
    from experiments.scoring import smerf_view
    from experiments.training import loop
else:
    torch = lazy.load("torch")
    backdrops = lazy.load("experiments.data.backdrops")
    textbox = lazy.load("experiments.data.textbox")
    smerf_view = lazy.load("experiments.scoring.smerf_view")
    loop = lazy.load("experiments.training.loop")

VERSION = 1
PRELOAD = (
    "torch", "torch._dynamo", "torch.fx", "scipy.stats", "pyarrow.parquet", "matplotlib.colors",
    "experiments.evaluation", "experiments.attribution.batch", "experiments.attribution.lrp",
    "experiments.attribution.multipliers", "experiments.models.tail", "experiments.models.smerf",
    "experiments.scoring.smerf_view", "experiments.data.textbox", "experiments.training.loop",
)  # fmt: skip

SHAPE = (3, 64, 64)
CLASSES = 2
BACKGROUND = 1000  # training images that stand for the data, where a method compares with it
# The images on which all models are compared: those of one setting have every combination.
PROBE = SmerfSpec(setting="Simple-FR", seed=2**31)

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Verification(BaseModel):
    """What a model must reach on the test images to count as reasoning by the rule.

    Attributes:
        accuracy: on all of them.
        bucket_accuracy: in the bucket where it is worst.
        edits: where it is worst of all ways to edit images (an object is added, removed or moved,
            the letter swapped): the share for which it says what the rule says then.
        attempts: models that are trained, each from another seed, until one passes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: Share = 0.95
    bucket_accuracy: Share = 0.95
    edits: Share = 0.95
    attempts: Count = 3


class Config(BaseModel):
    """One experiment: one setting, one architecture, many methods, many scores.

    Attributes:
        data: which setting on which background; see `SmerfSpec`.
        model: an architecture by name, with parameters.
        training: how it is trained; see `Recipe`.
        hardening: how it is trained on after that, against an adversary (`Recipe.adversary`): the
            model that is verified and explained is the hardened one.
        verification: what the model must reach; see `Verification`. The experiment fails, with
            the numbers, if no attempt does: a model that does not reason by the rule says nothing
            about maps.
        methods, scores: names, or mappings with a `name` and parameters.
        target: explain the class that the model predicts, or the true one.
        baseline: the value that stands for a missing pixel.
        explained: test images of each bucket that are explained, or "all".
        scored: "right" leaves out images that the model classifies wrongly; the original scores
            "all" of them.
        probe: images of each combination of objects, the same for all settings, for which the
            shares of the weight on objects are kept, to tell models apart by their maps.
        gallery: images of each bucket that the run keeps with their maps, for figures.
        seed: of the weights, the order of batches, and every random draw.
    """

    model_config = ConfigDict(extra="forbid")

    data: SmerfSpec = SmerfSpec()
    model: Model = {"name": "smerf_simple_cnn"}
    training: Recipe = Recipe(
        learning_rate=3e-4, betas=(0.9, 0.999), epochs=30, batch_size=128, patience=5,
        balanced=False, stop_at_loss=1e-3,
    )  # fmt: skip
    hardening: Recipe | None = None
    verification: Verification = Verification()
    methods: Methods = ["integrated_gradients", "random"]
    scores: Scores = ["afl"]
    target: Literal["predicted", "true"] = "predicted"
    baseline: float = 0.0
    dtype: Literal["float32", "float64"] = "float32"
    explained: Count | Literal["all"] = 20
    scored: Literal["right", "all"] = "right"
    probe: Annotated[int, Field(ge=0)] = 5
    gallery: Annotated[int, Field(ge=0)] = 1
    seed: Annotated[int, Field(ge=0)] = 0


# ---- stages ----------------------------------------------------------------------------------


@stage(version="1", device=False)
def smerf_scenes(*, spec: dict[str, Any], pictures: str | None) -> dict[str, Any]:
    """Where everything is in all images; `pictures` changes with the files of the backdrops."""
    return data_of.generate(SmerfSpec.model_validate(spec))


@stage(version="1")
def smerf_trained(
    *, data: dict[str, Any], model: Spec, training: dict[str, Any], seed: int, dtype: str,
    weights: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A model's weights, and how its training went; `weights` changes with the file that it may
    have been made of."""
    return _fitted(_network(model, seed, dtype), data, training, seed)


@stage(version="1")
def smerf_hardened(
    *, data: dict[str, Any], model: dict[str, Any], architecture: Spec, training: dict[str, Any],
    seed: int, dtype: str,
) -> dict[str, Any]:  # fmt: skip
    """The same of a model that is trained on."""
    return _fitted(_loaded(model, architecture, seed, dtype), data, training, seed)


def _fitted(
    network: torch.nn.Module, data: dict[str, Any], training: dict[str, Any], seed: int
) -> dict[str, Any]:
    history = loop.fit(
        network, data_of.images(data, "train").split, data_of.images(data, "validation").split,
        recipe=Recipe.model_validate(training), seed=derive_seed("training", seed),
        checkpoint=checkpoint(),
    )  # fmt: skip
    return {
        "weights": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
        "epochs": len(history.train_loss),
        "steps": history.steps,
        "stopped": history.stopped,
    }


@stage(version="1")
def smerf_verified(
    *, data: dict[str, Any], model: dict[str, Any], architecture: Spec, seed: int, dtype: str
) -> dict[str, Any]:
    """What a model says of the test images, bool [N] right, and of each kind of edited ones."""
    network = _loaded(model, architecture, seed, dtype)
    test = data_of.images(data, "test")
    edits = {}
    for verb, name in EDITS:
        changed, _ = data_of.edited(test, verb, name, seed=derive_seed("edits", seed))
        if len(changed):
            edits[f"{verb} {name}"] = _right(network, changed)
    return {"test": _right(network, test), "bucket": test.bucket, "edits": edits}


@stage(version="1")
def smerf_attributed(
    *, data: dict[str, Any], model: dict[str, Any], subject: dict[str, Any], method: Spec,
    explained: int, code: str | None,
) -> Tensor:  # fmt: skip
    """Raw, signed maps [N, 3, 64, 64] of so many test images of each bucket."""
    return _evaluated(data, model, subject, explained, methods=[method]).maps[0].cpu()


@stage(version="1")
def smerf_probed(
    *, data: dict[str, Any], model: dict[str, Any], probe: dict[str, Any],
    subject: dict[str, Any], method: Spec, explained: int, code: str | None,
) -> Tensor:  # fmt: skip
    """The same of images that all models are compared on."""
    images = _first(data_of.images(probe, "test"), explained)
    return _explain(images, data, model, subject, methods=[method]).maps[0].cpu()


@stage(version="1")
def smerf_scored(
    *, data: dict[str, Any], model: dict[str, Any], maps: Tensor, subject: dict[str, Any],
    method: Spec, explained: int, score: Spec, code: str | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measurements of a score that runs the model, as `Measurement.state` gives them."""
    found = _evaluated(
        data, model, subject, explained, methods=[method], scores=[score], known={0: maps}
    )
    return [measurement.state() for measurement in found.measurements[0][0] or []]


# ---- the study -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reasoner:
    """A model that was found to reason by the rule of its data."""

    config: Config
    data: Artifact
    model: Artifact
    verified: Artifact
    attempt: int

    @property
    def subject(self) -> dict[str, Any]:
        """Which outputs of which model are explained, against what."""
        return {
            "architecture": self.config.model, "target": self.config.target,
            "baseline": self.config.baseline, "seed": _seed(self.config, self.attempt),
            "dtype": self.config.dtype,
        }  # fmt: skip

    def explain(self, images: Images, **what: Any) -> Evaluation:
        return _explain(images, self.data.value, self.model.value, self.subject, **what)

    def prediction(self, images: Images) -> Tensor:
        return _prediction(self.model.value, self.subject, images)

    @property
    def facts(self) -> dict[str, Any]:
        found, model = self.verified.value, self.model.value
        return {
            "accuracy": _accuracy(found["test"]),
            "bucket_accuracy": _by_name(self.config, found),
            "edits": {name: _accuracy(right) for name, right in found["edits"].items()},
            "attempt": self.attempt,
            **{name: model[name] for name in ("epochs", "steps", "stopped")},
        }

    def explained(self, chosen: Chosen, maps: Artifact) -> Explained:
        """What the rows of a method have in common."""
        method, usual = chosen.method, Config()
        config = self.config
        other = unusual(usual, target=config.target, baseline=config.baseline)
        return replace(
            self.alone, method=method.name, method_params={**chosen.given, **other},
            library=method.origin, family=method.family, map_key=maps.key,
        )  # fmt: skip

    @property
    def alone(self) -> Explained:
        """What the rows about the model itself have in common."""
        config, again = self.config, {"attempt": self.attempt} if self.attempt else {}
        other = unusual(
            Config(), training=config.training, hardening=config.hardening, dtype=config.dtype
        )
        return Explained(
            study="smerf", dataset=_dataset_name(config.data), model=config.model | other | again,
            seed=config.seed, fold=0, method="model", method_params={}, library="assay",
            family="model", model_accuracy=_accuracy(self.verified.value["test"]),
            data_key=self.data.key, model_key=self.model.key, map_key="",
        )  # fmt: skip


def study(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, bytes]]:
    """Rows for every method, score and bucket, facts about the model, and the gallery."""
    kind = models.resolve(config.model)[0].kind
    methods = choose(config.methods)
    fit = [chosen for chosen in methods if chosen.method.applies_to(kind)]
    scores = [scoring.resolve(spec) for spec in config.scores]
    reasoner = _reasoner(config)
    count = _count(config)
    test = _first(data_of.images(reasoner.data.value, "test"), count)
    prediction = reasoner.prediction(test)
    counts = torch.ones_like(prediction, dtype=torch.bool)
    if config.scored == "right":
        counts = prediction == test.y
    common = {"data": reasoner.data, "model": reasoner.model, "subject": reasoner.subject}
    cells = Cells(
        {**common, "explained": count}, smerf_attributed, smerf_scored,
        partial(reasoner.explain, test), fit, scores, _View(test.bucket),
    )  # fmt: skip
    context = _context(test, prediction, config)
    table = _model_rows(reasoner)
    for m, chosen in enumerate(fit):
        who = reasoner.explained(chosen, cells.maps[m])
        for score, measurements in cells.measured(m, context):
            table += rows(who, score, list(_by_bucket(measurements, counts, test)))
    if config.probe:
        table += _probe_rows(reasoner, fit)
    left_out = {
        label(chosen.method.name, chosen.given): f"not for a {kind}"
        for chosen in methods
        if chosen not in fit
    }
    files = {}
    if config.gallery:
        files["gallery.npz"] = _gallery(config, test, prediction, fit, cells.maps)
    return table, {"model": reasoner.facts, "not_applicable": left_out}, files


def _reasoner(config: Config) -> Reasoner:
    """The first model that passes the verification. Raises RuntimeError if none does."""
    pictures = config.data.images and backdrops.fingerprint(config.data.images)
    data = smerf_scenes(spec=config.data.model_dump(mode="json"), pictures=pictures)
    training, tried = config.training.model_dump(mode="json"), []
    for attempt in range(config.verification.attempts):
        common: dict[str, Any] = {"seed": _seed(config, attempt), "dtype": config.dtype}
        model = smerf_trained(
            data=data, model=config.model, training=training, **_weights(config.model), **common
        )
        if config.hardening is not None:
            model = smerf_hardened(
                data=data, model=model, architecture=config.model,
                training=config.hardening.model_dump(mode="json"), **common,
            )  # fmt: skip
        found = smerf_verified(data=data, model=model, architecture=config.model, **common)
        lacks = _lacks(config, found.value)
        if not lacks:
            return Reasoner(config, data, model, found, attempt)
        tried.append(f"attempt {attempt + 1}: {lacks}")
    raise RuntimeError(
        f"no model of {config.data.setting} reasons by the rule ({'; '.join(tried)}): train longer "
        "(training.epochs), try more often (verification.attempts) or ask for less (verification)"
    )


def _weights(model: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the file of weights that a model is made of; nothing without one.

    Raises ValueError if it cannot be read.
    """
    path = model.get("weights")
    if path is None:
        return {}
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"model.weights: cannot read {path!r} ({error.strerror})") from None
    return {"weights": hashlib.sha256(content).hexdigest()}


def _lacks(config: Config, found: dict[str, Any]) -> str:
    """What a model does not reach, in words; empty if nothing."""
    wanted = config.verification
    edits = {name: _accuracy(right) for name, right in found["edits"].items()}
    missing = []
    for values, least, what in (
        ({"": _accuracy(found["test"])}, wanted.accuracy, "accuracy"),
        (_by_name(config, found), wanted.bucket_accuracy, "accuracy of bucket "),
        (edits, wanted.edits, "right after "),
    ):
        worst = min(values, key=lambda name: values[name])
        if values[worst] < least:
            missing.append(f"{what}{worst} {values[worst]:.3f} < {least}")
    return ", ".join(missing)


def _accuracy(right: Tensor) -> float:
    return float(right.double().mean())


def _by_name(config: Config, found: dict[str, Any]) -> dict[str, float]:
    """Accuracy by bucket."""
    return {
        bucket.name: _accuracy(found["test"][found["bucket"] == number])
        for number, bucket in enumerate(config.data.of.buckets)
    }


class _View:
    """What scores see: those of `preset: paper` the original's images of the maps."""

    def __init__(self, buckets: Tensor) -> None:
        self.buckets = buckets
        self.last: tuple[Tensor, Tensor] | None = None  # scores come map by map

    def __call__(self, score: Score, chosen: Chosen, maps: Tensor) -> Tensor:
        if getattr(score, "preset", None) != "paper":
            return maps
        if self.last is None or self.last[0] is not maps:
            family = chosen.method.family
            self.last = maps, smerf_view.shown(chosen.spec, family, maps, self.buckets)
        return self.last[1]


# ---- rows ------------------------------------------------------------------------------------


def _by_bucket(
    measurements: Sequence[Measurement], counts: Tensor, test: Images
) -> Iterator[Measurement]:
    """Each measurement over the images that count, and over those of each bucket."""
    for one in measurements:
        if one.samples is None:
            yield one
            continue
        samples = torch.where(counts, one.samples.cpu(), torch.nan)
        yield replace(Measurement.of(samples, one.headline), facets=one.facets)
        for number, bucket in enumerate(test.setting.buckets):
            part = Measurement.of(samples[test.bucket == number])
            if part.n:
                yield replace(part, facets={**one.facets, "bucket": bucket.name})


@dataclass(frozen=True)
class _Accuracy(Score):
    """Rows about the model, not about maps: no score that a configuration could name."""

    name = "accuracy"
    direction = "higher"


@dataclass(frozen=True)
class _Counterfactual(Score):
    name = "counterfactual"
    direction = "higher"


def _model_rows(reasoner: Reasoner) -> list[dict[str, Any]]:
    """How often the model is right: on all test images, by bucket, and after each edit."""
    found = reasoner.verified.value
    right, buckets = found["test"].float(), enumerate(reasoner.config.data.of.buckets)
    accuracy = [
        Measurement.of(right),
        *(Measurement.of(right[found["bucket"] == b], bucket=of.name) for b, of in buckets),
    ]
    edits = [Measurement.of(each.float(), edit=name) for name, each in found["edits"].items()]
    who = reasoner.alone
    return rows(who, _Accuracy(), accuracy) + rows(who, _Counterfactual(), edits)


def _probe_rows(reasoner: Reasoner, methods: Sequence[Chosen]) -> list[dict[str, Any]]:
    """Shares of the weight on objects, of images that are the same for all models."""
    config = reasoner.config
    probe = smerf_scenes(spec=PROBE.model_dump(mode="json"), pictures=None)
    images = _first(data_of.images(probe.value, "test"), config.probe)
    # What is told the evidence of the probe's rule says nothing of the model's.
    fit = [chosen for chosen in methods if not chosen.method.needs_truth]
    common = {"data": reasoner.data, "model": reasoner.model, "subject": reasoner.subject}
    cells = Cells(
        {**common, "probe": probe, "explained": config.probe}, smerf_probed, smerf_scored,
        partial(reasoner.explain, images), fit, [ObjectShare()],
    )  # fmt: skip
    context, table = _context(images, reasoner.prediction(images), config), []
    for m, chosen in enumerate(fit):
        for score, measurements in cells.measured(m, context):
            shares = [
                replace(one, headline=False, facets={**one.facets, "images": "probe"})
                for one in measurements
                if "object" in one.facets
            ]
            table += rows(reasoner.explained(chosen, cells.maps[m]), score, shares)
    return table


def _dataset_name(spec: SmerfSpec) -> str:
    """`Simple-FR(background=noise)`: the setting, then what else is not usual."""
    given = spec.model_dump(mode="json", exclude_defaults=True, exclude={"setting", "images"})
    return label(spec.setting, given)


# ---- what the stages do ----------------------------------------------------------------------


def _seed(config: Config, attempt: int) -> int:
    return config.seed if attempt == 0 else derive_seed("attempt", config.seed, attempt)


def _count(config: Config) -> int:
    most = max(config.data.count("test", bucket) for bucket in config.data.of.buckets)
    return most if config.explained == "all" else min(config.explained, most)


def _first(images: Images, count: int) -> Images:
    """So many images of each bucket: the first ones, as they are in no order."""
    numbers = range(len(images.setting.buckets))
    found = [(images.bucket == number).nonzero().squeeze(1)[:count] for number in numbers]
    return images[torch.cat(found)]


def _evaluated(
    data: dict[str, Any], model: dict[str, Any], subject: dict[str, Any], count: int, **what: Any
) -> Evaluation:
    test = _first(data_of.images(data, "test"), count)
    return _explain(test, data, model, subject, **what)


def _explain(
    images: Images,
    data: dict[str, Any],
    model: dict[str, Any],
    subject: dict[str, Any],
    **what: Any,
) -> Evaluation:
    """The engine on images; `data` is what the model was trained on."""
    from experiments.evaluation import evaluate

    network = _loaded(model, subject["architecture"], subject["seed"], subject["dtype"])
    device = next(network.parameters()).device
    prediction = _prediction(model, subject, images)
    classes = prediction if subject["target"] == "predicted" else images.y
    return evaluate(
        network, images.x[:].to(device), images.y.to(device), target=classes.to(device),
        baseline=subject["baseline"], seed=derive_seed("attribution", subject["seed"]),
        indices=images.index.tolist(), prediction=prediction.to(device),
        regions=images.regions(), meta=_meta(images), background=_background(data, subject["seed"]),
        **what,
    )  # fmt: skip


def _meta(images: Images) -> dict[str, Any]:
    return {"objects": list(textbox.OBJECTS), "object_game": images.setting.game}


def _background(data: dict[str, Any], seed: int) -> Tensor:
    """Training images [M, 3, 64, 64], drawn by the seed."""
    train = data_of.images(data, "train")
    generator = torch.Generator().manual_seed(derive_seed("background", seed))
    return train.x[torch.randperm(len(train), generator=generator)[:BACKGROUND]]


def _context(images: Images, prediction: Tensor, config: Config) -> scoring.Context:
    """What scores that look at maps alone may know."""
    return scoring.Context(
        x=images.x[:],
        y=images.y,
        prediction=prediction,
        regions=images.regions(),
        meta=_meta(images),
        seed=config.seed,
        indices=images.index.tolist(),
    )


def _network(model: Spec, seed: int, dtype: str) -> torch.nn.Module:
    network = models.build(
        model, inputs=SHAPE, classes=CLASSES, seed=seed, dtype=getattr(torch, dtype)
    )
    return network.to(runtime().device)


def _loaded(model: dict[str, Any], architecture: Spec, seed: int, dtype: str) -> torch.nn.Module:
    network = _network(architecture, seed, dtype)
    network.load_state_dict(model["weights"])
    return network.eval()


def _prediction(model: dict[str, Any], subject: dict[str, Any], images: Images) -> Tensor:
    network = _loaded(model, subject["architecture"], subject["seed"], subject["dtype"])
    return loop.evaluate(network, images.split).prediction


def _right(network: torch.nn.Module, images: Images) -> Tensor:
    """bool [N]: where the network says what the rule says."""
    return loop.evaluate(network, images.split).prediction == images.y


# ---- for figures -----------------------------------------------------------------------------


def _gallery(
    config: Config,
    test: Images,
    prediction: Tensor,
    methods: Sequence[Chosen],
    maps: Sequence[Artifact],
) -> bytes:
    """Some images of each bucket with their objects and maps (the signed sum over channels), as
    an .npz file."""
    import io

    import numpy as np

    chosen = _first(replace(test, index=torch.arange(len(test))), config.gallery)
    kept = chosen.index
    roles = [
        [
            "primary" if name in bucket.primary
            else "secondary" if name in bucket.secondary
            else "other"
            for name in textbox.OBJECTS
        ]
        for bucket in test.setting.buckets
    ]  # fmt: skip
    names = [bucket.name for bucket in test.setting.buckets]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=(255 * chosen.x[:]).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(),
        boxes=chosen.x.scenes.boxes.to(torch.int16).numpy(),
        objects=np.array(textbox.OBJECTS),
        roles=np.array([roles[b] for b in chosen.bucket.tolist()]),
        buckets=np.array([names[b] for b in chosen.bucket.tolist()]),
        methods=np.array([label(one.method.name, one.given) for one in methods]),
        maps=np.stack([one.value[kept].sum(1).numpy().astype(np.float16) for one in maps]),
        prediction=prediction[kept].numpy(),
        label=chosen.y.numpy(),
    )
    return buffer.getvalue()


ex = define("smerf", Config, study, __file__)

if __name__ == "__main__":
    ex.run_commandline()
