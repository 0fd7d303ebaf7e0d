"""Methods of example importance by name, and the check of what a YAML file says about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from experiments import specs
from experiments.messages import unknown
from experiments.specs import Parameter


@dataclass(frozen=True)
class ExampleMethod:
    """A method by name.

    Attributes:
        function: `function(examples, **parameters)`; returns [N_test, N_train].
        library: who computes it: "assay" or "scipy".
        family: what it looks at: "gradient" (of a loss), "latent" or "control".
        passes: cost in all, F a forward pass of a sample and FB one forwards and backwards.
        aliases: other names it is known by.
        source: the paper, as "Authors year".
    """

    name: str
    function: Callable[..., Any]
    library: str
    family: str
    stochastic: bool
    passes: str
    parameters: Mapping[str, Parameter]
    aliases: tuple[str, ...] = ()
    source: str = ""

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: parameter.default for name, parameter in self.parameters.items()}


_methods: dict[str, ExampleMethod] = {}
_aliases: dict[str, str] = {}


def example_method(
    name: str,
    *,
    family: str,
    passes: str,
    library: str = "assay",
    stochastic: bool = False,
    aliases: Collection[str] = (),
    source: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as a method; the function itself stays what it was.

    Raises ValueError if the name is taken by another function, or a parameter has no default.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        taken = _methods.get(name)
        if taken and _path(taken.function) != _path(function):
            raise ValueError(f"example method {name!r} is taken by {_path(taken.function)}")
        _methods[name] = ExampleMethod(
            name=name,
            function=function,
            library=library,
            family=family,
            stochastic=stochastic,
            passes=passes,
            parameters=specs.parameters_of(function, skip=()),
            aliases=tuple(aliases),
            source=source,
        )
        _aliases.update(dict.fromkeys(aliases, name))
        return function

    return register


def example_methods() -> dict[str, ExampleMethod]:
    """All methods by name."""
    return dict(_methods)


def resolve(spec: str | Mapping[str, Any]) -> tuple[ExampleMethod, dict[str, Any]]:
    """The method, and the checked parameters that were given, of "name" or {"name": ..., ...}.

    A name with ":" is the dotted path of any function of the right signature.
    Raises ValueError, one line, for an unknown name, an unknown parameter or a wrong type.
    """
    name, given = specs.split(spec, "example method")
    name = _aliases.get(name, name)
    if ":" in name:
        found = _adopt(specs.load(name, "example method"), name)
    elif name in _methods:
        found = _methods[name]
    else:
        raise ValueError(unknown("example method", name, _methods))
    return found, specs.check(f"example method {name!r}", found.parameters, given)


def _adopt(function: Any, name: str) -> ExampleMethod:
    """The method of a function that came by path: what its decorator said, or modest guesses."""
    for known in _methods.values():
        if known.function is function:
            return known
    if not callable(function):
        raise ValueError(f"example method {name!r} is not a function")
    return ExampleMethod(
        name=name,
        function=function,
        library=name.partition(":")[0].partition(".")[0],
        family="custom",
        stochastic=True,
        passes="unknown",
        parameters=specs.parameters_of(function, skip=()),
    )


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"
