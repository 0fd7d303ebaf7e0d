"""Slurm profiles: what a cluster wants to be told, written down once in a YAML file.

`--profile gpu` looks for `gpu.yaml` in ./slurm/profiles, ~/.config/assay/profiles, and the
profiles that come with the repository; `--profile path/to/file.yaml` takes that file.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt, ValidationError

from orchestrator.launch import LaunchError, minutes


def _minutes(value: object) -> int:
    try:
        return minutes(str(value))
    except LaunchError as error:
        raise ValueError(str(error).partition(": ")[2]) from error


def _lines(value: object) -> object:
    return value.splitlines() if isinstance(value, str) else value


def _flag(value: object) -> object:
    """sbatch's options without a value are `true`; `false` takes back one of ours."""
    return {"true": True, "yes": True, "": True, "false": False, "no": False}.get(
        str(value).lower(), value
    )


Flag = Annotated[bool | str, BeforeValidator(_flag)]


class Profile(BaseModel):
    """The keys of a profile; those left out are left to the command line or to Slurm.

    Attributes:
        time: Slurm's format in the file, minutes here.
        cpus_per_task: `slots` × `threads` when left out.
        setup: shell lines run in the job before the worker starts.
        image: an Apptainer image to run the worker in.
        workers: size of the job array.
        slots: experiments at a time in one worker.
        threads: threads per slot.
        additional: any other option of sbatch by its long name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = None
    time: Annotated[int, BeforeValidator(_minutes)] | None = None
    mem: str | None = None
    gres: str | None = None
    cpus_per_task: PositiveInt | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: Annotated[list[str], BeforeValidator(_lines)] | None = None
    image: str | None = None
    workers: PositiveInt | None = None
    slots: PositiveInt | None = None
    threads: PositiveInt | None = None
    additional: dict[str, Flag] | None = None

    def given(self) -> dict[str, Any]:
        """The keys that the file has."""
        return self.model_dump(exclude_none=True)


def folders() -> list[Path]:
    """Where profiles are looked for, first to last."""
    return [
        Path("slurm/profiles"),
        Path(platformdirs.user_config_dir("assay")) / "profiles",
        Path(__file__).resolve().parents[1] / "slurm" / "profiles",
    ]


def names() -> list[str]:
    """Every profile that has a name."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.yaml")})


def find(name: str) -> Path:
    """The file of a profile, from its name or path.

    Raises:
        LaunchError: there is none.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise LaunchError(f"--profile {name}: there is no such file")
        return path
    for folder in folders():
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise LaunchError(
        f"--profile {name!r}: not known{_nearest(name, names())} "
        f"(known: {', '.join(names()) or 'none'}; or give the path of a YAML file)"
    )


def read(name: str) -> Profile:
    """The profile of this name, or at this path.

    Raises:
        LaunchError: one line that names the file, the key, and what would be right.
    """
    path = find(name)
    try:
        # Everything as text, since YAML reads 8:00:00 as the number 28800; pydantic does the rest.
        content = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"cannot read profile {path}: {error}") from error
    except yaml.YAMLError as error:
        raise LaunchError(f"profile {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content or {}, dict):
        raise LaunchError(f"profile {path}: expected `key: value` lines")
    try:
        return Profile.model_validate(content or {})
    except ValidationError as error:
        raise LaunchError(f"profile {path}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first mistake in one line."""
    known = list(Profile.model_fields)
    found = error.errors()[0]
    key = ".".join(str(part) for part in found["loc"] if not str(part).startswith("function-"))
    if found["type"] == "extra_forbidden":
        hint = _nearest(key, known) or f" (known: {', '.join(known)})"
        return f"unknown key {key!r}{hint}; other options of sbatch go under `additional:`"
    return f"{key}: {found['msg'].removeprefix('Value error, ')} (found {found['input']!r})"


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
