"""What can go wrong with a store. Every message is one line and holds no password."""

from __future__ import annotations


class StoreError(Exception):
    """The request was wrong, or the data is: trying again does not help."""


class DuplicateKey(StoreError):
    """A write would have given two documents the same `_id` or the same unique field."""


class StoreUnavailable(StoreError):
    """The store does not answer (server down, file locked, disk full): try again later."""
