"""Loading what a sweep runs: the Sacred experiment behind `seml.executable`.

A study of ours is a module of `experiments.studies` with a pydantic `Config`; any other script
with one Sacred experiment in it works too, checked the way SEML checks it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pydantic
    import sacred

STUDIES = "experiments.studies"


class StudyError(Exception):
    """The executable cannot be used: one line that says why."""


@dataclass(frozen=True)
class Study:
    """A module with one Sacred experiment."""

    name: str
    module: ModuleType

    @cached_property
    def experiment(self) -> sacred.Experiment:
        import sacred

        found = [v for v in vars(self.module).values() if isinstance(v, sacred.Experiment)]
        if len(found) != 1:
            raise StudyError(
                f"{self.module.__file__}: expected one Sacred experiment, found {len(found)}"
            )
        return found[0]

    @property
    def config_model(self) -> type[pydantic.BaseModel] | None:
        """The schema of the configuration, where the study has one."""
        return getattr(self.module, "Config", None)

    @property
    def version(self) -> str:
        """What distinguishes results of one configuration: our studies declare it; of another
        script it is the hash of its text."""
        declared = getattr(self.module, "VERSION", None)
        if declared is not None:
            return f"{self.name}/{declared}"
        import hashlib

        text = Path(self.module.__file__ or "").read_bytes()
        return f"{self.name}/{hashlib.sha256(text).hexdigest()[:16]}"


def names() -> list[str]:
    """The studies that come with Assay."""
    package = importlib.import_module(STUDIES)
    paths = [path for folder in package.__path__ for path in Path(folder).glob("[a-z]*.py")]
    return sorted(path.stem for path in paths)


@lru_cache(maxsize=64)
def load(executable: str, working_dir: str) -> Study:
    """The study of an executable, given relative to the working directory.

    Raises:
        StudyError: there is no such file, or it cannot be imported.
    """
    path = (Path(working_dir) / executable).resolve()
    if (name := _our_study(path)) is not None:
        return Study(name, importlib.import_module(f"{STUDIES}.{name}"))
    if not path.is_file():
        raise StudyError(f"no such file: {path}")
    # Under its file name, as `python script.py` and SEML would import it.
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.parent))
    sys.modules[path.stem] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise StudyError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return Study(path.stem, module)


def _our_study(path: Path) -> str | None:
    """The name when the path is, or looks like, a study of this package.

    A configuration names `experiments/studies/andor.py` so that SEML finds the file; where Assay
    was installed without its repository the installed module is meant.
    """
    if path.parts[-3:-1] != tuple(STUDIES.split(".")):
        return None
    return path.stem if path.stem in names() else None


def working_directory(config: Path, project_root: str | None) -> Path:
    """SEML's rule: the project root, relative to the file that names it, else the file's folder."""
    folder = config.resolve().parent
    return (folder / Path(project_root).expanduser()).resolve() if project_root else folder


def describe(study: Study) -> dict[str, Any]:
    """Facts for `assay studies`."""
    doc = (study.module.__doc__ or "").strip().splitlines()
    return {"name": study.name, "version": study.version, "summary": doc[0] if doc else ""}
