from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import report, summary

pytestmark = pytest.mark.filterwarnings("error")

ABOUT: dict[str, Any] = {
    "title": "A <title> & more",
    "provenance": {
        "configs": ["quickstart.yaml"],
        "environment": {"python": "3.12", "device": "CPU"},
        "config": {"data": {"toplevel": ["and", "xor"]}},
        "log": "one\ntwo",
        "nothing": None,
        "failures": [{"experiment": 7, "error": "<script>alert('x')</script>"}],
    },
    "statuses": {"COMPLETED": 24, "FAILED": 1},
    "next_steps": ["Run `assay add a.yaml`", "Think <hard>"],
}
VOID = {"meta", "source", "img", "br", "input", "link"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what could load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.seen = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
            if name in ("src", "srcset"):
                self.loads.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.seen += data


@pytest.fixture(scope="module")
def page(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    s = summary.summarise(rows, draws=200)
    assert report.write(s, path, **ABOUT, meanings={"rank_gap": "Relevant `minus` rest."}) == path
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_is_one_closed_file_that_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.loads
    assert all(x.startswith("data:image/svg+xml;base64,") for x in parsed.loads)
    assert all(link.startswith("#") for link in parsed.links)
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not re.search(r"(https?:)?//\w", re.sub(r"base64,[^\"]*", "", page))
    assert "@import" not in page
    assert len(page) < 5e6


def test_everything_is_escaped(page: str) -> None:
    assert "<script>alert" not in page
    assert "A &lt;title&gt; &amp; more" in page
    assert "Think &lt;hard&gt;" in page
    assert "<code>assay add a.yaml</code>" in page


def test_tells_what_was_found_and_what_was_run(page: str) -> None:
    seen = Page(page).seen
    assert "integrated_gradients ranks best" in seen
    assert "beat the random control on at least one score" in seen
    assert "guided_backprop never does" in seen
    for section in ("Ranking", "Score by score", "How to read this", "What was run", "Next steps"):
        assert section in seen
    assert "24 completed" in seen
    assert "Failures" in seen
    assert "3.12" in seen
    assert "deconvolution: none on andor_transformer, missing on 12 of 24 models" in seen
    assert "Relevant minus rest." in seen
    assert page.count("<details id=") == 8


@pytest.mark.parametrize("failures", [[], "all of it", ["one", "two"], {"3": "x"}, None])
def test_failures_in_any_shape(tmp_path: Path, single: pd.DataFrame, failures: object) -> None:
    few = single[single["score"] == "rank_gap"]
    about = ABOUT | {"provenance": {"failures": failures}, "statuses": {}, "next_steps": []}
    page = report.write(few, tmp_path / "r.html", **about).read_text()
    assert ("Failures" in Page(page).seen) == bool(failures)
    assert "one trained model" in page


def test_few_rows_make_a_report_too(tmp_path: Path, small: pd.DataFrame) -> None:
    bare = small[~small["control"] & small["score"].isin(["rank_gap", "map_entropy"])]
    for rows in (bare, bare[bare["method"] == "saliency"]):
        seen = Page(report.write(rows, tmp_path / "r.html", **ABOUT).read_text()).seen
        assert "There is no random control" in seen
    blind = small.assign(value=float("nan"), samples=None)
    assert "undefined" in Page(report.write(blind, tmp_path / "r.html", **ABOUT).read_text()).seen


def test_a_failed_report_leaves_the_old_one(tmp_path: Path, small: pd.DataFrame) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="no rows"):
        report.write(small.iloc[:0], path, **ABOUT)
    assert path.read_text() == "old"


def test_findings(small: pd.DataFrame, rows: pd.DataFrame) -> None:
    twin = small[small["method"] == "integrated_gradients"].assign(method="zwilling")
    both = summary.summarise(pd.concat([small, twin]), draws=100).finding()
    assert both[0].startswith("No single method is best: ")
    assert "zwilling" in both[0]
    fooled = rows[rows["score"] == "rank_gap"].copy()
    constant = fooled["method"] == "constant"
    fooled.loc[constant, "value"] = 9.0
    nines = [np.full(256, 9, np.float32)] * int(constant.sum())
    fooled.loc[constant, "samples"] = pd.Series(nines, index=fooled.index[constant])
    assert any("saying nothing" in x for x in summary.summarise(fooled, draws=100).finding())
