"""What SMERF's paper claims, held against the rows of a sweep.

    python -m analysis.smerf_claims SWEEP [SWEEP ...] [--reference] [--db STORE]

Each claim "holds", "does not hold", "is an artefact of the metric", or "cannot be said", and is
followed by the numbers that this rests on, with 95 % intervals over seeds and images, and the same
numbers of controls. Estimates decide, intervals show how surely. The rules:

- A claim about methods holds if nearly all (`NEARLY_ALL`) of the paper's ten that are there show
  it under the paper's preset of the metric.
- That maps are *bad* is an artefact of the metric if it says so of a perfect map as well (the
  oracle: the primary objects filled, or the ink in them), or no longer says so when it is
  computed as it should be (`fixed` preset). Where maps fall, the oracle has to fall by at least
  half of what the median method does.
- That maps are *good* is an artefact if a map that does not look at the model (the raw input) is
  as good, or if it no longer is so under the `fixed` preset.

`--reference` compares the means with the published ones; see `analysis.smerf_reference`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis import frames, smerf_identity, smerf_reference, text
from analysis.smerf_buckets import by_count, has_primary, in_groups
from analysis.smerf_rows import SETTINGS, TEN, Smerf, arrange
from analysis.smerf_statistics import Numbers

HOLDS, FAILS = "holds", "does not hold"
ARTEFACT, UNKNOWN = "is an artefact of the metric", "cannot be said"

NEARLY_ALL = 0.9  # of the methods
GOOD_IOU = 0.5  # claim 2: what the paper calls a success
ACUTE = 0.15  # claim 3: an "acute failure" of the worst bucket
FLOOR, NEAR = 0.05, 0.03  # claim 8: what nothing gets, and how near is near
TOLD_APART = 0.5  # claim 6: right more often than not, among all seven settings
# Claim 2: the methods that multiply by the input or redistribute relevance, and the others.
RELEVANCE = ("DT", "IG", "LRP-ε", "DL-RC", "D-SHAP")
GRADIENTS = ("G", "SG", "DCN")
IMPROVED = ("G", "SG", "GBP")  # claim 7: by adversarial training
# Claim 5: groups of buckets in which a secondary object outshines the primary one.
OUTSHONE = {
    "Complex-CR1": ("Box2, text",),
    "Complex-CR2": ("Box1, text",),
    "Complex-CR3": ("Box1, A", "Box1, B"),
    "Complex-CR4": ("Box2, A", "Box2, B"),
}
NAMES = {"PIOU": "IOU", "PAFL": "AFL"}


@dataclass
class Part:
    """One aspect of a claim: its verdict, why, and lines of numbers."""

    name: str
    verdict: str
    why: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    number: int
    says: str
    parts: list[Part]

    @property
    def verdict(self) -> str:
        """One word for all parts, or one for each."""
        found = list(dict.fromkeys(part.verdict for part in self.parts))
        if len(found) == 1:
            return found[0]
        return "; ".join(f"{part.name}: {part.verdict}" for part in self.parts)

    def show(self) -> str:
        lines = [f"{self.number}. {self.says}", f"   {self.verdict.upper()}"]
        for part in self.parts:
            why = f": {part.why}" if part.why else ""
            lines += [f"   {part.name} {part.verdict}{why}"]
            lines += [f"     {line}" for line in part.lines]
        return "\n".join(lines)


def claims(data: Smerf, numbers: Sequence[int] = range(1, 9)) -> list[Claim]:
    """These of the eight claims, about models of the first condition; the seventh is about the
    others."""
    return [_CLAIMS[number - 1](data, data.conditions[0]) for number in numbers]


# ---------------------------------------------------------------- numbers


def _ten(data: Smerf, among: Sequence[str] = TEN) -> list[str]:
    """Those of the paper's methods that are there, by their labels here."""
    found = [data.label_of(paper) for paper in among]
    return [label for label in found if label is not None]


def _controls(data: Smerf) -> list[str]:
    """All controls, the oracles first."""
    table = data.methods
    names = list(table.index[table["control"]])
    return sorted(names, key=lambda name: not name.startswith("oracle"))


def _oracles(data: Smerf) -> list[str]:
    return [name for name in _controls(data) if name.startswith("oracle")]


def _pooled(
    data: Smerf, condition: str, measure: str, version: str, kind: str, *, worst: bool = False
) -> Numbers:
    """The average over buckets of a kind, or the worst of them, by method."""
    numbers = data.means(measure, version)
    same = (numbers.table["condition"] == condition) & (numbers.table["kind"] == kind)
    numbers = numbers.only(same)
    return numbers.worst(["label"]) if worst else numbers.average(["label"])


