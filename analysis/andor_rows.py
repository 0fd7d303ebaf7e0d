"""The rows of the ANDOR study, arranged for its figures: formulas, methods, trained models.

A *configuration* is the inputs and symbols of a formula ("2inBinary"), a *gate* the one on top
("and", "or", "xor"); `dataset` of a row names both, and what else is unusual. Test sizes and
folds are pooled, as in the original. Everything here takes the tidy table alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from analysis import bootstrap, text

Selection = Literal["everything", "paper"]

TRAINED = ("dataset", "model", "model_params", "seed", "fold")
GATES = ("and", "or", "xor")
CLASSES = ("0", "1", "all")
THRESHOLDS = ("baseline", "1.0", "0.8", "0.5")
UNMASKED = ("all", "none")  # the threshold of models trained on whole inputs
# The paper shows this method (ours, or as its code has it) twice, with and without a CLS token,
# and only it with one.
WITH_CLS = ("transformer_attribution", "andor_transformer_attribution")
_DATASET = re.compile(r"(?P<config>[^/(]+)(?:/(?P<gate>\w+))?(?:\((?P<rest>.*)\))?$", re.DOTALL)
_POOLED = re.compile(r"(?:^|, )(test_size|fold)=([^,]*)")


@dataclass(frozen=True)
class Andor:
    """The rows of one study, with the columns `config`, `gate`, `split` and `label` (the method).

    frame       the rows, all facets
    selection   "everything": all models for all methods. "paper": models with a CLS token only
                for `transformer_attribution`, which is then shown as two methods
    """

    frame: pd.DataFrame
    selection: Selection

    @property
    def configs(self) -> list[str]:
        return list(dict.fromkeys(self.frame["config"]))

    @property
    def gates(self) -> list[str]:
        return ordered(self.frame["gate"], GATES)

    @cached_property
    def methods(self) -> pd.DataFrame:
        """family and control by label: methods by family and name, then controls."""
        first = self.frame.drop_duplicates("label").set_index("label")[["family", "control"]]
        first["control"] = first["control"].astype(bool)
        name = first.index.to_series().str.lower()
        return first.assign(_name=name).sort_values(["control", "family", "_name"])[
            ["family", "control"]
        ]

    def only(self, rows: pd.Series) -> Andor:
        """The part of the rows where a mask holds."""
        return Andor(self.frame[rows], self.selection)

    def score(self, name: str, *facets: str) -> pd.DataFrame:
        """A score's rows that have these facets and no others, of all its parameters."""
        rows = self.frame[self.frame["score"] == name]
        others = [facet for facet in bootstrap.FACETS if facet not in facets]
        rows = rows[rows[list(facets)].notna().all(axis=1) & rows[others].isna().all(axis=1)]
        return rows[rows["facets"].isin(["", "{}"])]

    @cached_property
    def trained(self) -> pd.DataFrame:
        """One row per trained model: config, gate, split, accuracy and majority, the share of
        the test rows of its larger class (NaN where no score is given by class)."""
        keys = ["config", "gate", "split", *TRAINED]
        models = self.frame.groupby(keys, dropna=False)["model_accuracy"].first()
        classes = self.frame[self.frame["score"].isin(["nib", "gib", "mean_importance"])]
        classes = classes[classes["class"].notna() & (classes["class"] != "all")]
        counts = classes.groupby([*keys, "class"])["n"].max().unstack("class")
        majority = counts.max(axis=1) / counts.sum(axis=1) if len(counts) else np.nan
        return models.to_frame("accuracy").assign(majority=majority).reset_index()

    def design(self) -> str:
        """`1,204 rows; 48 trained models (1 configuration, 3 gates, 8 architectures)`."""
        kinds = self.trained[["model", "model_params"]].drop_duplicates()
        runs = self.trained[["seed", "fold"]].drop_duplicates()
        parts = [
            text.count(len(self.configs), "configuration"),
            text.count(len(self.gates), "top gate"),
            text.count(len(kinds), "model type"),
            text.count(len(runs), "seed or fold", "seeds and folds"),
        ]
        models = text.count(len(self.trained), "trained model")
        return f"{text.count(len(self.frame), 'row')}; {models} ({', '.join(parts)})"

    def who(self) -> str:
        """One sentence on which models count for which method."""
        if self.selection == "paper":
            return (
                f"Models with a CLS token count only for “{WITH_CLS[0]} (CLS)”,"
                " as in the paper's figures."
            )
        return "All models count for every method that applies to them."


