"""From a YAML file to experiments: SEML's language, expanded by SEML's own functions, validated.

    fixed | grid | random | zip_id | nested sub-configurations | named configurations | ${...}

Every SEML file works here, and ours work in SEML. On top of SEML: files are read with YAML's safe
loader, and every configuration is checked against its study before anything is queued.
"""

from __future__ import annotations

import ast
import difflib
import gc
import hashlib
import json
import logging
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator import study as studies
from orchestrator.study import Study, StudyError

if TYPE_CHECKING:
    import pydantic

BLOCKS = ("seml", "slurm", "fixed", "grid", "random")


class GridError(Exception):
    """A mistake in a configuration file: file, key, what is wrong, and how to mend it."""


@dataclass
class Grid:
    """A configuration file, expanded: one document per experiment, not yet in a store."""

    path: Path
    study: Study
    documents: list[dict[str, Any]]
    root: Path | None = None  # of the project, whose sources are kept; None where none is named
    warnings: list[str] = field(default_factory=list)

    @property
    def identities(self) -> list[str]:
        return [d["assay"]["identity"] for d in self.documents]


def read(path: str | Path, settings: Mapping[str, Any] | None = None) -> Grid:
    """Expand and validate a file.

    Args:
        settings: dotted keys with their values in every experiment, whatever the file says of
            them. Experiments that differ in nothing else become one.

    Raises:
        GridError: naming file and key, for whatever is wrong with it.
    """
    path = Path(path)
    content = _load_yaml(path)
    block = content.get("seml")
    if not isinstance(block, dict):
        raise GridError(f"{path}: a `seml:` block with an `executable:` is missing")
    working_dir, study = _executable(path, block)
    with uncollected():
        return _grid(path, content, block, working_dir, study, settings or {})


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which looks through hundreds of thousands of small objects,
    none of them garbage, again and again: an eighth of the time of adding a large grid."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """The `settings` of `read`, of words `KEY=VALUE` with values in YAML.

    Raises:
        GridError: naming the word.
    """
    found = {}
    for word in words:
        key, mark, text = word.partition("=")
        if not mark or not all(key.split(".")):
            raise GridError(f"--set {word}: write KEY=VALUE, such as training.epochs=3")
        try:
            found[key] = _literals(yaml.load(text, Loader=_UniqueKeys))
        except yaml.YAMLError:
            raise GridError(f"--set {word}: the value is not valid YAML") from None
        except GridError as error:
            raise GridError(f"--set {word}: {error}") from error
    return found


def _grid(
    path: Path,
    content: dict[str, Any],
    block: dict[str, Any],
    working_dir: Path,
    study: Study,
    settings: Mapping[str, Any],
) -> Grid:
    try:
        unresolved = _with(settings, path, _expand(path, content))
        configs = _resolve(path, study, block, working_dir, unresolved)
    except StudyError as error:
        raise GridError(f"{path}: {error}") from error
    seml = _seml_document(path, block, working_dir)
    slurm = _slurm_documents(path, content.get("slurm"))
    git = _git(working_dir)
    version = study.version
    documents = [
        _document(path, study, version, seml, slurm, git, config, raw)
        for config, raw in zip(configs, unresolved, strict=True)
    ]
    unique = {d["assay"]["identity"]: d for d in documents}
    warnings = []
    if len(unique) < len(documents) and not settings:
        warnings.append(f"{len(documents) - len(unique)} configurations stand twice in {path}")
    root = working_dir if "project_root_dir" in block else None
    return Grid(path, study, list(unique.values()), root, warnings)


# ---- reading ---------------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is a mistake, as in SEML."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise GridError(f"line {line}: key {key!r} stands twice in the same block")
        return super().construct_mapping(node, deep)


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise GridError(f"cannot read {path}: {error.strerror}") from error
    try:
        content = yaml.load(text, Loader=_UniqueKeys)
    except GridError as error:
        raise GridError(f"{path}, {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise GridError(f"{path}{where}: not valid YAML: {problem}") from error
    if not isinstance(content, dict):
        raise GridError(f"{path}: expected blocks such as `seml:`, `fixed:` and `grid:`")
    try:
        return {str(key): _literals(value) for key, value in content.items()}
    except GridError as error:
        raise GridError(f"{path}: {error}") from error


def _literals(value: Any) -> Any:
    """Strings that read as Python literals become their value, as SEML does it: YAML 1.1 takes
    `1e-3` for a string. Numbers, lists, dicts and so on; never an object: keys by which jsonpickle
    makes objects (SEML reads results with it) are refused."""
    if isinstance(value, dict):
        for key in value:
            if str(key).startswith(("py/", "json://")):
                raise GridError(f"key {key!r} is reserved: jsonpickle would make an object of it")
        return {key: _literals(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literals(item) for item in value]
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        return _literals(literal) if isinstance(literal, dict | list) else literal
    return value


def _executable(path: Path, block: dict[str, Any]) -> tuple[Path, Study]:
    from seml.settings import SETTINGS

    for key in block:
        if key not in SETTINGS.VALID_SEML_CONFIG_VALUES:
            raise GridError(_unknown(path, f"seml.{key}", key, SETTINGS.VALID_SEML_CONFIG_VALUES))
    executable = block.get("executable")
    if not isinstance(executable, str):
        raise GridError(f"{path}: seml.executable: give the path of the study's Python file")
    root = studies.working_directory(path, block.get("project_root_dir"))
    folders = [root, path.resolve().parent]  # SEML's order: project root, then the file's folder
    folder = next((f for f in folders if (f / executable).is_file()), root)
    try:
        return folder, studies.load(executable, str(folder))
    except StudyError as error:
        known = ", ".join(f"experiments/studies/{name}.py" for name in studies.names())
        raise GridError(
            f"{path}: seml.executable: {executable!r}: {error} (studies of Assay: {known})"
        ) from error


# ---- expanding -------------------------------------------------------------------------------


def _expand(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """SEML's own expansion; nested dictionaries, named configurations not yet applied."""
    from seml.experiment.config import generate_configs
    from seml.utils.errors import ConfigError

    experiment = {k: v for k, v in content.items() if k not in ("seml", "slurm")}
    for key, value in experiment.items():
        if not isinstance(value, dict):
            known = ", ".join(BLOCKS)
            raise GridError(
                f"{path}: {key}: expected a block; blocks are {known} or a sub-configuration"
            )
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # SEML reports overridden parameters as information
    try:
        return generate_configs(experiment)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        text = str(error) or type(error).__name__
        if isinstance(error, KeyError):
            text = f"a parameter lacks {error} (write `type: choice` and `options: [...]`)"
        raise GridError(f"{path}: {text}") from error
    finally:
        logging.root.setLevel(level)


