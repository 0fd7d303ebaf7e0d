"""What there is to choose from, as tables and pages: methods and scores."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.messages import unknown

SHAPE = (3, 32, 32)  # of the example sample for which a score's passes are shown
ARROWS = {"higher": "↑", "lower": "↓"}
Facts = list[tuple[str, str]]


def methods(family: str | None = None) -> list[tuple[str, ...]]:
    """Rows (family, name, library, cost, applies to, notes, source, what it does), by family.

    Raises ValueError for a family that no method has.
    """
    from experiments import attribution

    found = _of_family(attribution.methods(), family)
    return [
        (
            m.family, name, m.origin, m.passes, _kinds(m.models), _notes(m), m.source, m.summary,
        )
        for name, m in found
    ]  # fmt: skip


def scores(family: str | None = None) -> list[tuple[str, ...]]:
    """Rows (family, name, better, range, cost, needs, source, what it says).

    Raises ValueError for a family that no score has.
    """
    from experiments import scoring

    return [
        (
            s.family, name, ARROWS[s.direction], f"{s.range[0]:g} … {s.range[1]:g}", _cost(s()),
            ", ".join(sorted(s.needs)), s.source, s.summary,
        )
        for name, s in _of_family(scoring.scores(), family)
    ]  # fmt: skip


def method_page(name: str) -> tuple[str, str, Facts, Facts, str]:
    """Name, text, facts, parameters (name and default, type) and YAML of a method.

    Raises ValueError for an unknown method.
    """
    from experiments import attribution

    method, _ = attribution.resolve(name)
    facts = [
        ("also called", ", ".join(method.aliases)),
        ("family", method.family),
        ("computed by", method.library),
        ("same numbers as", method.peer),
        ("applies to", _kinds(method.models)),
        ("cost per sample", method.passes),
        ("random", "yes, seeded per sample" if method.stochastic else "no"),
        ("needs the truth", "yes" if method.needs_truth else "no"),
        ("needs objects", "yes" if method.needs_objects else ""),
        ("source", method.source),
    ]
    parameters = [
        (f"{key} = {p.default!r}", _type(p.annotation)) for key, p in method.parameters.items()
    ]
    text = inspect.cleandoc(method.function.__doc__ or "")
    defaults = {key: p.default for key, p in method.parameters.items()}
    page = [fact for fact in facts if fact[1]]
    return method.name, text, page, parameters, _yaml("methods", method.name, defaults)


def score_page(name: str) -> tuple[str, str, Facts, Facts, str]:
    """The same of a score.

    Raises ValueError for an unknown score.
    """
    from experiments import scoring

    score = scoring.resolve(name)
    cost = _cost(score)
    facts = [
        ("family", score.family),
        ("better", f"{score.direction} {ARROWS[score.direction]}"),
        ("range", f"{score.range[0]:g} … {score.range[1]:g}"),
        ("needs", ", ".join(sorted(score.needs)) or "the maps alone"),
        ("cost per sample", f"{cost} alone, at 3×32×32" if cost else ""),
        ("source", score.source),
    ]
    hints = _hints(type(score))
    parameters = [
        (f"{f.name} = {f.default!r}", _type(hints[f.name]))
        for f in dataclasses.fields(score)  # type: ignore[arg-type]
    ]
    text = inspect.cleandoc(type(score).__doc__ or "")
    defaults = {f.name: f.default for f in dataclasses.fields(score)}  # type: ignore[arg-type]
    page = [fact for fact in facts if fact[1]]
    return score.name, text, page, parameters, _yaml("scores", score.name, defaults)


def _cost(score: Any) -> str:
    """Passes per sample of the example shape; those of the method itself come on top."""
    forwards, both = score.passes(SHAPE)
    return " + ".join([f"{forwards} F"] * bool(forwards) + [f"{both} FB"] * bool(both))


def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass' fields, evaluated where they were written, one by one: those of
    methods name tensors, and would import torch."""
    found = {}
    for parent in reversed(cls.__mro__):
        names = vars(sys.modules[parent.__module__])
        for name, annotation in vars(parent).get("__annotations__", {}).items():
            if not str(annotation).startswith("ClassVar"):
                found[name] = eval(annotation, names) if isinstance(annotation, str) else annotation
    return found


def _of_family(known: Mapping[str, Any], family: str | None) -> Iterable[tuple[str, Any]]:
    families = sorted({item.family for item in known.values()})
    if family is not None and family not in families:
        raise ValueError(unknown("family", family, families))
    chosen = [(n, item) for n, item in known.items() if family in (None, item.family)]
    return sorted(chosen, key=lambda pair: (pair[1].family == "control", pair[1].family, pair[0]))


def _kinds(models: frozenset[str]) -> str:
    from experiments.attribution import KINDS

    return "any model" if models >= KINDS else ", ".join(sorted(models))


def _notes(method: Any) -> str:
    notes = ["random"] * method.stochastic + ["needs truth"] * method.needs_truth
    notes += ["needs objects"] * method.needs_objects
    return ", ".join(notes)


def _type(annotation: Any) -> str:
    """A type as a reader wants it: `int`, `"a" | "b"`, and what limits it."""
    if annotation is None or annotation is inspect.Parameter.empty:
        return "anything"
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [_limit(item) for item in inside[1:]]
        return " ".join([_type(inside[0]), *filter(None, limits)])
    if origin is typing.Literal:
        return " | ".join(repr(value) for value in inside)
    if isinstance(annotation, type) and not inside:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _limit(item: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = getattr(item, "metadata", [])
    return ", ".join(
        f"{sign} {getattr(limit, name):g}"
        for limit in limits
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    )


def _yaml(key: str, name: str, defaults: Mapping[str, Any]) -> str:
    import yaml

    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
    item: Any = {"name": name, **plain} if plain else name
    text = yaml.safe_dump([item], default_flow_style=None, sort_keys=False, width=10_000)
    return f"{key}:\n" + "\n".join(f"  {line}" for line in text.strip().splitlines())
