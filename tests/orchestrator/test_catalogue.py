"""`assay methods` and `assay scores`: every one explains itself."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from experiments import attribution, scoring
from orchestrator import catalogue
from orchestrator.cli import app


@pytest.mark.parametrize("name", sorted(attribution.methods()))
def test_a_method_has_a_text_a_cost_a_source_and_a_yaml_line_that_means_itself(name):
    found, text, facts, parameters, file = catalogue.method_page(name)
    method = attribution.methods()[name]
    assert found == name
    assert len(text) > 20
    assert dict(facts)["cost per sample"]
    assert method.family == "control" or method.source, "say which paper it comes from"
    assert len(parameters) == len(method.parameters)
    (spec,) = yaml.safe_load(file)["methods"]
    resolved, given = attribution.resolve(spec)
    assert resolved is method
    assert given == method.defaults


@pytest.mark.parametrize("name", sorted(scoring.scores()))
def test_a_score_has_a_text_a_direction_a_source_and_a_yaml_line_that_means_itself(name):
    found, text, facts, _, file = catalogue.score_page(name)
    assert found == name
    assert len(text) > 20
    assert {"better", "range", "needs", "source"} <= set(dict(facts)), "say what it is"
    (spec,) = yaml.safe_load(file)["scores"]
    assert scoring.resolve(spec) == scoring.resolve(name)


def test_the_lists_go_by_family_and_mistakes_are_one_line():
    assert {row[1] for row in catalogue.methods("control")} >= {"random", "constant", "fake_cam"}
    assert {row[1] for row in catalogue.methods()} == set(attribution.methods())
    assert {row[1] for row in catalogue.scores()} == set(scoring.scores())
    with pytest.raises(ValueError, match="unknown family 'cams'"):
        catalogue.methods("cams")
    shown = CliRunner().invoke(app, ["methods", "ig"], env={"COLUMNS": "100"})
    assert "Sundararajan" in shown.output
    assert "steps = 50" in shown.output
