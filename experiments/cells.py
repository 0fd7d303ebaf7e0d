"""The cells of a study's table: every method × every score on one trained model.

What is there already is looked up, cell by cell; what is missing is computed together, so that a
method or a score that is added later costs itself alone, and a new table its shared plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from experiments import attribution, scoring
from experiments.stages import Artifact

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.evaluation import Evaluation

Spec = str | Mapping[str, Any]


@dataclass(frozen=True)
class Chosen:
    """A method of a configuration: `given` are its parameters that stand there, `spec` has all,
    so that a default that is written out is the same map."""

    method: attribution.Method
    given: Mapping[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.method.name, **self.method.defaults, **self.given}


def choose(specs: Sequence[Spec]) -> list[Chosen]:
    """Raises ValueError for an unknown method or parameter."""
    return [Chosen(*attribution.resolve(spec)) for spec in specs]


@dataclass(frozen=True)
class Cells:
    """How a study computes the maps and scores of one model.

    attributed, scored: its stages. Both take `common`, `method` (a full spec) and `code` (of a
        plugin); `attributed` gives the maps, and `scored` takes them as `maps`, takes a `score`,
        and gives its measurements as `Measurement.state` does.
    evaluate: `evaluation.evaluate` on the study's samples, given methods, scores, known, wanted.
    view: what a score that looks at maps alone sees of a method's maps; the maps, if there is none.

    Making one computes what is missing.
    """

    common: Mapping[str, Any]
    attributed: Any
    scored: Any
    evaluate: Callable[..., Evaluation]
    methods: Sequence[Chosen]
    scores: Sequence[scoring.Score]
    view: Callable[[scoring.Score, Chosen, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        _ = self.maps, self._states

    @cached_property
    def maps(self) -> list[Artifact]:
        """By method."""

        def work(missing: list[int]) -> list[Any]:
            found = self.evaluate(methods=[self.methods[m].spec for m in missing])
            return [maps.cpu() for maps in found.maps]

        calls = [self._call(method) for method in self.methods]
        return list(self.attributed.together(calls, work))

    def measured(
        self, method: int, context: scoring.Context
    ) -> Iterator[tuple[scoring.Score, list[scoring.Measurement]]]:
        """Every score of a method's maps, in order.

        `context` is what scores that look at maps alone may know; these are cheap, and no stage.
        """
        running = self._running
        for score in self.scores:
            if score in running:
                states = self._states[method, running.index(score)].value
                yield score, [scoring.Measurement.from_state(state) for state in states]
            else:
                yield score, score.measure(self._seen(score, method), context)

    def _seen(self, score: scoring.Score, method: int) -> Tensor:
        maps = self.maps[method].value
        return maps if self.view is None else self.view(score, self.methods[method], maps)

    @property
    def _running(self) -> list[scoring.Score]:
        return [score for score in self.scores if "model" in score.needs]

    @cached_property
    def _states(self) -> dict[tuple[int, int], Artifact]:
        """Of scores that run the model, by (method, score)."""
        methods, maps, scores = self.methods, self.maps, self._running
        cells = [(m, s) for m in range(len(methods)) for s in range(len(scores))]

        def work(missing: list[int]) -> list[Any]:
            wanted = [cells[position] for position in missing]
            found = self.evaluate(
                methods=[method.spec for method in methods],
                scores=scores,
                known={m: maps[m].value for m in range(len(methods))},
                wanted=set(wanted),
            )
            return [[part.state() for part in found.measurements[m][s] or []] for m, s in wanted]

        calls = [
            {**self._call(methods[m]), "maps": maps[m], "score": scoring.spec_of(scores[s])}
            for m, s in cells
        ]
        return dict(zip(cells, self.scored.together(calls, work), strict=True))

    def _call(self, method: Chosen) -> dict[str, Any]:
        return {**self.common, "method": method.spec, "code": method.method.code_hash}
