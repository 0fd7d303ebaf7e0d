"""The filter language."""

from __future__ import annotations

import pytest

from orchestrator.selection import SelectionError, parse


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["state:failed"], {"status": {"$in": ["FAILED"]}}),
        (["state:failed,killed"], {"status": {"$in": ["FAILED", "KILLED"]}}),
        (["id:3-17"], {"_id": {"$gte": 3, "$lte": 17}}),
        (["id:3"], {"_id": {"$gte": 3, "$lte": 3}}),
        (["id:1,4-5"], {"$or": [{"_id": {"$gte": 1, "$lte": 1}}, {"_id": {"$gte": 4, "$lte": 5}}]}),
        (["seed=0"], {"config.seed": {"$eq": 0}}),
        (["seed>=2"], {"config.seed": {"$gte": 2}}),
        (["model.name!=andor_cnn"], {"config.model.name": {"$ne": "andor_cnn"}}),
        (["data.test_size<0.5"], {"config.data.test_size": {"$lt": 0.5}}),
        (["host.hostname=n1"], {"host.hostname": {"$eq": "n1"}}),
        (['{"batch_id": 2}'], {"batch_id": 2}),
        (
            ["seed=0", "id:1"],
            {"$and": [{"config.seed": {"$eq": 0}}, {"_id": {"$gte": 1, "$lte": 1}}]},
        ),
    ],
)
def test_words_become_a_filter(words, expected):
    assert parse(words) == expected


@pytest.mark.parametrize("word", ["state:lost", "id:x", "nonsense", "{broken", "id:"])
def test_what_cannot_be_read_is_named(word):
    with pytest.raises(SelectionError, match="filter") as raised:
        parse([word])
    assert word in str(raised.value)
    assert "\n" not in str(raised.value)
