"""From what a YAML file says ("name", or {name: ..., parameter: ...}) to checked parameters.

Whatever a user can get wrong here ends as a ValueError of one line: what, where, how to fix it.
The annotations of a function's keyword-only parameters are its schema.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from experiments.messages import unknown

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Parameter:
    """A named parameter of a method or a model; `annotation` None takes any value."""

    default: Any
    annotation: Any


def parameters_of(function: Callable[..., Any], skip: Collection[str]) -> dict[str, Parameter]:
    """The keyword-only parameters of `function` but for `skip`.

    Annotations are evaluated one by one and only for these parameters: evaluating those of the
    tensors would import torch.
    Raises ValueError for one without a default.
    """
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name in skip:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f"{function.__module__}:{function.__qualname__}: parameter {name!r} needs a default"
            )
        annotation = parameter.annotation
        if isinstance(annotation, str):
            annotation = eval(annotation, inspect.unwrap(function).__globals__)
        given = annotation is not inspect.Parameter.empty
        found[name] = Parameter(parameter.default, annotation if given else None)
    return found


def keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of all parameters of `function`."""
    return frozenset(inspect.signature(function).parameters)


def split(spec: str | Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters in `spec`. Raises ValueError if it has no name."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        return spec["name"], {str(key): value for key, value in spec.items() if key != "name"}
    raise ValueError(
        f"{what}: expected a name or a mapping with a 'name', got {spec!r}; "
        f"write for example {{name: ..., parameter: value}}"
    )


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    """Made once: a grid names the same parameters hundreds of times."""
    return TypeAdapter(annotation, config=ConfigDict(strict=True))


def check(what: str, declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, each value checked against its annotation (an int may stand for a float).

    Raises ValueError for an unknown name or a value of the wrong type or out of range.
    """
    checked = {}
    for name, value in given.items():
        if name not in declared:
            raise ValueError(f"{what}: {unknown('parameter', name, declared)}")
        annotation = declared[name].annotation
        if annotation is None:
            checked[name] = value
            continue
        try:
            checked[name] = _adapter(annotation).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Input ")
            raise ValueError(f"{what}: parameter {name!r} {reason}, got {value!r}") from None
    return checked


def load(path: str, what: str) -> Any:
    """The object at the dotted path "package.module:attribute".

    Raises ValueError if the module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{what} {path!r}: cannot import {module_name!r} ({reason})") from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(f"{what} {path!r}: {unknown('attribute', attribute, public)}")
    return getattr(module, attribute)
