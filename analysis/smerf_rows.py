"""The rows of the SMERF study, arranged for its figures: settings, buckets, methods, measures.

A *setting* says what a model has to reason about ("Simple-FR"), a *bucket* which objects an image
has ("Box1+A"). A *measure* is a score of an object's role under the paper's name ("PAFL" of the
primary objects, "SAFL" of the secondary ones), a *version* its preset, and a *condition* what
kind of model on what background ("CNN", "VGG16, noise"). Sizes of data sets, learning rates and
seeds are pooled. Everything here takes the tidy table alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TypeVar

import numpy as np
import pandas as pd

from analysis import bootstrap, text
from analysis.smerf_statistics import Numbers
from experiments.data.smerf import SETTINGS

T = TypeVar("T")

LETTERS = ("A", "B")
OBJECTS = ("Box1", "Box2", "Text")
KINDS = ("simple", "complex")
CONDITION = ("architecture", "background", "training", "data")
_PLAIN = ("CNN", "black", "plain", "paper")
_DATASET = re.compile(r"(?P<setting>[^(]+)(?:\((?P<rest>.*)\))?$", re.DOTALL)
_GIVEN = re.compile(r"(?:^|, )(background|preset)=([^,]*)")
_ARCHITECTURES = {
    "smerf_simple_cnn": "CNN", "smerf_complex_cnn": "CNN", "smerf_vgg16": "VGG16",
    "smerf_alexnet": "AlexNet",
}  # fmt: skip


# ---------------------------------------------------------------- settings and buckets


@cache
def truth(setting: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By bucket, the primary and the secondary objects of its images; empty for a setting that
    is none of the study's."""
    known = SETTINGS.get(setting)
    return {} if known is None else {b.name: (b.primary, b.secondary) for b in known.buckets}


def scorable(setting: str) -> list[str]:
    """The buckets that have a primary object, by number."""
    found = [bucket for bucket, (primary, _) in truth(setting).items() if primary]
    return sorted(found, key=number)


def objects(bucket: str) -> list[str]:
    """["Box1", "Text"] of "Box1+B"."""
    parts = [] if bucket == "none" else bucket.split("+")
    return ["Text" if part in LETTERS else part for part in parts]


def number(bucket: str) -> int:
    """The paper's number of a bucket, 1 to 12."""
    parts = bucket.split("+")
    letter = next((1 + i for i, each in enumerate(LETTERS) if each in parts), 0)
    return 3 * (2 * ("Box1" in parts) + ("Box2" in parts)) + letter + 1


def kind_of(setting: str) -> str:
    """ "simple" or "complex", the first part of a setting's name."""
    return setting.partition("-")[0].lower()


def _both(*parts: str) -> tuple[str, ...]:
    return tuple("+".join((*parts, letter)) for letter in LETTERS)


# The groups of buckets whose means the paper shows, by setting.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "Simple-FR": {
        "with text": (*_both("Box1"), *_both("Box1", "Box2")),
        "no text": ("Box1", "Box1+Box2"),
    },
    "Simple-NR": {
        "with Box1": (*_both("Box1"), *_both("Box1", "Box2")),
        "no Box1": (*_both(), *_both("Box2")),
    },
    "Complex-FR": {
        "text": _both(), "Box1, text": _both("Box1"), "Box2, text": _both("Box2"),
        "both, text": _both("Box1", "Box2"),
    },
    **{
        f"Complex-{setting}": {
            "Box1, text": _both("Box1"), "Box2, text": _both("Box2"),
            "both, text": _both("Box1", "Box2"),
        }
        for setting in ("CR1", "CR2")
    },
    **{
        f"Complex-{setting}": {
            bucket.replace("+", ", "): (bucket,)
            for bucket in (*_both(box), *_both("Box1", "Box2"))
        }
        for setting, box in (("CR3", "Box1"), ("CR4", "Box2"))
    },
}  # fmt: skip


# ---------------------------------------------------------------- methods and measures

