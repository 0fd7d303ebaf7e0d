"""What a score is: parameters with a name, and a way from maps to measurements."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.attribution.batch import Batch
    from experiments.data import Truth
    from experiments.randomness import SampleGenerators

T = TypeVar("T")
Direction = Literal["lower", "higher"]
Facet = str | float | int


@dataclass
class Context:
    """What a score may look at besides the maps: the N samples they explain, and what is known.

    x           [N, ...]     the samples           prediction  int64 [N]  the model's classes
    y           int64 [N]    their true classes    indices     their stable ids
    meta        the dataset's facts (`Dataset.meta`)
    regions     bool [N, O, ...] per role: O objects, each a mask of the samples' spatial shape.
                The role "relevant" is what a map should point to; studies name others.
    batch       the model with these samples and the outputs that the maps explain; scores that
                run the model ask it, and find what others had it compute
    explain     the method of the maps: `explain(batch)` gives its maps of another batch
    retrained   int64 [N] per (model, threshold): the classes that a "network" or a "forest" gives
                after it was trained anew on inputs masked at the threshold
    """

    x: Tensor
    y: Tensor
    prediction: Tensor | None = None
    truth: Truth | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    indices: Sequence[int] = ()
    regions: Mapping[str, Tensor] = field(default_factory=dict)
    batch: Batch | None = None
    explain: Callable[[Batch], Tensor] | None = None
    retrained: Mapping[tuple[str, Facet], Tensor] = field(default_factory=dict)
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, remembered for these maps: what several scores of one map share.

        What does not depend on the maps belongs to `batch.once`, which all methods share.
        """
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    def model_batch(self) -> Batch:
        """`batch`, of which a score that needs "model" knows that it is there."""
        assert self.batch is not None
        return self.batch

    def generator(self, purpose: str) -> SampleGenerators:
        """Random streams of these samples, e.g. for breaking ties: one per sample and purpose."""
        from experiments.randomness import SampleGenerators

        indices = self.indices or range(len(self.y))
        return SampleGenerators(self.seed, indices, f"score/{purpose}")

    def region(self, role: str) -> Tensor:
        """bool [N, ...]: the union of the objects of a role. Raises ValueError if there is none.

        Where only the truth is known (inputs of a formula), "relevant" is the union of its
        minimal sufficient sets.
        """
        if role in self.regions:
            return self.regions[role].any(1)
        if role == "relevant" and self.truth is not None:
            return self.truth.relevant
        known = sorted(self.regions)
        raise ValueError(f"no region {role!r} is known of these samples; known: {known}")