def _values(numbers: Numbers) -> dict[str, float]:
    if not len(numbers):
        return {}
    return dict(zip(numbers.table["label"], numbers.value, strict=True))


def _table(data: Smerf, labels: Sequence[str], columns: dict[str, Numbers]) -> list[str]:
    """Aligned lines: a method, then each column's estimate and interval; controls at the end."""
    shown = {}
    for name, numbers in columns.items():
        table = numbers.intervals() if len(numbers) else pd.DataFrame(columns=["label"])
        shown[name] = {
            row["label"]: text.interval(row["estimate"], row["low"], row["high"])
            for _, row in table.iterrows()
        }
    names = [*labels, *_controls(data)]
    names = [name for name in names if any(name in column for column in shown.values())]
    rows = [["", *columns], *([name, *(c.get(name, text.NOTHING) for c in shown.values())]
                              for name in names)]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows]  # fmt: skip


def _share(labels: Sequence[str], holds: Callable[[str], bool]) -> tuple[int, int]:
    found = [holds(label) for label in labels]
    return sum(found), len(found)


def _positive(labels: Sequence[str], values: Mapping[str, float]) -> tuple[int, int]:
    """Of how many of the methods that are there the value is positive."""
    return _share([m for m in labels if m in values], lambda m: values[m] > 0)


def _enough(found: tuple[int, int]) -> bool:
    return found[1] > 0 and found[0] >= NEARLY_ALL * found[1] - 1e-9


def _bad(
    name: str,
    shown: tuple[int, int],
    oracles: Sequence[str],
    fixed: tuple[int, int] | None,
    what: str,
    lines: list[str],
) -> Part:
    """The verdict on a claim that maps are bad: `shown` by how many of how many methods, by which
    oracles, and by how many under the fixed preset (None: not there)."""
    count = f"{shown[0]} of {shown[1]} methods {what}"
    if not _enough(shown):
        return Part(name, FAILS, count, lines)
    if oracles:
        return Part(name, ARTEFACT, f"{count}, as {text.listing(oracles)} does", lines)
    if fixed is not None and fixed[1] and not _enough(fixed):
        why = f"{count}, but under the fixed preset only {fixed[0]} of {fixed[1]}"
        return Part(name, ARTEFACT, why, lines)
    again = f"; under the fixed preset {fixed[0]} of {fixed[1]}" if fixed and fixed[1] else ""
    return Part(name, HOLDS, f"{count}{again}", lines)


def _as_much(data: Smerf, labels: Sequence[str], falls: Mapping[str, float]) -> list[str]:
    """The oracles that fall as well: by at least half of what the median method does."""
    middle = float(np.median([falls[label] for label in labels]))
    return [o for o in _oracles(data) if falls.get(o, 0.0) >= max(middle / 2, 1e-9)]


def _lacks(name: str, what: str) -> Part:
    return Part(name, UNKNOWN, f"lacks {what}")


def _of_all(data: Smerf, condition: str, part: Part, *kinds: str) -> Part:
    """What is said of the average and of the worst bucket is said of all buckets, or not at all:
    three easy ones would speak for 37."""
    missing = data.of(condition).missing_buckets()
    lacking = sum(len(missing[kind]) for kind in kinds)
    if not lacking or part.verdict == UNKNOWN:
        return part
    why = f"{part.verdict}{': ' if part.why else ''}{part.why}"
    reasoning = f"buckets of {' and '.join(kinds)} reasoning"
    return Part(
        part.name, UNKNOWN, f"lacks {lacking} {reasoning}; of the others: {why}", part.lines
    )


# ---------------------------------------------------------------- the claims


def _harder(data: Smerf, condition: str) -> Claim:
    parts = [
        _of_all(data, condition, _falls(data, condition, measure), "simple", "complex")
        for measure in NAMES
    ]
    return Claim(1, "Nearly all methods do worse on complex than on simple reasoning.", parts)