# The paper's methods in its order, and what they are called here; the first ten are those of its
# main figures.
PAPER = {
    "G": ("absolute_gradient", "gradient"),
    "SG": ("smoothgrad_squared", "smoothgrad"),
    "DCN": ("deconvolution",),
    "GBP": ("guided_backprop",),
    "DT": ("deep_taylor",),
    "I*G": ("input_x_gradient",),
    "IG": ("integrated_gradients",),
    "LRP-Z": (),
    "LRP-ε": ("lrp_epsilon",),
    "LRP-A♭": ("lrp_preset_a_flat",),
    "LRP-B♭": ("lrp_preset_b_flat",),
    "DL-RC": ("deeplift_reveal_cancel",),
    "DL-R": ("deeplift",),
    "G-CAM": ("grad_cam",),
    "D-SHAP": ("deep_shap",),
    "Random": ("random",),
    "Edge": ("sobel",),
}
TEN = ("G", "SG", "DCN", "GBP", "DT", "IG", "LRP-ε", "DL-RC", "G-CAM", "D-SHAP")
CONTROLS = ("oracle", "input_only", "sobel", "random")
_KNOWN = {ours: paper for paper, names in PAPER.items() for ours in names}
_Z_BELOW = 1e-2  # an ε-rule with a smaller ε is the z-rule

# (score, region) → the paper's name; what is not here keeps its own.
MEASURES = {
    ("afl", "primary"): "PAFL", ("afl", "secondary"): "SAFL", ("safl", "secondary"): "SAFL",
    ("iou", "primary"): "PIOU", ("iou", "secondary"): "SIOU", ("siou", "secondary"): "SIOU",
    ("mafl", "primary"): "PMAFL", ("mafl", "secondary"): "SMAFL",
}  # fmt: skip
VERSIONS = ("paper", "fixed")
_REGIONS = {"safl": "secondary", "siou": "secondary"}
_SILENT = ("preset", "region")  # said by the measure and the version


def paper_name(method: str, params: str) -> str | None:
    """What the paper calls a method, if it is one of its own."""
    given = json.loads(params)
    if method == "lrp_epsilon" and float(given.get("epsilon", 0.0)) < _Z_BELOW:
        return "LRP-Z"
    if method == "sobel" and given.get("absolute"):
        return None
    return _KNOWN.get(method)


def measure_of(score: str, params: str) -> tuple[str, str, str]:
    """(measure, version, other parameters): ("PAFL", "paper", "")."""
    given = json.loads(params)
    region = given.get("region", _REGIONS.get(score, "primary"))
    region = "primary" if region == "relevant" else region
    rest = {key: value for key, value in given.items() if key not in _SILENT}
    measure = MEASURES.get((score, region), score)
    return measure, str(given.get("preset", "fixed")), text.parameters(json.dumps(rest))


