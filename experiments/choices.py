"""What the configurations of all studies can choose: methods, scores, an architecture.

They are checked when the configuration is, so that a mistake is found before anything is queued.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from experiments import attribution, models, scoring

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


Methods = Annotated[list[Annotated[Spec, AfterValidator(_method)]], Field(min_length=1)]
Scores = Annotated[list[Annotated[Spec, AfterValidator(_score)]], Field(min_length=1)]
Model = Annotated[dict[str, Any], BeforeValidator(_model)]


def unusual(usual: BaseModel, **settings: Any) -> dict[str, Any]:
    """The settings that differ from those of `usual`: what distinguishes rows in one table. Of a
    setting that is a model only what is not at its default there."""
    return {
        name: value.model_dump(mode="json", exclude_defaults=True)
        if isinstance(value, BaseModel)
        else value
        for name, value in settings.items()
        if value != getattr(usual, name)
    }
