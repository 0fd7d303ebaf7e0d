"""Where things are: the home directory, the result store, the numbers that may be tuned.

The store is, first found: `--db`, `$ASSAY_MONGODB_URI`, `store:` in `~/.config/assay/config.yaml`,
SEML's own `mongodb.config`, and else an SQLite file in the home directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import platformdirs
import yaml


class SettingsError(Exception):
    """A configuration file that cannot be used: one line that says which, why, and the mend."""


HEARTBEAT_SECONDS = 5.0  # how often a worker says that it is alive
DEAD_AFTER_SECONDS = 60.0  # silence, by the observer's own clock, after which a worker is dead
MAX_ATTEMPTS = 3  # an experiment whose worker died so often is KILLED, not queued again
OUTPUT_TAIL = 64 * 1024  # bytes of an experiment's output that go into its document
OUTPUT_FILE = "output.log.gz"  # the whole output of runs that print more than that
OUTPUT_KEPT = 64 * 1024 * 1024  # bytes of it that are kept, compressed, beside the document
# Between asking a child to stop and killing it. Slurm kills 30 s after SIGTERM by default, and we
# have it send SIGUSR2 a minute before the time limit.
STOP_GRACE_SECONDS = 15.0
LIMIT_GRACE_SECONDS = 40.0


@dataclass(frozen=True)
class StoreAddress:
    """A store's URL and where it was found, for messages."""

    url: str
    source: str


def home() -> Path:
    """`$ASSAY_HOME`, or the user's data directory. Created private to the user."""
    path = Path(os.environ.get("ASSAY_HOME") or platformdirs.user_data_dir("assay")).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsError(
            f"cannot create {path}: {error.strerror} (set ASSAY_HOME to a directory you own)"
        ) from error
    return path.resolve()


def artifacts() -> Path:
    """Where artifacts are; `$ASSAY_ARTIFACTS` puts them on another file system than the home."""
    path = Path(os.environ.get("ASSAY_ARTIFACTS") or home() / "artifacts").expanduser()
    return path.resolve()


def store_address(flag: str | None = None) -> StoreAddress:
    """Which store to use, and why.

    Raises:
        SettingsError: a configuration file cannot be read.
    """
    if flag:
        return StoreAddress(flag, "--db")
    if url := os.environ.get("ASSAY_MONGODB_URI"):
        return StoreAddress(url, "$ASSAY_MONGODB_URI")
    ours = Path(platformdirs.user_config_dir("assay")) / "config.yaml"
    if url := _read_yaml(ours).get("store"):
        return StoreAddress(str(url), str(ours))
    seml = Path(platformdirs.user_config_dir("seml")) / "mongodb.config"
    if keys := _read_yaml(seml):
        return StoreAddress(_seml_url(keys, seml), str(seml))
    return StoreAddress(f"sqlite:///{home() / 'assay.sqlite'}", "default")


def notify() -> dict[str, Any]:
    """The `notify:` block of the user's configuration, checked; empty where there is none.

    Raises:
        SettingsError: it is not as it should be.
    """
    path = Path(platformdirs.user_config_dir("assay")) / "config.yaml"
    block = _read_yaml(path).get("notify") or {}
    if not isinstance(block, dict) or set(block) - {"command", "webhook"}:
        raise SettingsError(f"{path}: notify: has the keys `command` and `webhook`")
    if not isinstance(block.get("command", []), list):
        raise SettingsError(f"{path}: notify.command: write a list, [program, argument, ...]")
    if not str(block.get("webhook", "https://")).startswith(("https://", "http://")):
        raise SettingsError(f"{path}: notify.webhook: write an https:// address")
    return block


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise SettingsError(f"{path}: expected `key: value` lines")
    return content or {}


def _seml_url(keys: dict[str, Any], path: Path) -> str:
    missing = {"host", "port", "database"} - keys.keys()
    if missing:
        raise SettingsError(f"{path}: missing {', '.join(sorted(missing))}")
    login = ""
    if keys.get("username"):
        login = f"{quote_plus(str(keys['username']))}:{quote_plus(str(keys['password']))}@"
    options = "?authSource=" + str(keys["database"]) if login else ""
    return f"mongodb://{login}{keys['host']}:{keys['port']}/{keys['database']}{options}"
