"""Our runs of the ANDOR study beside runs of the original code.

    python -m analysis.andor_original SWEEP [--all]

The numbers of the original are ours: its functions (github.com/lschwenke/SaliencyMapsAreEncoder at
a9532a4, with captum 0.6.0 and grad-cam 1.4.8, patched to run on a CPU) on 2inBinary with XOR on
top, all rows trained and tested, one training per architecture. What they depend on is random: the
weights, the order of batches, the draws of KernelSHAP and of permutations, the weights of a
convolution that is never trained. So each is held against the folds of our experiment with the same
settings, which differ by their seed: it *holds* if one more of our folds could well have given
it, that is, if it lies in the 95 % prediction interval. One in twenty will not.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from analysis import frames

DATASET = "2inBinary/xor(preset=paper)"
MODELS = {
    "CNN": ("andor_cnn", {"skip": True, "batch_norm": True}),
    "Transformer": ("andor_transformer", {"cls": False, "attention_dropout": 0.0}),
}
THRESHOLDS = ("baseline", "1.0", "0.8", "0.5")
OF_MASKS = ("masked share", "logical accuracy", "row", "mask")
ACCURACY = {"CNN": 0.969, "Transformer": 1.0}

# GIB and NIB of class 0 and class 1, in percent.
BELOW = {
    "CNN": """
    lrp                      58.5   50.0   64.5   95.2
    integrated_gradients     71.4   24.3   73.0   58.7
    deeplift                 56.6   23.1   45.4   88.5
    kernel_shap              69.0   46.9   78.9   75.0
    guided_grad_cam          60.5   19.2   63.2   80.8
    feature_permutation      45.9   40.8   41.4   46.2
    deconvolution            54.7   61.3   78.9  100.0
    grad_cam_plus_plus       60.6   54.3   82.2   73.1
    grad_cam                 65.2   37.8   69.7   45.2
    """,
    "Transformer": """
    lrp                      62.0   68.7   84.9   97.1
    lrp_rollout              66.3   52.1   77.0   84.6
    transformer_attribution  55.7   52.6   57.9   80.8
    integrated_gradients     76.7   72.7   56.6   91.3
    deeplift                 63.2   35.5   75.7   72.1
    kernel_shap              68.1   57.3   67.1   76.0
    guided_grad_cam          25.4   56.8   35.5   78.8
    feature_permutation      45.3   36.9   40.8   46.2
    grad_cam_plus_plus       47.4   73.5   59.2   76.9
    grad_cam                 45.1   60.2   50.0   71.2
    """,
}  # fmt: skip
# For each threshold the masked share in percent, and in per mille the logical accuracy and the best
# accuracies from the masked row and from the mask alone.
MASKS = {
    "CNN": """
    lrp                     61 230  887 742   50 164  988 891   41 230  992 836   29 355  992 789
    integrated_gradients    57 328  992 973   50 180  992 977   42 273  992 977   30 535  996 980
    deeplift                56 328 1000 973   57 254 1000 980   42 348 1000 969   25 434 1000 930
    kernel_shap             66 211  973 867   53 195  996 930   40 344  992 941   27 512  984 926
    guided_grad_cam         78 129  863 848   45 141  941 844   35 203  953 793   28 277  957 723
    feature_permutation     70 148  891 703   75 102  836 750   74 105  848 750   72 125  848 746
    deconvolution           69  82  969 969   52  82  969 969   33  82  969 969   28  82  969 969
    grad_cam_plus_plus      74  86  809 672   58  98  977 770   56 109  977 789   53 117  984 781
    grad_cam                73 156  828 715   61 168  914 793   57 219  934 816   52 258  957 844
    """,
    "Transformer": """
    lrp                     76 102  809 707   50 156  941 785   37 297  977 773   27 402  992 746
    lrp_rollout             69 113  844 723   67  23  902 812   61  47  934 844   51 102  957 848
    transformer_attribution 57 305  945 707   70  27  898 773   66  51  926 820   57 117  965 844
    integrated_gradients    57 285  992 812   52 262  992 879   40 363  988 855   26 523  992 809
    deeplift                62 234  938 793   53 129  980 836   39 270  992 852   26 422 1000 793
    kernel_shap             63 293  941 719   51 258  980 836   39 402 1000 840   25 672  996 793
    guided_grad_cam         87  66  754 703   69  51  898 832   61  82  898 855   54 180  906 832
    feature_permutation     70 160  879 719   72 121  883 730   71 141  883 734   70 152  883 738
    grad_cam_plus_plus      75 121  859 805   49 145  965 887   45 180  984 902   42 195  988 898
    grad_cam                69 199  902 840   52 188  980 930   50 188  996 922   47 199 1000 918
    """,
}  # fmt: skip

# The CNN retrained on rows masked by `andor_lrp`: statistical logical accuracy, accuracy, and
# double class assignments (shares) of the whole row, the OR gate and the XOR gate.
RETRAINED = {
    "baseline": (0.289, 0.883, 0.0, 0.50, 0.40),
    "1.0": (0.227, 0.988, 0.054, 0.75, 0.50),
    "0.8": (0.324, 0.992, 0.111, 0.75, 0.40),
    "0.5": (0.461, 0.992, 0.147, 0.33, 0.40),
}
# Two-dimensional maps of the original are reduced by a sum for GIB and NIB, by a maximum for masks.
RETRAINED_LABELS = {"labels": "retrained"}
TWO_DIMENSIONAL = ("andor_lrp_rollout", "andor_transformer_attribution")

Key = tuple[str, str, str, str]  # model, method, quantity, class or threshold


def reference() -> Iterator[tuple[Key, float, float]]:
    """(key, value, half a unit of its last digit) of every number of the original; shares."""
    for model, value in ACCURACY.items():
        yield (model, "", "accuracy", ""), value, 0.0005
    for model in MODELS:
        for method, numbers in _lines(BELOW[model]):
            places = [("GIB", "0"), ("GIB", "1"), ("NIB", "0"), ("NIB", "1")]
            for place, number in zip(places, numbers, strict=True):
                yield (model, method, *place), number / 100, 0.0005
        for method, numbers in _lines(MASKS[model]):
            places = [(quantity, t) for t in THRESHOLDS for quantity in OF_MASKS]
            for place, number in zip(places, numbers, strict=True):
                unit = 0.01 if place[0] == "masked share" else 0.001
                yield (model, method, *place), number * unit, unit / 2
    names = ("statistical", "retrained", "full DCA", "OR DCA", "XOR DCA")
    for threshold, values in RETRAINED.items():
        for quantity, value in zip(names, values, strict=True):
            half = 0.005 if quantity in ("OR DCA", "XOR DCA") else 0.0005
            yield ("CNN", "andor_lrp", quantity, threshold), value, half


def _lines(table: str) -> Iterator[tuple[str, list[float]]]:
    for line in table.strip().splitlines():
        name, *numbers = line.split()
        yield f"andor_{name}", [float(number) for number in numbers]


def measured(rows: pd.DataFrame) -> dict[Key, list[float]]:
    """Our values of the same quantities, one per fold, from the tidy table."""
    found: dict[Key, list[float]] = {}
    rows = rows[rows["dataset"] == DATASET]
    for model, (name, settings) in MODELS.items():
        of_model = rows[rows["model"] == name]
        given = of_model["model_params"].map(json.loads)
        same = given.map(lambda g, s=settings: all(g.get(k, v) == v for k, v in s.items()))
        of_model = of_model[same.astype(bool)]
        folds = of_model.drop_duplicates("fold")
        found[model, "", "accuracy", ""] = folds["model_accuracy"].tolist()
        for method, of_method in of_model.groupby("method"):
            for place, values in _of_method(str(method), of_method):
                found[(model, str(method), *place)] = values["value"].tolist()
    return found


def _of_method(method: str, rows: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """((quantity, class or threshold), rows of all folds)"""
    queries = rows["method_params"].map(lambda text: "queries" in json.loads(text)).astype(bool)
    masks = rows[queries] if method in TWO_DIMENSIONAL else rows
    sums = rows[~queries]
    for quantity, score, params, extra in (
        ("GIB", "gib", {"definition": "paper"}, {}),
        ("NIB", "nib", {"preset": "paper"}, {}),
        ("masked share", "masked_share", {}, {}),
        ("logical accuracy", "logical_accuracy", {}, {}),
        ("row", "bayes_accuracy", {}, {"bucket": "row"}),
        ("mask", "bayes_accuracy", {}, {"bucket": "mask"}),
        ("statistical", "logical_accuracy_statistics", {}, {}),
        ("retrained", "retrained_accuracy", {}, {}),
        ("full DCA", "full_dca", RETRAINED_LABELS, {}),
        ("OR DCA", "minimal_dca", RETRAINED_LABELS, {"bucket": "or0"}),
        ("XOR DCA", "minimal_dca", RETRAINED_LABELS, {"bucket": "xor0"}),
    ):
        facet = "class" if score in ("gib", "nib") else "threshold"
        chosen = (sums if facet == "class" else masks).query("score == @score")
        chosen = chosen[chosen["score_params"].map(json.loads).map(params.__eq__).astype(bool)]
        for column, value in extra.items():
            chosen = chosen[chosen[column] == value]
        for label, group in chosen.groupby(facet):
            yield (quantity, str(label)), group


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per number of the original: model, method, quantity, at (a class or threshold),
    original, mean, sd and folds of ours, low and high of one more fold, and whether it holds.
    Numbers that the rows do not have are left out."""
    ours = measured(rows)
    lines = []
    for key, original, half in reference():
        values = [value for value in ours.get(key, []) if math.isfinite(value)]
        if len(values) < 2:
            continue
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
        reach = float(stats.t.ppf(0.975, len(values) - 1)) * sd * math.sqrt(1 + 1 / len(values))
        low, high = mean - reach - half - 1e-9, mean + reach + half + 1e-9
        lines.append((*key, original, mean, sd, len(values), low, high, low <= original <= high))
    columns = ["model", "method", "quantity", "at", "original", "mean", "sd", "folds", "low",
               "high", "holds"]  # fmt: skip
    return pd.DataFrame(lines, columns=columns)