def _falls(data: Smerf, condition: str, measure: str) -> Part:
    name = NAMES[measure]

    def fall(version: str) -> tuple[Numbers, Numbers, Numbers]:
        simple, complex_ = (_pooled(data, condition, measure, version, kind)
                            for kind in ("simple", "complex"))  # fmt: skip
        return simple, complex_, simple.minus(complex_, ["label"])

    simple, complex_, apart = fall("paper")
    falls = _values(apart)
    labels = [label for label in _ten(data) if label in falls]
    if not labels:
        return _lacks(name, f"{name} (paper preset) of simple and of complex settings")
    oracles = _as_much(data, labels, falls)
    fixed = _values(fall("fixed")[2])
    lines = _table(data, labels, {"simple": simple, "complex": complex_, "difference": apart})
    return _bad(
        name, _positive(labels, falls), oracles,
        _positive(labels, fixed), "fall", lines,
    )  # fmt: skip


def _succeed(data: Smerf, condition: str) -> Claim:
    says = (
        f"On simple reasoning methods of relevance reach an average IOU of {GOOD_IOU}, gradients,"
        " their squares and deconvolution do not, and deconvolution is near random."
    )
    numbers = {v: _pooled(data, condition, "PIOU", v, "simple") for v in ("paper", "fixed")}
    paper, fixed = (_values(each) for each in numbers.values())
    good, poor = ([m for m in _ten(data, among) if m in paper]
                  for among in (RELEVANCE, GRADIENTS))  # fmt: skip
    if not good or not poor:
        return Claim(2, says, [_lacks("IOU", "IOU (paper preset) of simple settings")])
    lines = _table(data, [*good, *poor], dict(numbers))
    wrong = [m for m in good if paper[m] < GOOD_IOU] + [m for m in poor if paper[m] >= GOOD_IOU]
    random, dcn = paper.get("random"), paper.get(data.label_of("DCN") or "")
    if random is not None and dcn is not None and dcn > random + 2 * FLOOR:
        wrong.append(f"{data.label_of('DCN')} (not near random)")
    raw = paper.get(data.controls.get("input_only", ""))
    if wrong:
        part = Part("IOU", FAILS, f"not so: {text.listing(wrong, 9)}", lines)
    elif raw is not None and raw >= GOOD_IOU:
        part = Part("IOU", ARTEFACT, f"the raw input reaches {raw:.2f} without any model", lines)
    elif (both := [m for m in (*good, *poor) if m in fixed]) and not _parted(fixed, good, poor):
        why = f"under the fixed preset the two groups of {len(both)} methods overlap"
        part = Part("IOU", ARTEFACT, why, lines)
    else:
        part = Part("IOU", HOLDS, "", lines)
    return Claim(2, says, [_of_all(data, condition, part, "simple")])


def _parted(values: dict[str, float], good: Sequence[str], poor: Sequence[str]) -> bool:
    upper = [values[m] for m in good if m in values]
    lower = [values[m] for m in poor if m in values]
    return not upper or not lower or min(upper) > max(lower)


def _acute(data: Smerf, condition: str) -> Claim:
    says = (
        "The worst bucket is far below the average: on complex reasoning it is at most"
        f" {ACUTE} for every method."
    )
    parts = [
        _of_all(data, condition, _worst_is_low(data, condition, measure), "complex")
        for measure in NAMES
    ]
    return Claim(3, says, parts)


def _worst_is_low(data: Smerf, condition: str, measure: str) -> Part:
    name = NAMES[measure]
    average, worst = (_pooled(data, condition, measure, "paper", "complex", worst=w)
                      for w in (False, True))  # fmt: skip
    mean, low = _values(average), _values(worst)
    fixed = _values(_pooled(data, condition, measure, "fixed", "complex", worst=True))
    labels = [label for label in _ten(data) if label in low]
    if not labels:
        return _lacks(name, f"{name} (paper preset) of complex settings")
    lines = _table(data, labels, {"average": average, "worst bucket": worst})
    columns = (worst.table[column] for column in ("label", "setting", "bucket"))
    where = {label: f"{setting} {bucket}" for label, setting, bucket in zip(*columns, strict=True)}
    raw = data.controls.get("input_only", "")
    if raw in low:
        lines.append(f"worst for the raw input: {where[raw]}, {low[raw]:.2f}")
    common = Counter(where[label] for label in labels).most_common()
    lines.append("worst for the methods: " + ", ".join(f"{b} ({n})" for b, n in common))
    return _bad(
        name, _share(labels, lambda m: low[m] <= ACUTE and low[m] <= mean[m] / 2),
        [o for o in _oracles(data) if low.get(o, 1.0) <= ACUTE],
        _share([m for m in labels if m in fixed], lambda m: fixed[m] <= ACUTE),
        f"have a worst bucket of at most {ACUTE}, and of half the average", lines,
    )  # fmt: skip


