"""The published numbers of SMERF, and how far ours are from them.

Kim, Plumb & Talwalkar 2022: plain CNNs on black, 20 images of each bucket, one model of each
setting. Numbers of figures are digitised from the notebooks that are published with the code
(±0.01), those of controls are computed from the metrics' definitions on generated images. The
figures show an undefined mean as 0 (Grad-CAM on complex reasoning), which is left out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.smerf_buckets import by_count, grouped, has_primary
from analysis.smerf_rows import GROUPS, TEN, Smerf
from analysis.smerf_statistics import Numbers

TOLERANCE = 0.1
_DIGITISED = "digitised from the published notebooks, ±0.01"
_COMPUTED = "computed from the definition on generated images"
CEILINGS = ("oracle", "oracle(mark=ink)", "input_only", "random", "sobel (Edge)",
            "sobel(absolute=true)")  # fmt: skip

_MAIN = """
PIOU simple average    .27 .26 .09 .38 .61 .56 .57 .60 .47 .61
PIOU simple worst      .13 .01 .02 .13 .35 .07 .07 .07 .37 .33
PIOU complex average   .24 .03 .03 .34 .41 .36 .40 .44 .04 .39
PIOU complex worst     .01 .00 .00 .06 .15 .04 .04 .07 .00 .00
PAFL simple average    .11 .16 .07 .10 .48 .62 .70 .63 .32 .43
PAFL simple worst      .08 .07 .03 .10 .35 .43 .49 .48 .22 .27
PAFL complex average   .13 .05 .05 .15 .42 .50 .56 .50 -   .22
PAFL complex worst     .01 .00 .00 .01 .07 .05 .05 .06 -   .01
"""
_BARS = ("G", "SG", "DCN", "GBP", "DT", "I*G", "IG", "LRP-Z", "LRP-ε", "LRP-A♭", "LRP-B♭",
         "DL-RC", "DL-R", "D-SHAP", "Random", "Edge")  # fmt: skip
_BAR_VALUES = """
PAFL simple average    -   -   -   -   -   .63 .63 .63 .70 .59 .44 .63 .65 -   .05 .05
SAFL simple average    .10 .12 .05 .08 .31 .39 .39 .39 .34 -   -   .37 .37 -   -   -
PAFL complex average   -   -   -   -   -   .50 .50 .50 -   .39 .13 -   .50 -   .03 -
SAFL complex average   -   -   -   -   .38 .49 .49 .49 .39 .29 -   .45 .45 .16 .06 -
"""
_CONTROL_VALUES = """
PIOU simple average    .84 .59 .53 .03 .16 .36
PIOU simple worst      .81 .07 .07 .01 .04 .08
PIOU complex average   .65 .53 .40 .02 .10 .29
PIOU complex worst     .39 .07 .02 .00 .00 .06
PAFL simple average    .75 .79 .54 .05 .05 .43
PAFL simple worst      .68 .68 .34 .02 .02 .14
PAFL complex average   .66 .68 .53 .04 .04 .40
PAFL complex worst     .33 .33 .05 .00 .00 .05
"""
_GROUP_METHODS = ("DT", "I*G", "IG", "LRP-ε", "LRP-A♭", "DL-RC", "DL-R", "G-CAM", "D-SHAP")
_GROUP_VALUES = """
Simple-FR:   with text      | .37(.36) .46(.35) .45(.35) .68(.12) .49(.16) .50(.25) .52(.28) .26(.15) .42(.25)
Simple-FR:   no text        | .60      .70      .70      .75      .55      .69      .72      .33      .55
Simple-NR:   with Box1      | .40(.24) .55(.24) .55(.24) .54(.28) .60(.12) .52(.28) .55(.24) .31(.03) .35(.13)
Simple-NR:   no Box1        | .61      .83      .83      .87      .72      .83      .83      .36      .46
Complex-FR:  both, text     | .26(.33) .34(.35) .35(.33) .64(.05) .40(.13) .39(.25) .40(.29) .07(.04) .31(.18)
Complex-CR1: Box2, text     | .10(.54) .06(.74) .07(.71) .15(.50) .10(.52) .09(.66) .08(.71) .01(.10) .01(.27)
Complex-CR1: both, text     | .36(.29) .39(.36) .40(.35) .71(.08) .44(.13) .36(.43) .34(.47) .09(.05) .31(.19)
Complex-CR2: Box1, text     | .25(.50) .25(.55) .25(.54) .46(.37) .24(.46) .29(.50) .20(.61) .04      .04(.11)
Complex-CR2: Box2, text     | .52(.11) .64(.09) .63(.09) .50(.15) .44(.13) .59(.11) .64(.09) .01(.00) .09(.02)
Complex-CR4: Box1, Box2, B  | .61(.04) .77(.02) .76(.03) .82(.01) .58(.02) .60(.09) .63(.08) .21(.00) .49(.01)
"""  # noqa: E501
_OBJECT_VALUES = """
PAFL Simple-FR  DT .65 .45 .36 | I*G .74 .54 .45 | LRP-ε .77 .71 .68 | DL-R .75 .59 .51 | D-SHAP .57 .46 .41
SAFL Simple-FR  I*G - .25 .34 | LRP-ε - .09 .12
PAFL Simple-NR  I*G .87 .68 .55 | LRP-ε .89 .69 .55
PIOU Simple-FR  I*G .80 .74 .71
PIOU Simple-NR  I*G .40 .46 .45
"""  # noqa: E501


@dataclass(frozen=True)
class Published:
    """One number: `where` is "simple average", a group of `GROUPS` or "Simple-FR, 2 objects";
    `method` the paper's name, or the label of a control."""

    measure: str
    where: str
    method: str
    value: float
    source: str