def bound(rows: pd.DataFrame) -> pd.Series:
    """Retrained accuracy minus the best possible on the same masked rows, where all rows are
    trained and tested: one number per trained model, method (no control) and threshold."""
    whole = ~rows["dataset"].str.contains("test_size")
    rows = rows[whole & ~rows["control"].astype(bool) & rows["threshold"].isin(THRESHOLDS)]
    keys = ["dataset", "model", "model_params", "seed", "fold", "method", "method_params",
            "threshold"]  # fmt: skip
    plain = rows[rows["score_params"] == "{}"]
    accuracy = plain[plain["score"] == "retrained_accuracy"].set_index(keys)["value"]
    best = plain[(plain["score"] == "bayes_accuracy") & (plain["bucket"] == "row")]
    return (accuracy - best.set_index(keys)["value"]).dropna()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sweep")
    parser.add_argument("--all", action="store_true", help="every number, not only what misses")
    options = parser.parse_args()
    try:
        rows = frames.scores(options.sweep)
    except frames.NoResults as error:
        raise SystemExit(str(error)) from None
    found = compare(rows)
    if found.empty:
        raise SystemExit(f"sweep {options.sweep!r} has no experiment that the original was run on")
    print(f"{int(found['holds'].sum())} of {len(found)} numbers hold; by chance 95 % would\n")
    of = found.groupby(["model", "quantity"], sort=False)
    table = of.agg(hold=("holds", "sum"), of=("holds", "size"), original=("original", "mean"),
                   ours=("mean", "mean"), sd=("sd", "mean"))  # fmt: skip
    print(table.round(3).to_string(), "\n")
    shown = found if options.all else found[~found["holds"]]
    print("every number" if options.all else "those that do not hold")
    print(shown.drop(columns="folds").round(3).to_string(index=False))
    if len(apart := bound(rows)):
        print("\nretrained accuracy minus the best possible on the same rows, in points")
        of_dataset = (100 * apart).groupby(["dataset", "model"])
        within = (apart.abs() <= 0.005).groupby(["dataset", "model"]).mean()
        table = of_dataset.agg(["size", "mean", "median", "min", "max"])
        print(table.assign(within_half_a_point=within).round(2).to_string())


if __name__ == "__main__":
    main()