@dataclass(frozen=True)
class Smerf:
    """The rows of one study, with the columns `setting`, `kind`, `condition` and its parts,
    `label` and `paper` (the method), `measure` and `version`.

    frame   the rows of maps
    models  the rows about the models themselves, and not their maps
    """

    frame: pd.DataFrame
    models: pd.DataFrame

    @cached_property
    def methods(self) -> pd.DataFrame:
        """family, control, paper by label: the paper's in its order, others by family, controls."""
        first = self.frame.drop_duplicates("label").set_index("label")
        table = first[["family", "control", "paper"]].assign(control=first["control"].astype(bool))
        order = {paper: i for i, paper in enumerate(PAPER)}
        keys = pd.DataFrame(
            {
                "control": table["control"],
                "place": table["paper"].map(order).fillna(len(order)),
                "family": table["family"],
                "name": table.index.str.lower(),
            },
            index=table.index,
        )
        return table.loc[keys.sort_values(list(keys.columns), kind="stable").index]

    @cached_property
    def conditions(self) -> list[str]:
        """The plain CNN on black first, then the others by their number of rows."""
        found = pd.concat([self.frame["condition"], self.models["condition"]]).value_counts()
        return sorted(found.index, key=lambda c: (c != condition(*_PLAIN), -found[c], c))

    @property
    def settings(self) -> list[str]:
        return ordered({*self.frame["setting"], *self.models["setting"]}, list(SETTINGS))

    def of(self, *conditions: str) -> Smerf:
        """The part of these conditions."""
        tables = (self.frame, self.models)
        return Smerf(*(table[table["condition"].isin(conditions)] for table in tables))

    def versions(self, *measures: str) -> list[str]:
        """The versions in which one of these measures is there by bucket."""
        rows = self.buckets(*measures)
        return ordered(rows["version"], VERSIONS)

    def buckets(self, *measures: str, version: str | None = None) -> pd.DataFrame:
        """The defined rows of buckets, of these measures and this version."""
        rows = self.frame[self.frame["measure"].isin(measures) & self.frame["bucket"].notna()]
        rows = rows[np.isfinite(rows["value"].astype(float))]
        return rows if version is None else rows[rows["version"] == version]

    def means(self, measure: str, version: str) -> Numbers:
        """The means of all buckets of all conditions, by method; with the column `kind`."""
        known = self._means
        if (measure, version) not in known:
            found = Numbers.of(self.buckets(measure, version=version), ["label"])
            kinds = found.table.assign(kind=[kind_of(each) for each in found.table["setting"]])
            known[measure, version] = replace(found, table=kinds)
        return known[measure, version]

    @cached_property
    def _means(self) -> dict[tuple[str, str], Numbers]:
        return {}

    def label_of(self, paper: str) -> str | None:
        """The method here that is the paper's; the first one of several."""
        found = self.methods.index[self.methods["paper"] == paper]
        return str(found[0]) if len(found) else None

    @cached_property
    def controls(self) -> dict[str, str]:
        """Method → label of CONTROLS: of several with one name, that with the fewest parameters;
        of edges the paper's, which has a direction."""
        rows = self.frame[self.frame["control"].astype(bool)]
        found = {}
        for name in CONTROLS:
            labels = rows[rows["method"] == name].drop_duplicates("label")
            if name == "sobel":
                paper = labels[labels["method_params"].str.contains("direction")]
                labels = paper if len(paper) else labels
            if len(labels):
                fewest = int(labels["method_params"].str.len().to_numpy().argmin())
                found[name] = str(labels["label"].iloc[fewest])
        return found

    def missing_buckets(self) -> dict[str, list[str]]:
        """By kind, the scorable buckets ("Complex-CR1 Box2+A") that no row is of."""
        rows = self.buckets("PAFL", "PIOU", "PMAFL")
        there = set(zip(rows["setting"], rows["bucket"], strict=True))
        return {
            kind: [
                f"{setting} {bucket}"
                for setting in SETTINGS
                if kind_of(setting) == kind
                for bucket in scorable(setting)
                if (setting, bucket) not in there
            ]
            for kind in KINDS
        }

    def design(self) -> str:
        """`1,204 rows of 21 trained models (7 settings, 3 seeds).`"""
        rows = pd.concat([self.frame, self.models])
        trained = rows.drop_duplicates(list(bootstrap.CLUSTER))
        parts = [
            text.count(len(self.settings), "setting"),
            text.count(rows["seed"].nunique(), "seed"),
        ]
        models = text.count(len(trained), "trained model")
        return f"{text.count(len(rows), 'row')} of {models} ({', '.join(parts)})."


def arrange(table: pd.DataFrame) -> Smerf:
    """The rows of the study "smerf".

    Raises ValueError if the table has none, or lacks a column.
    """
    rows = bootstrap.checked(table)
    rows = rows[rows["study"] == "smerf"]
    if rows.empty:
        raise ValueError('no rows of the study "smerf" in this table')
    rows = rows.reset_index(drop=True)
    rows["fold"] = rows["fold"].fillna(0).astype(int)
    rows["facets"] = rows["facets"].fillna("{}") if "facets" in rows else "{}"
    rows["bucket"] = rows["bucket"].astype(object).where(rows["bucket"].notna(), None)
    for column, values in _coordinates(rows).items():
        rows[column] = values
    about_model = rows["family"] == "model"
    maps = rows[~about_model & ~_part_of_mean(rows)].copy()
    maps["paper"] = _mapped(maps, bootstrap.METHOD, paper_name)
    maps["label"] = _labels(maps)
    measured = _mapped(maps, bootstrap.SCORE, measure_of)
    for i, column in enumerate(("measure", "version", "others")):
        maps[column] = [found[i] for found in measured]
    maps["version"] = _versions(maps)
    return Smerf(maps, rows[about_model].copy())