def published() -> list[Published]:
    """All of them."""
    found = [*_rows(_MAIN, TEN, _DIGITISED), *_rows(_BAR_VALUES, _BARS, _DIGITISED)]
    found += [*_rows(_CONTROL_VALUES, CEILINGS, _COMPUTED), *_groups(), *_objects()]
    return found


def _rows(block: str, methods: tuple[str, ...], source: str) -> Iterator[Published]:
    for line in block.strip().splitlines():
        measure, kind, statistic, *values = line.split()
        for method, value in zip(methods, values, strict=True):
            if value != "-":
                yield Published(measure, f"{kind} {statistic}", method, float(value), source)


def _groups() -> Iterator[Published]:
    for line in _GROUP_VALUES.strip().splitlines():
        where, values = (" ".join(part.split()) for part in line.split("|"))
        for method, value in zip(_GROUP_METHODS, values.split(), strict=True):
            primary, _, secondary = value.rstrip(")").partition("(")
            yield Published("PAFL", where, method, float(primary), _DIGITISED)
            if secondary:
                yield Published("SAFL", where, method, float(secondary), _DIGITISED)


def _objects() -> Iterator[Published]:
    for line in _OBJECT_VALUES.strip().splitlines():
        measure, setting, rest = line.split(maxsplit=2)
        for part in rest.split("|"):
            method, *values = part.split()
            for n, value in enumerate(values, 1):
                if value != "-":
                    where = f"{setting}, {n} object{'s' if n > 1 else ''}"
                    yield Published(measure, where, method, float(value), _DIGITISED)


def compare(data: Smerf, condition: str) -> pd.DataFrame:
    """Ours beside the published numbers, paper preset: measure, where, method (ours), paper,
    reference, estimate, low, high, difference, within (`TOLERANCE`), source.

    Only what the rows have. Means over all buckets of a kind are left out unless all its buckets
    are there, as they would be means of something else.
    """
    lacking = data.of(condition).missing_buckets()
    complete = {kind for kind, missing in lacking.items() if not missing}
    measures = ("PIOU", "PAFL", "SAFL")
    ours = pd.concat(
        [_ours(data, condition, m, complete).assign(measure=m) for m in measures],
        ignore_index=True,
    )
    theirs = pd.DataFrame(published()).rename(columns={"method": "paper", "value": "reference"})
    labels = {name: data.label_of(name) or name for name in theirs["paper"].unique()}
    theirs["method"] = theirs["paper"].map(labels)
    ours = ours.rename(columns={"label": "method"})
    both = theirs.merge(ours, on=["measure", "where", "method"], how="inner")
    difference = (both["estimate"] - both["reference"]).astype(float)
    both = both.assign(difference=difference, within=difference.abs() <= TOLERANCE)
    return both[["measure", "where", "method", "paper", "reference", "estimate", "low", "high",
                 "difference", "within", "source"]]  # fmt: skip


def _ours(data: Smerf, condition: str, measure: str, complete: set[str]) -> pd.DataFrame:
    """estimate, low, high by label and `where`."""
    numbers = data.means(measure, "paper")
    numbers = numbers.only(numbers.table["condition"] == condition)
    if not len(numbers):
        return pd.DataFrame(columns=["where", "label", "estimate", "low", "high"])
    parts = []
    for statistic, of in (("average", numbers.average), ("worst", numbers.worst)):
        table = of(["kind", "label"]).intervals()
        table = table[table["kind"].isin(complete)]
        parts.append(table.assign(where=[f"{kind} {statistic}" for kind in table["kind"]]))
    for setting in GROUPS:
        found: Numbers = grouped(numbers, [setting])
        if len(found):
            table = found.intervals()
            parts.append(table.assign(where=[f"{setting}: {name}" for name in table["group"]]))
    simple = numbers.only(has_primary(numbers.table) & (numbers.table["kind"] == "simple"))
    if len(simple):
        counted = by_count(simple).intervals()
        counts = zip(counted["setting"], counted["objects"], strict=True)
        where = [f"{setting}, {n} object{'s' if n > 1 else ''}" for setting, n in counts]
        parts.append(counted.assign(where=where))
    return pd.concat(parts, ignore_index=True)


def verdict(table: pd.DataFrame) -> str:
    """`41 of 52 numbers within ±0.1; median |difference| 0.04`, by kind of source."""
    if table.empty:
        return "no published number can be compared with these rows"
    parts = []
    for source, same in table.groupby("source", sort=False):
        middle = float(np.median(np.abs(same["difference"])))
        parts.append(
            f"{int(same['within'].sum())} of {len(same)} numbers within ±{TOLERANCE:g},"
            f" median |difference| {middle:.2f} ({source})"
        )
    return "; ".join(parts)