def arrange(
    table: pd.DataFrame, selection: Selection = "everything", accuracy: float = 0.0
) -> Andor:
    """The rows of the study "andor", of models with at least this test accuracy.

    Raises ValueError if the table has none, or lacks a column.
    """
    if selection not in ("everything", "paper"):
        raise ValueError(f'selection must be "everything" or "paper", not {selection!r}')
    rows = bootstrap.checked(table)
    rows = rows[rows["study"] == "andor"]
    if rows.empty:
        raise ValueError('no rows of the study "andor" in this table')
    if "fold" not in rows:
        rows = rows.assign(fold=0)
    names = {name: _parsed(name) for name in rows["dataset"].unique()}
    for i, column in enumerate(("config", "gate", "split")):
        rows[column] = rows["dataset"].map({name: found[i] for name, found in names.items()})
    rows["config"] = rows["config"].map(_short(rows["config"].unique()))
    rows["fold"] = rows["fold"].fillna(0).astype(int)
    for facet in ("class", "bucket", "threshold"):
        rows[facet] = rows[facet].astype(object).where(rows[facet].notna(), None)
    rows["label"] = bootstrap.method_labels(rows)
    rows["facets"] = rows["facets"].fillna("") if "facets" in rows else ""
    if "model_accuracy" not in rows:
        rows["model_accuracy"] = np.nan
    if accuracy > 0:
        rows = rows[rows["model_accuracy"] >= accuracy]
        if rows.empty:
            raise ValueError(f"no trained model has a test accuracy of {accuracy:g} or more")
    if selection == "paper":
        cls = rows["model_params"].map(_has_cls)
        twice = rows["method"].isin(WITH_CLS)
        rows = rows[~cls | twice].copy()
        kind = np.where(cls[rows.index], " (CLS)", " (no CLS)")
        rows["label"] = np.where(twice[rows.index], rows["label"] + kind, rows["label"])
    return Andor(rows.reset_index(drop=True), selection)


def _parsed(dataset: str) -> tuple[str, str, str]:
    """Configuration, gate on top, and whether test rows were held out ("split" or "all rows")."""
    found = _DATASET.match(dataset)
    if found is None:
        return dataset, "", "all rows"
    rest = found["rest"] or ""
    sizes = dict(_POOLED.findall(rest))
    rest = _POOLED.sub("", rest).strip(", ")
    config = found["config"] + (f"({rest})" if rest else "")
    held_out = float(sizes.get("test_size", 0)) > 0
    return config, found["gate"] or "", "split" if held_out else "all rows"


def _short(configs: Iterable[str]) -> dict[str, str]:
    """`3inBinary(irrelevant=3)` as `3inBinary` where no other configuration is called that."""
    configs = list(configs)
    heads = [name.partition("(")[0] for name in configs]
    return {
        name: head if heads.count(head) == 1 else name
        for name, head in zip(configs, heads, strict=True)
    }


def _has_cls(model_params: str) -> bool:
    return bool(json.loads(model_params).get("cls", False))


def ordered(found: Iterable[str], first: Sequence[str]) -> list[str]:
    """The distinct names: those of `first` in its order, then the others, sorted."""
    names = set(found)
    return [*(name for name in first if name in names), *sorted(names - set(first))]


def thresholds(found: Iterable[str]) -> list[str]:
    """ "baseline", then from the strictest threshold to the mildest."""

    def key(name: str) -> tuple[int, float, str]:
        try:
            return 1, -float(name), name
        except ValueError:
            return 0, 0.0, name

    return sorted(set(found), key=key)


def input_number(bucket: object) -> int | None:
    """3 of "input 3"; None for other buckets."""
    found = re.fullmatch(r"input[ _]?(\d+)", str(bucket))
    return int(found[1]) if found else None


def variants(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(suffix, rows) for each set of parameters of a score; the first has no suffix."""
    for i, given in enumerate(dict.fromkeys(rows["score_params"])):
        suffix = f" ({text.parameters(given) or 'defaults'})" if i else ""
        yield suffix, rows[rows["score_params"] == given]


def first_variant(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the parameters of the first row."""
    return rows[rows["score_params"] == rows["score_params"].iloc[0]] if len(rows) else rows


def count(rows: pd.DataFrame) -> str:
    """`1,204 rows of 48 trained models.`"""
    models = text.count(len(rows.drop_duplicates([*TRAINED])), "trained model")
    return f"{text.count(len(rows), 'row')} of {models}."


def spread(rows: pd.DataFrame, *by: str) -> pd.DataFrame:
    """mean, sd and n of the values by these columns; sd is 0 where there is one value."""
    values = rows[np.isfinite(rows["value"].astype(float))].groupby(list(by), sort=False)["value"]
    table = values.agg(mean="mean", sd="std", n="size")
    return table.assign(sd=table["sd"].fillna(0.0))


def difference(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """`rows` with the values of `other` at the same model, method and facets taken away."""
    keys = [*TRAINED, "label", *bootstrap.FACETS]
    right = other.drop_duplicates(keys)[[*keys, "value"]].rename(columns={"value": "_other"})
    both = rows.drop_duplicates(keys).merge(right, on=keys, how="inner")
    return both.assign(value=both["value"] - both["_other"]).drop(columns="_other")