def _labels(rows: pd.DataFrame) -> pd.Series:
    """The method; where one has several sets of parameters, with the paper's name for it, or
    with what is not at its default."""
    labels = bootstrap.method_labels(rows)
    kinds = rows[[*bootstrap.METHOD, "paper"]].drop_duplicates()
    several = set(kinds.loc[kinds.duplicated("method", keep=False), "method"])
    named = kinds[kinds["paper"].notna() & kinds["method"].isin(several)]
    named = named[~named.duplicated(["method", "paper"], keep=False)]
    short = {(method, "{}"): method for method in several} | {
        (method, params): f"{method} ({paper})"
        for method, params, paper in named.itertuples(index=False, name=None)
    }
    pairs = zip(rows["method"], rows["method_params"], labels, strict=True)
    return pd.Series([short.get((m, p), label) for m, p, label in pairs], index=rows.index)


def _coordinates(rows: pd.DataFrame) -> dict[str, list[str]]:
    settings, given = {}, {}
    for dataset in rows["dataset"].unique():
        found = _DATASET.match(dataset)
        settings[dataset] = found["setting"] if found else dataset
        given[dataset] = dict(_GIVEN.findall(found["rest"] or "" if found else ""))
    presets = {each.get("preset", "fixed") for each in given.values()}
    trainings = {params: _training(params) for params in rows["model_params"].unique()}
    out = {
        "setting": [settings[each] for each in rows["dataset"]],
        "background": [given[each].get("background", "black") for each in rows["dataset"]],
        "architecture": [_ARCHITECTURES.get(each, each) for each in rows["model"]],
        "training": [trainings[each] for each in rows["model_params"]],
        "data": [
            given[each].get("preset", "fixed") if len(presets) > 1 else "paper"
            for each in rows["dataset"]
        ],
    }
    kinds = {setting: kind_of(setting) for setting in set(out["setting"])}
    out["kind"] = [kinds[setting] for setting in out["setting"]]
    parts = zip(*(out[part] for part in CONDITION), strict=True)
    out["condition"] = [condition(*each) for each in parts]
    return out


def _training(params: str) -> str:
    given = json.loads(params)
    recipe = given.get("hardening") or given.get("training") or {}
    adversary = recipe.get("adversary")
    if adversary is None:
        return "plain"
    return f"adversarial {adversary.get('attack', 'fgsm')}"


def condition(architecture: str, background: str, training: str, data: str) -> str:
    """ "CNN"; "AlexNet, noise, adversarial": what is plain is not said, nor what all share."""
    parts = zip((background, training, data), _PLAIN[1:], strict=True)
    return ", ".join([architecture, *(part for part, plain in parts if part != plain)])


def _mapped(rows: pd.DataFrame, key: tuple[str, str], function: Callable[[str, str], T]) -> list[T]:
    """function(name, parameters) of each row, called once for each pair."""
    pairs = list(zip(rows[key[0]], rows[key[1]], strict=True))
    found = {pair: function(*pair) for pair in dict.fromkeys(pairs)}
    return [found[pair] for pair in pairs]


def _part_of_mean(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of one threshold of several, whose mean has a row, too."""
    key = list(bootstrap.SCORE)
    mean = rows.loc[rows["threshold"] == "mean", key].drop_duplicates()
    averaged = pd.MultiIndex.from_frame(rows[key]).isin(pd.MultiIndex.from_frame(mean))
    return pd.Series(averaged, index=rows.index) & (rows["threshold"] != "mean")


def _versions(rows: pd.DataFrame) -> list[str]:
    """The preset; further sets of parameters of the same measure are told apart by them."""
    keys = list(zip(rows["measure"], rows["version"], rows["others"], strict=True))
    first: dict[tuple[str, str], str] = {}
    for measure, version, others in dict.fromkeys(keys):
        first.setdefault((measure, version), others)
    return [
        version if first[measure, version] == others else f"{version} ({others or 'defaults'})"
        for measure, version, others in keys
    ]


def ordered(found: Iterable[str], first: Sequence[str]) -> list[str]:
    """The distinct names: those of `first` in its order, then the others, sorted."""
    names = set(found)
    return [*(each for each in first if each in names), *sorted(names - set(first))]