def _saturate(data: Smerf, condition: str) -> Claim:
    says = "With each object added to an image, PAFL falls and SAFL rises, on simple reasoning."
    settings = ("Simple-FR", "Simple-NR")
    return Claim(4, says, [_falls_with_objects(data, condition, s) for s in settings])


def _falls_with_objects(data: Smerf, condition: str, setting: str) -> Part:
    def counted(measure: str, version: str) -> Numbers:
        numbers = data.means(measure, version)
        keep = (numbers.table["condition"] == condition) & (numbers.table["setting"] == setting)
        numbers = numbers.only(keep & has_primary(numbers.table))
        return by_count(numbers) if len(numbers) else numbers

    def monotone(primary: Numbers, secondary: Numbers) -> dict[str, bool]:
        out = {}
        for label, by_n in _by_objects(primary).items():
            more = _by_objects(secondary).get(label, {})
            if len(by_n) == 3:
                falls = by_n[1] > by_n[2] > by_n[3]
                out[label] = falls and (not {2, 3} <= set(more) or more[2] < more[3])
        return out

    found = {v: [counted(m, v) for m in ("PAFL", "SAFL")] for v in ("paper", "fixed")}
    shown, fixed = monotone(*found["paper"]), monotone(*found["fixed"])
    labels = [label for label in _ten(data) if label in shown]
    if not labels:
        return _lacks(setting, f"AFL (paper preset) of {setting} with one, two and three objects")
    columns = {
        f"{measure} {n}": numbers.only(numbers.table["objects"] == n)
        for measure, numbers in zip(("PAFL", "SAFL"), found["paper"], strict=True)
        if len(numbers)
        for n in sorted(set(numbers.table["objects"]))
    }
    lines = _table(data, labels, columns)
    primary = _by_objects(found["paper"][0])
    falls = {label: n[1] - n[3] for label, n in primary.items() if {1, 3} <= set(n)}
    oracles = [o for o in _as_much(data, labels, falls) if shown.get(o)]
    return _bad(
        setting, _share(labels, lambda m: shown[m]), oracles,
        _share([m for m in labels if m in fixed], lambda m: fixed[m]), "do", lines,
    )  # fmt: skip


def _by_objects(numbers: Numbers) -> dict[str, dict[int, float]]:
    out: dict[str, dict[int, float]] = {}
    if len(numbers):
        where = zip(numbers.table["label"], numbers.table["objects"], numbers.value, strict=True)
        for label, n, value in where:
            out.setdefault(label, {})[int(n)] = float(value)
    return out


def _outshone(data: Smerf, condition: str) -> Claim:
    says = "In several complex buckets a map weighs the secondary object more than the primary one."
    parts = [_outshone_in(data, condition, *group) for group in OUTSHONE.items()]
    return Claim(5, says, parts)


def _outshone_in(data: Smerf, condition: str, setting: str, names: Sequence[str]) -> Part:
    """Holds for a group if most methods do; an artefact if it is so because the secondary object
    is larger: most no longer do per pixel."""
    name = f"{setting} ({' and '.join(names)})"

    def apart(secondary: str, primary: str) -> tuple[Numbers, Numbers, Numbers]:
        s, p = (_group(data, condition, m, setting, names) for m in (secondary, primary))
        return s, p, s.minus(p, ["label"]) if len(s) and len(p) else s.only(np.zeros(len(s)))

    secondary, primary, difference = apart("SAFL", "PAFL")
    more, per_pixel = _values(difference), _values(apart("SMAFL", "PMAFL")[2])
    labels = [label for label in _ten(data) if label in more]
    if not labels:
        return _lacks(name, f"AFL (paper preset) of {name}")
    lines = _table(data, labels, {"SAFL": secondary, "PAFL": primary, "difference": difference})
    shown, still = _positive(labels, more), _positive(labels, per_pixel)
    why = f"{shown[0]} of {shown[1]} methods do"
    if 2 * shown[0] <= shown[1]:
        return Part(name, FAILS, why, lines)
    if oracles := [o for o in _oracles(data) if more.get(o, -1.0) > 0]:
        return Part(name, ARTEFACT, f"{why}, as {text.listing(oracles)} does", lines)
    if still[1]:
        why += f"; per pixel (MAFL) {still[0]} of {still[1]}"
    if still[1] and 2 * still[0] <= still[1]:
        return Part(name, ARTEFACT, f"{why}: the secondary object is larger", lines)
    return Part(name, HOLDS, why, lines)


