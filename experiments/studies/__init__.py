"""The studies: one module, one Sacred experiment each.

A study module has
    `VERSION`  raised when its results change without a stage's version saying so
    `Config`   a pydantic model: the schema of its configuration, importable without torch
    `PRELOAD`  modules that a warm worker imports once for all of its experiments
    one Sacred experiment, made by `define`
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pydantic
    import sacred

C = TypeVar("C", bound="pydantic.BaseModel")

Table = Sequence[Mapping[str, Any]]


def define(
    name: str, config: type[C], study: Callable[[C], tuple[Any, ...]], path: str
) -> sacred.Experiment:
    """A Sacred experiment around a function from a configuration to rows, facts, and maybe files.

    The rows become the artifact `scores.parquet` and, nested by method and score, the result; the
    facts are put beside them. Files, bytes by name, become artifacts of the run. Works under
    `assay`, under `seml`, and as `python FILE with ...`.
    """
    import seml.experiment

    experiment = seml.experiment.Experiment(
        name, base_dir=str(Path(path).parent), logger=None, save_git_info=False
    )
    experiment.path = name
    experiment.add_config(config().model_dump(mode="json"))

    @experiment.main
    def run(_config: dict[str, Any], _run: Any) -> dict[str, Any]:
        from experiments import stages
        from experiments.rows import FILE, summary, to_parquet

        known = {key: _config[key] for key in config.model_fields}
        table, facts, *files = study(config.model_validate(known))
        _record({FILE: to_parquet(table), **(files[0] if files else {})}, _run)
        _run.info["stages"] = stages.runtime().summary()
        return {**facts, "scores": summary(table)}

    return experiment


def _record(files: Mapping[str, bytes], run: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder) / name
            file.write_bytes(content)
            run.add_artifact(str(file), name=name)
