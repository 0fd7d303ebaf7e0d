"""Modules that are imported when first used, so that checking a configuration needs no torch.

The standard library's LazyLoader, and what is built on it, puts unfinished modules into
`sys.modules`; Sacred walks over these with `inspect.stack()`, which imports torch from within
torch. A proxy that `sys.modules` does not know avoids that.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Module:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)  # the next look-up does not come here
        return value


def load(name: str) -> Any:
    """A stand-in for the module `name`, which it imports at the first access to an attribute."""
    return _Module(name)