def _group(
    data: Smerf, condition: str, measure: str, setting: str, names: Sequence[str]
) -> Numbers:
    numbers = data.means(measure, "paper")
    numbers = numbers.only(numbers.table["condition"] == condition)
    return in_groups(numbers, setting, names).average(["label"])


def _alike(data: Smerf, condition: str) -> Claim:
    says = "The maps of models of different settings on the same image are hard to tell apart."
    found = smerf_identity.identify(data, condition)
    if found is None:
        return Claim(6, says, [_lacks("probe images", "probe images of two settings or more")])
    numbers = found.accuracy()
    right = _values(numbers)
    labels = [label for label in _ten(data) if label in right]
    if not labels:
        return Claim(6, says, [_lacks("probe images", "probe images of the paper's methods")])
    middle = float(np.median([right[label] for label in labels]))
    lines = _table(data, labels, {"told right": numbers})
    alike = smerf_identity.likeness(data, condition)
    lines += [
        f"likeness of the shares of two models (Pearson's r), {label}: one setting"
        f" {text.number(float(row['same']))}, two {text.number(float(row['other']))}"
        for label, row in alike.loc[[m for m in labels if m in alike.index]].iterrows()
    ]
    why = (
        f"the setting is told from the weight on objects in {middle:.2f} of maps (median over"
        f" methods; chance {found.chance:.2f}, {len(found.settings)} settings)"
    )
    if len(found.settings) < len(SETTINGS):
        why = f"{why}; lacks {len(SETTINGS) - len(found.settings)} of the settings"
        return Claim(6, says, [Part("probe images", UNKNOWN, why, lines)])
    verdict = HOLDS if middle <= TOLD_APART else FAILS
    return Claim(6, says, [Part("probe images", verdict, why, lines)])


def _everywhere(data: Smerf, condition: str) -> Claim:
    says = (
        "The same holds for other architectures and for adversarially trained models, which make"
        " gradients better; on natural backgrounds the worst bucket is worse still."
    )
    rows = data.frame.drop_duplicates("condition")
    background, training = (dict(zip(rows["condition"], rows[column], strict=True))
                            for column in ("background", "training"))  # fmt: skip
    parts = []
    for other in (c for c in data.conditions if c != condition):
        if background[other] != background[condition]:
            parts.append(_background(data, condition, other))
            continue
        parts.append(_same_pattern(data, other))
        if training[other] != training[condition]:
            parts.append(_improved(data, condition, other))
    there = " ".join(data.conditions)
    wanted = {"VGG16": "VGG16", "AlexNet": "AlexNet", "adversarial": "adversarial training",
              "images": "natural backgrounds"}  # fmt: skip
    parts += [_lacks(name, f"models: {name}") for word, name in wanted.items() if word not in there]
    return Claim(7, says, parts)


def _same_pattern(data: Smerf, condition: str) -> Part:
    """Claims 1 and 3 (as far as numbers go, artefact or not) for another kind of model."""
    checks = [(1, _falls), (3, _worst_is_low)]
    found = [(n, check(data, condition, m)) for n, check in checks for m in NAMES]
    known = [(n, part) for n, part in found if part.verdict != UNKNOWN]
    if not known:
        return _lacks(condition, f"simple and complex settings of {condition}")
    wrong = [f"claim {n} ({part.name})" for n, part in known if part.verdict == FAILS]
    lines = [f"claim {n}, {part.name}: {part.verdict}: {part.why}" for n, part in known]
    why = f"not {text.listing(wrong)}" if wrong else ""
    return Part(condition, FAILS if wrong else HOLDS, why, lines)


def _improved(data: Smerf, condition: str, other: str) -> Part:
    plain, trained = (_pooled(data, c, "PIOU", "paper", "simple") for c in (condition, other))
    name = f"{other}, gradients"
    if not len(plain) or not len(trained):
        return _lacks(name, "IOU (paper preset) of simple settings")
    gain = trained.minus(plain, ["label"])
    values = _values(gain)
    labels = [m for m in _ten(data, IMPROVED) if m in values]
    if not labels:
        return _lacks(name, "gradient, SmoothGrad or guided backpropagation")
    better = _positive(labels, values)
    lines = _table(data, labels, {condition: plain, other: trained, "difference": gain})
    why = f"{better[0]} of {better[1]} are better"
    return Part(name, HOLDS if better[0] == better[1] else FAILS, why, lines)


