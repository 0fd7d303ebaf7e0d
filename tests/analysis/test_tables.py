from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from analysis import summary, tables, text

pytestmark = pytest.mark.filterwarnings("error")


def printed(data: summary.Summary, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(tables.render(data, width=width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def full(rows: pd.DataFrame) -> summary.Summary:
    return summary.summarise(rows, draws=200)


@pytest.mark.parametrize("width", [80, 100, 140, 220])
def test_fits_the_terminal(full: summary.Summary, width: int) -> None:
    lines = printed(full, width)
    assert max(map(len, lines)) <= width
    body = [line for line in lines if line.strip().startswith(("1 ", "11 ", "oracle", "constant"))]
    assert len(body) == 4
    for name in full.ranks.index:  # one line each, no name cut or folded
        assert any(f" {name} " in line for line in lines)


def test_wider_shows_more(full: summary.Summary) -> None:
    narrow, wide = printed(full, 100), printed(full, 220)
    assert "5 more scores" in " ".join(narrow)
    assert "more score" not in " ".join(wide)
    assert max(map(len, wide)) > max(map(len, narrow)) + 40


def test_controls_stand_below_a_rule(full: summary.Summary) -> None:
    lines = printed(full, 100)
    rules = [i for i, line in enumerate(lines) if set(line.strip()) == {"─"}]
    assert len(rules) == 2
    assert "guided_backprop" in lines[rules[1] - 1]
    assert "oracle" in lines[rules[1] + 1]


def test_one_model_says_so(single: pd.DataFrame) -> None:
    shown = " ".join(printed(summary.summarise(single, draws=50), 100))
    assert "test samples only" in " ".join(shown.split())


def test_ranked(full: summary.Summary, rows: pd.DataFrame) -> None:
    table = tables.ranked(full)
    assert list(table["method"][:2]) == ["integrated_gradients", "deep_lift"]
    assert table["control"].tolist() == [False] * 11 + [True] * 4
    assert "relevance_auroc ↑" in table.columns
    assert "map_entropy ↓" in table.columns
    assert table.loc[0, "beats random"] == "8/8"
    assert table.set_index("method").loc["random", "beats random"] == "–"
    assert table["relevance_auroc ↑"].str.fullmatch(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]").all()
    gap = (rows["method"] == "saliency") & (rows["score"] == "rank_gap")
    fewer = tables.ranked(summary.summarise(rows[~gap], draws=20)).set_index("method")
    assert fewer.loc["saliency", "rank_gap ↑"] == "n/a"


def test_no_controls_and_one_method(small: pd.DataFrame) -> None:
    methods = small[~small["control"]]
    table = tables.ranked(methods)
    assert "beats random" not in table
    alone = summary.summarise(small[small["method"] == "saliency"], draws=20)
    assert tables.ranked(alone)["mean rank"].tolist() == ["–"]
    assert any("saliency" in line for line in printed(alone, 100))


def test_numbers_and_names() -> None:
    assert text.number(-0.0004, 3) == "0.000"
    assert text.number(-1.5, 1) == "−1.5"
    assert text.number(float("nan")) == "–"
    assert text.number(12_345_678.0) == "1.23e7"
    assert text.decimals([0.02, 0.03, 0.025]) == 3
    assert text.decimals([4.0]) == 1
    assert text.decimals([], [123.0]) == 0
    assert text.decimals([], []) == 2
    assert text.percent(0.999) == ">99 %"
    assert text.percent(1.0) == "100 %"
    assert text.percent(0.001) == "<1 %"
    assert text.probability(0.0001) == "<0.001"
    assert text.parameters('{"a": 1, "b": "zero", "c": [1, 2]}') == "a=1, b=zero, c=[1,2]"
    assert text.parameters(None) == text.parameters("{}") == ""
    assert text.listing("abcdefg", 4) == "a, b, c, d and 3 more"
    assert text.listing("ab") == "a and b"
    names = text.labels([("ig", "{}"), ("ig", '{"n": 5}'), ("s", '{"n": 5}')])
    assert list(names.values()) == ["ig(defaults)", "ig(n=5)", "s"]