def _with(
    settings: Mapping[str, Any], path: Path, configs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The configurations with the settings in them, each once."""
    if not settings:
        return configs
    for config in configs:
        for key, value in settings.items():
            *outer, last = key.split(".")
            place = config
            for part in outer:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise GridError(f"{path}: {key} cannot be set: {part} is {place!r} there")
            place[last] = value
    return list({repr(config): config for config in configs}.values())


def _resolve(
    path: Path,
    study: Study,
    block: dict[str, Any],
    working_dir: Path,
    unresolved: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Complete configurations: named configurations, `${...}`, defaults, validation."""
    from seml.experiment.config import generate_named_configs

    configs, named = generate_named_configs(unresolved)
    model = study.config_model
    if model is not None and not any(named):
        return [_validated(path, model, _interpolated(config)) for config in configs]
    return _resolve_by_sacred(path, study, block, working_dir, configs, named)


def _resolve_by_sacred(
    path: Path,
    study: Study,
    block: dict[str, Any],
    working_dir: Path,
    configs: list[dict[str, Any]],
    named: list[list[str]],
) -> list[dict[str, Any]]:
    """For scripts without a schema: as `seml add` does it, unknown keys included."""
    from sacred.utils import ConfigAddedError, SacredError
    from seml.experiment import config as seml_config

    executable, folder = block["executable"], str(working_dir)
    level = logging.root.level
    logging.root.setLevel(logging.CRITICAL)  # advice to script authors, not to who runs a sweep
    try:
        resolved = seml_config.resolve_configs(executable, None, configs, named, folder)
        resolved = [_interpolated(config) for config in resolved]
        if study.config_model is not None:
            return [_validated(path, study.config_model, config) for config in resolved]
        seml_config.check_config(executable, None, resolved, folder)
    except ConfigAddedError as error:
        (key,) = error.__conflicting_configs__
        captured = {n for f in study.experiment.captured_functions for n in f.signature.arguments}
        known = sorted(name for name in captured if not name.startswith("_"))
        raise GridError(_unknown(path, key, key, known)) from error
    except (SacredError, KeyError, TypeError, ValueError) as error:
        text = str(error.args[0] if error.args else error).splitlines()[0]
        raise GridError(f"{path}: {text}") from error
    except SystemExit as error:  # SEML's functions end the process on a missing parameter
        raise GridError(f"{path}: the configuration lacks a parameter of {executable}") from error
    finally:
        logging.root.setLevel(level)
    return resolved


def _interpolated(config: dict[str, Any]) -> dict[str, Any]:
    """With the values that `${...}` stands for, by SEML's rules."""
    if "${" not in repr(config):  # spares thousands of configurations a slow search
        return config
    from seml.experiment.config import resolve_interpolations

    return dict(resolve_interpolations({"config": config})["config"])


def _validated(
    path: Path, model: type[pydantic.BaseModel], config: dict[str, Any]
) -> dict[str, Any]:
    import pydantic

    try:
        return model.model_validate(config).model_dump(mode="json")
    except pydantic.ValidationError as error:
        raise GridError(_explain(path, model, error)) from error


def _explain(path: Path, model: type[pydantic.BaseModel], error: pydantic.ValidationError) -> str:
    """The first problem, as one line: file, key, offending value, nearest valid key."""
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"] if "[" not in str(part)]
    key = ".".join(location) or "configuration"
    more = len(error.errors()) - 1
    rest = f" (and {more} more)" if more else ""
    if problem["type"] == "extra_forbidden":
        return _unknown(path, key, location[-1], _fields(model, location[:-1])) + rest
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, dict | list) else f" (got {given!r})"
    return f"{path}: {key}: {message}{shown}{rest}"


def _fields(model: Any, location: list[str]) -> list[str]:
    """Names that are valid at a place inside a schema."""
    for part in location:
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return []
        model = fields[part].annotation
    return list(getattr(model, "model_fields", {}))


def _unknown(path: Path, key: str, word: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    valid = f" (valid: {', '.join(known)})" if known else ""
    return f"{path}: {key}: unknown key {word!r}{hint}{valid}"


# ---- documents -------------------------------------------------------------------------------


def _document(
    path: Path,
    study: Study,
    version: str,
    seml: dict[str, Any],
    slurm: list[dict[str, Any]],
    git: dict[str, Any] | None,
    config: dict[str, Any],
    unresolved: dict[str, Any],
) -> dict[str, Any]:
    """An experiment in SEML's schema; what is ours is under `assay`."""
    from seml.experiment.config import config_get_exclude_keys

    config_hash = _config_hash(config, config_get_exclude_keys(unresolved))
    seed = config.get("seed") if "seed" in unresolved or study.config_model else None
    identity = hashlib.sha256(f"{config_hash}/{seed}/{version}".encode()).hexdigest()
    return {
        "batch_id": 0,  # set when it is added
        "config": config,
        "config_unresolved": unresolved,
        "config_hash": config_hash,
        "seml": seml,
        "slurm": slurm,
        "git": git,
        "assay": {
            "identity": identity,
            "study": study.name,
            "code_version": version,
            "file": path.name,
            "attempt": 0,
        },
    }


def _config_hash(config: dict[str, Any], exclude: Sequence[str]) -> str:
    """SEML's `make_hash`, ten times as fast where no key needs its flattening of dictionaries."""
    if not _plain_keys(config):
        from seml.utils import make_hash

        return str(make_hash(config, exclude))
    prefixes = tuple(exclude)
    kept = {key: value for key, value in config.items() if not key.startswith(prefixes)}
    return hashlib.md5(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _plain_keys(value: dict[Any, Any]) -> bool:
    """Whether flattening the dictionary and nesting it again gives the same one."""
    for key, item in value.items():
        if not isinstance(key, str) or "." in key:
            return False
        if isinstance(item, dict) and not _plain_keys(item):
            return False
    return True


def _seml_document(path: Path, block: dict[str, Any], working_dir: Path) -> dict[str, Any]:
    version = metadata.version("seml")
    output = Path(block.get("output_dir", "."))
    return {
        **{k: v for k, v in block.items() if k not in ("project_root_dir", "output_dir")},
        "executable": block["executable"],
        "name": block.get("name", path.stem),
        "output_dir": str(output),
        "conda_environment": block.get("conda_environment"),
        "working_dir": str(working_dir),
        "version": [int(part) if part.isdecimal() else part for part in version.split(".")],
        # SEML copies the whole environment, with its secrets, into every document; we do not.
        "env": {},
        "command": None,
        "command_unresolved": None,
        "temp_dir": None,
    }


def _slurm_documents(path: Path, block: Any) -> list[dict[str, Any]]:
    from seml.experiment.config import assemble_slurm_config_dict
    from seml.settings import SETTINGS

    blocks = block if isinstance(block, list) else [block] if block else [{}]
    documents = []
    for one in blocks:
        one = {"experiments_per_job": 1, "sbatch_options": {}, **one}
        for key in one:
            if key not in SETTINGS.VALID_SLURM_CONFIG_VALUES:
                valid = SETTINGS.VALID_SLURM_CONFIG_VALUES
                raise GridError(_unknown(path, f"slurm.{key}", key, valid))
        documents.append(dict(assemble_slurm_config_dict(one)))
    return documents


@lru_cache(maxsize=8)
def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and state of the repository that the code runs from, as SEML records it."""

    def ask(*words: str) -> str | None:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        commit = ask("rev-parse", "HEAD")
        if commit is None:
            return None
        origin = ask("remote", "get-url", "origin") or f"git:/{ask('rev-parse', '--show-toplevel')}"
        return {
            "path": _without_login(origin),
            "commit": commit,
            "dirty": bool(ask("status", "-s")),
        }
    except OSError:  # no git on this machine
        return None


def _without_login(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else url