@dataclass
class Measurement:
    """One number with its facets, and the values per sample it is made of.

    facets    coordinates within the score, such as {"class": "0"} or {"threshold": "1.0"}
    samples   float32 [n], one value per sample, NaN where it is undefined; None if there is none
    value     the number itself: the mean of the defined samples, NaN if there are none
    n         how many samples are defined
    sd        their standard deviation (n - 1 in the denominator; NaN below two)
    headline  this is the measurement that stands for the score in a ranking
    """

    facets: dict[str, Facet]
    value: float
    n: int
    sd: float = math.nan
    samples: Tensor | None = None
    headline: bool = False

    @classmethod
    def of(cls, samples: Tensor, headline: bool = False, **facets: Facet) -> Measurement:
        """The measurement whose value is the mean of `samples` [n]. `class_` means "class"."""
        defined = samples[~samples.isnan()].double()
        return cls(
            facets={name.rstrip("_"): value for name, value in facets.items()},
            value=defined.mean().item() if len(defined) else math.nan,
            n=len(defined),
            sd=defined.std().item() if len(defined) > 1 else math.nan,
            samples=samples.float(),
            headline=headline,
        )

    def state(self) -> dict[str, Any]:
        """Values that `torch.load(weights_only=True)` reads."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Measurement:
        return cls(**state)


class Score:
    """A base for scores: a frozen dataclass whose fields, all with defaults, are its parameters.

    `@metric` sets the class variables. A subclass defines `measure`; one that runs the model also
    says how often in `passes`.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    direction: ClassVar[Direction]
    range: ClassVar[tuple[float, float]]
    needs: ClassVar[frozenset[str]]
    summary: ClassVar[str]
    source: ClassVar[str]

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        """Measure raw, signed `maps` [N, D]. Exactly one measurement is the headline.

        Raises ValueError if a map is not finite or something the score needs is unknown.
        """
        raise NotImplementedError

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Forwards, and forwards with backwards, per sample of this shape."""
        return (0, 0)


S = TypeVar("S", bound=Score)

REGISTRY: dict[str, type[Score]] = {}


def metric(
    name: str,
    *,
    family: str,
    direction: Direction,
    range: tuple[float, float],
    needs: Iterable[str] = (),
    source: str = "",
) -> Callable[[type[S]], type[S]]:
    """Make a frozen dataclass a score that configs can name.

    needs: "truth" (`Context.truth`), "baseline" (truth with an irrelevant input), "formula"
    (`meta["formula"]`, gates over inputs), "region" (`Context.region("relevant")`), "model"
    (`Context.batch`), "method" (`Context.explain`, and the model). `measure` is only called when
    they are there and the maps are finite. Words for the reader that a score checks itself:
    "secondary region", "objects" (a role of that name), "image" (maps with two spatial axes),
    "object game" (`meta["object_game"]`), "prediction" and "retraining" (`Context.prediction`,
    `.retrained`).

    A score that needs the model or the method is called once per batch, gives a value per sample
    (`Measurement.of`), and its measurements are joined by their facets.
    source: the paper, as "Authors year".
    """

    def register(cls: type[S]) -> type[S]:
        _require(is_dataclass(cls) and issubclass(cls, Score), cls, "must be a dataclass of Score")
        _require(
            cls.__dataclass_params__.frozen,  # type: ignore[attr-defined]
            cls,
            "must be a frozen dataclass",
        )
        try:
            hash(cls())
        except TypeError as error:
            raise TypeError(
                f"{cls.__qualname__}: parameters need hashable defaults ({error})"
            ) from None
        known = REGISTRY.get(name)
        where = (cls.__module__, cls.__qualname__)
        if known is not None and (known.__module__, known.__qualname__) != where:
            raise ValueError(
                f"two scores are called {name!r}: {known.__module__}:{known.__qualname__} and "
                f"{':'.join(where)}; rename one"
            )
        cls.name, cls.family, cls.direction, cls.range = name, family, direction, range
        cls.needs = frozenset(needs) | ({"model"} if "method" in needs else set())
        cls.source = source
        cls.summary = (cls.__doc__ or "").strip().split("\n")[0]
        cls.measure = _checked(cls.measure)  # type: ignore[method-assign,assignment]
        REGISTRY[name] = cls
        return cls

    return register


def spec_of(score: Score, defaults: bool = True) -> dict[str, Any]:
    """The score as a config: its name and parameters, JSON only; without those left at default
    if `defaults` is false. `resolve(spec_of(s)) == s`."""
    given = {item.name: getattr(score, item.name) for item in fields(score)}  # type: ignore[arg-type]
    if not defaults:
        usual = type(score)()
        given = {key: value for key, value in given.items() if value != getattr(usual, key)}
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    return {"name": score.name, **plain}


def _require(condition: bool, cls: type, what: str) -> None:
    if not condition:
        raise TypeError(f"{cls.__module__}:{cls.__qualname__} {what}")


Measure = Callable[[Any, "Tensor", Context], list[Measurement]]


def _checked(measure: Measure) -> Measure:
    @functools.wraps(measure)
    def checked(self: Score, maps: Tensor, context: Context) -> list[Measurement]:
        _check_maps(self, maps, context)
        _check_needs(self, maps, context)
        measurements = measure(self, maps, context)
        headlines = sum(measurement.headline for measurement in measurements)
        if headlines != 1:
            raise RuntimeError(f"score {self.name!r} gave {headlines} headlines; it must give one")
        return measurements

    return checked


def _check_maps(score: Score, maps: Tensor, context: Context) -> None:
    if len(maps) != len(context.y):
        raise ValueError(f"score {score.name!r}: {len(maps)} maps for {len(context.y)} samples")
    if len(maps) == 0:
        raise ValueError(f"score {score.name!r}: no maps to measure")
    finite = maps.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        which = f" (index {int(context.indices[first])})" if len(context.indices) else ""
        raise ValueError(
            f"score {score.name!r}: the map of sample {first}{which} has NaN or infinite values"
        )


def _check_needs(score: Score, maps: Tensor, context: Context) -> None:
    if score.needs & {"truth", "baseline"} and context.truth is None:
        raise ValueError(f"score {score.name!r} needs to know the truth, and this dataset has none")
    if "model" in score.needs and context.batch is None:
        raise ValueError(f"score {score.name!r} runs the model: give it the model and the targets")
    if "method" in score.needs and context.explain is None:
        raise ValueError(
            f"score {score.name!r} runs the method on other inputs: give it the method, not only "
            "its maps"
        )
    if "region" in score.needs and not context.regions and context.truth is None:
        raise ValueError(
            f"score {score.name!r} needs to know where the object is, and this dataset has no masks"
        )
    if context.truth and maps.shape[1:] != context.truth.irrelevant.shape:
        raise ValueError(
            f"score {score.name!r}: maps of shape {list(maps.shape[1:])} for "
            f"{len(context.truth.irrelevant)} inputs"
        )
    if "baseline" in score.needs and context.truth and not context.truth.irrelevant.any():
        raise ValueError(
            f"score {score.name!r} compares with irrelevant inputs, and this dataset has none; "
            "set irrelevant to at least 1"
        )
    if "formula" in score.needs and "formula" not in context.meta:
        raise ValueError(f"score {score.name!r} needs a dataset made by a formula, such as andor")
