"""Attribution methods by name, and the check of what a YAML file says about them."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from experiments import specs
from experiments.messages import unknown
from experiments.specs import Parameter

KINDS = frozenset({"cnn", "mlp", "transformer"})
RECTIFIED = frozenset({"cnn", "mlp"})  # networks of layers and activations, without attention
SPATIAL = frozenset({"cnn", "transformer"})  # networks with features that have a place
ENTRY_POINTS = "assay.methods"

# What the driver passes to methods (`truth` and `batch` only to those that name them).
GIVEN = frozenset({"baseline", "generator", "truth", "batch"})


@dataclass(frozen=True)
class Method:
    """A method by name.

    Attributes:
        function: `function(model, x[B, ...], target[B], *, baseline, generator, **parameters)`,
            and `truth` (None where only regions are known) or `batch` if it names them; returns a
            raw, signed map [B, ...].
        library: who computes it: "assay", or the library that is called.
        peer: the library that has it too, and whose values the tests hold it to: "captum",
            "grad-cam", "shap" or "zennit"; empty if none has it.
        family: "gradient", "cam", "lrp", "attention", "perturbation", "wrapper" or "control".
        models: kinds of model it applies to.
        needs_objects: whether it asks the batch for `regions`, the objects in the samples.
        passes: cost per sample, F a forward pass and FB a forward and backward pass.
        aliases: other names it is known by; rows carry `name`.
        source: the paper, as "Authors year".
    """

    name: str
    function: Callable[..., Any]
    library: str
    family: str
    models: frozenset[str]
    stochastic: bool
    needs_truth: bool
    passes: str
    parameters: Mapping[str, Parameter]
    aliases: tuple[str, ...] = ()
    source: str = ""
    peer: str = ""
    takes_batch: bool = False
    needs_objects: bool = False

    @property
    def origin(self) -> str:
        """Whose numbers these are: the library's that computes it, or "= captum"."""
        return f"= {self.peer}" if self.peer and self.peer != self.library else self.library

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def applies_to(self, kind: str) -> bool:
        """Whether it can explain a model of this kind; nothing is known against custom ones."""
        return kind in self.models or kind not in KINDS

    @property
    def code_hash(self) -> str | None:
        """What changes when a plugin's file changes; our own methods have their stage's version."""
        module = inspect.getmodule(self.function)
        if module is None or module.__name__.startswith("experiments."):
            return None
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: parameter.default for name, parameter in self.parameters.items()}


_methods: dict[str, Method] = {}
_aliases: dict[str, str] = {}


def method(
    name: str,
    *,
    library: str,
    family: str,
    passes: str,
    models: Collection[str] = KINDS,
    stochastic: bool = False,
    needs_truth: bool = False,
    needs_objects: bool = False,
    aliases: Collection[str] = (),
    source: str = "",
    peer: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as a method; the function itself stays what it was.

    Raises ValueError if the name is taken by another function, or a parameter has no default.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        taken = _methods.get(name)
        if taken and _path(taken.function) != _path(function):
            raise ValueError(f"method {name!r} is taken by {_path(taken.function)}")
        _methods[name] = Method(
            name=name,
            function=function,
            library=library,
            family=family,
            models=frozenset(models),
            stochastic=stochastic,
            needs_truth=needs_truth,
            passes=passes,
            parameters=specs.parameters_of(function, skip=GIVEN),
            aliases=tuple(aliases),
            source=source,
            peer=peer,
            takes_batch="batch" in specs.keywords_of(function),
            needs_objects=needs_objects,
        )
        _aliases.update(dict.fromkeys(aliases, name))
        return function

    return register


def methods() -> dict[str, Method]:
    """All methods by name: ours, and those of installed packages."""
    return {**_installed(), **_methods}


def resolve(spec: str | Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method, and the checked parameters that were given, of "name" or {"name": ..., ...}.

    A name with ":" is the dotted path of any function of the right signature.
    Raises ValueError, one line, for an unknown name, an unknown parameter or a wrong type.
    """
    name, given = specs.split(spec, "method")
    name = _aliases.get(name, name)
    if ":" in name:
        found = _adopt(specs.load(name, "method"), name)
    elif name in _methods:
        found = _methods[name]
    elif name in _installed():
        found = _installed()[name]
    else:
        raise ValueError(unknown("method", name, methods()))
    return found, specs.check(f"method {name!r}", found.parameters, given)


def _adopt(function: Any, name: str) -> Method:
    """The method of a function that came by path: what its decorator said, or modest guesses."""
    for known in _methods.values():
        if known.function is function:
            return known
    if not callable(function):
        raise ValueError(f"method {name!r} is not a function")
    return Method(
        name=name,
        function=function,
        library=name.partition(":")[0].partition(".")[0],
        family="custom",
        models=KINDS,
        stochastic=True,
        needs_truth="truth" in specs.keywords_of(function),
        passes="unknown",
        parameters=specs.parameters_of(function, skip=GIVEN),
        takes_batch="batch" in specs.keywords_of(function),
    )


@cache
def _installed() -> dict[str, Method]:
    """Methods of installed packages. One that cannot be loaded is reported and left out."""
    found = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            found[entry.name] = _adopt(entry.load(), entry.name)
        except Exception as error:
            warnings.warn(f"method {entry.name!r} ({entry.value}): {error}", stacklevel=2)
    return found


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"
