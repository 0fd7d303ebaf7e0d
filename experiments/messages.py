"""One clear line for a user's mistake: what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The line for a name that does not exist: the nearest ones that do, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}{guess} (known: {', '.join(names) or 'none'})"


def one_line(what: str, error: ValidationError, known: Iterable[str] = ()) -> str:
    """A pydantic error as one line, each complaint with the place it is about."""
    complaints = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            complaints.append(unknown("key", place, known))
            continue
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] != "value_error":
            text = f"{text[:1].lower()}{text[1:]}, not {item['input']!r}"
        complaints.append(f"{place}: {text}" if place else text)
    return f"{what}: {'; '.join(complaints)}"