def _background(data: Smerf, condition: str, other: str) -> Part:
    """On the buckets that both have. The oracle falls, too, where black behind it was counted."""
    both = data.means("PAFL", "paper")
    both = both.only(both.table["kind"] == "complex")
    buckets = {c: set(map(tuple, both.table.loc[both.table["condition"] == c,
                                                ["setting", "bucket"]].to_numpy()))
               for c in (condition, other)}  # fmt: skip
    shared = buckets[condition] & buckets[other]
    at = [(s, b) in shared for s, b in both.table[["setting", "bucket"]].to_numpy()]
    both = both.only(np.array(at, dtype=bool))
    if not len(both):
        return _lacks(other, f"AFL (paper preset) of a complex setting on both ({other})")
    worst = both.worst(["condition", "label"])
    here, there = (worst.only(worst.table["condition"] == c) for c in (condition, other))
    lower = here.minus(there, ["label"])
    values = _values(lower)
    labels = [label for label in _ten(data) if label in values]
    lines = _table(data, labels, {condition: here, other: there, "difference": lower})
    oracles = [o for o in _oracles(data) if values.get(o, 0.0) > 0.01]
    return _bad(other, _positive(labels, values), oracles, None, "are lower", lines)


def _floors(data: Smerf, condition: str) -> Claim:
    says = f"The floors, random maps and edges, have an AFL of about {FLOOR}."
    parts = []
    for kind in ("simple", "complex"):
        numbers = _pooled(data, condition, "PAFL", "paper", kind)
        values = _values(numbers)
        floors = [data.controls[n] for n in ("random", "sobel") if n in data.controls]
        floors = [name for name in floors if name in values]
        if not floors:
            parts.append(_lacks(kind, f"random maps or edges with AFL (paper preset), {kind}"))
            continue
        far = [name for name in floors if abs(values[name] - FLOOR) > NEAR]
        why = f"not {text.listing(far)}" if far else ""
        lines = _table(data, [], {"AFL": numbers})
        parts.append(Part(kind, FAILS if far else HOLDS, why, lines))
    return Claim(8, says, parts)


_CLAIMS = (_harder, _succeed, _acute, _saturate, _outshone, _alike, _everywhere, _floors)


# ---------------------------------------------------------------- the command


def report(data: Smerf, *, reference: bool = False) -> str:
    """What the command prints."""
    condition = data.conditions[0]
    if reference:
        return _reference(data, condition)
    lines = [data.design(), f"Models: {condition}. Values: estimate [95 % interval]."]
    for kind, missing in data.of(condition).missing_buckets().items():
        if missing:
            settings = dict.fromkeys(bucket.split()[0] for bucket in missing)
            lines.append(
                f"Without {len(missing)} of the buckets of {kind} reasoning"
                f" ({', '.join(settings)}): averages and worst buckets are of the others."
            )
    found = claims(data)
    summary = [f"{claim.number}. {claim.verdict}" for claim in found]
    return "\n\n".join(["\n".join(lines), *(claim.show() for claim in found), "\n".join(summary)])


def _reference(data: Smerf, condition: str) -> str:
    table = smerf_reference.compare(data, condition)
    lines = [data.design(), f"Models: {condition}; published: plain CNNs on black."]
    for (measure, where), same in table.groupby(["measure", "where"], sort=False):
        lines.append(f"\n{measure}, {where}")
        width = max(len(name) for name in same["method"])
        for _, row in same.iterrows():
            ours = text.interval(row["estimate"], row["low"], row["high"])
            lines.append(
                f"  {row['method']:<{width}}  published {row['reference']:.2f}  ours {ours:<20}"
                f" difference {text.number(row['difference']):>6}"
                f"  {'within' if row['within'] else 'NOT within'} ±{smerf_reference.TOLERANCE:g}"
            )
    lines.append(f"\n{smerf_reference.verdict(table)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    from orchestrator import settings

    parser = argparse.ArgumentParser(
        prog="python -m analysis.smerf_claims",
        description="Hold the claims of SMERF's paper against the rows of sweeps.",
    )
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP")
    parser.add_argument("--reference", action="store_true",
                        help="compare means with the published ones")  # fmt: skip
    parser.add_argument("--db", help="result store; the default one when left out")
    given = parser.parse_args(arguments)
    try:
        url = settings.store_address(given.db).url
        tables = [frames.scores(sweep, store=url, samples=True) for sweep in given.sweeps]
        table = pd.concat(tables, ignore_index=True)
        table = table.drop_duplicates([c for c in frames.IDENTITY if c in table.columns])
        print(report(arrange(table), reference=given.reference))
    except (frames.NoResults, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
