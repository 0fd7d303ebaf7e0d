"""Which model made a map: at chance where shares are random, right where they are told apart."""

from __future__ import annotations

import pandas as pd
import pytest
from test_smerf_rows import CONTROLS, Plan, table

from analysis import smerf_identity, smerf_statistics
from analysis.smerf_rows import arrange

SETTINGS = ("Simple-FR", "Simple-NR", "Complex-CR1", "Complex-CR2")


def made(**plan: object) -> pd.DataFrame:
    few = {"settings": SETTINGS, "methods": ("grad_cam",), "measures": (), "probes": 60}
    return table(Plan(**{**few, **plan}))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smerf_statistics, "DRAWS", 200)


@pytest.mark.parametrize("seeds", [(0, 1), (0,)])
def test_separable_shares_are_told_apart_and_random_ones_are_not(seeds: tuple[int, ...]) -> None:
    found = smerf_identity.identify(arrange(made(seeds=seeds)), "CNN")
    assert found is not None
    assert found.by_seed == (len(seeds) > 1)
    assert found.chance == 0.25
    numbers = found.accuracy().intervals().set_index("label")
    assert numbers.loc["grad_cam", "estimate"] > 0.99
    for control in CONTROLS:
        assert numbers.loc[control, "low"] <= 0.25 + 0.02
        assert numbers.loc[control, "high"] >= 0.25 - 0.02
    assert found.confusion["grad_cam"].diagonal() == pytest.approx([1] * 4, abs=0.05)
    assert found.confusion["random"].sum(1) == pytest.approx([1] * 4)


def test_likeness_within_and_between_settings() -> None:
    alike = smerf_identity.likeness(arrange(made(seeds=(0, 1))), "CNN")
    assert alike.loc["grad_cam", "same"] > 0.99
    assert alike.loc["grad_cam", "other"] < alike.loc["grad_cam", "same"] - 0.2
    assert abs(alike.loc["random", "same"] - alike.loc["random", "other"]) < 0.1
    single = smerf_identity.likeness(arrange(made(seeds=(0,))), "CNN")
    assert pd.isna(single.loc["grad_cam", "same"])


def test_without_probe_images_of_two_settings_nothing_can_be_told() -> None:
    assert smerf_identity.identify(arrange(made(settings=("Simple-FR",))), "CNN") is None
    plain = made()
    other = plain[plain["score"] != "object_share"]
    assert smerf_identity.identify(arrange(other), "CNN") is None
    elsewhere = plain.assign(facets=plain["facets"].str.replace("probe", "test"))
    assert smerf_identity.identify(arrange(elsewhere), "CNN") is None
    assert dict(smerf_identity.drawings(arrange(other), "light")) == {}
