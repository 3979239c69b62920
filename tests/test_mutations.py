"""Whatever an input holds, the answer is a result or one line: a small, fixed share of `python tests/mutations.py`."""

import collections

import pytest

from mutations import KINDS, json_changed, outcome, tried


@pytest.mark.parametrize("kind", KINDS)
def test_changed_inputs_give_a_result_or_one_line(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path))
    rows = tried(8 if kind == "pipeline JSON" else 24, seed=7, kinds=kind)
    bad = [row for row in rows if row[2] not in ("accepted", "refused")]
    assert not bad
    assert collections.Counter(state for _, _, state, _ in rows)["refused"] >= len(rows) // 4


def test_a_traceback_and_a_refusal_of_two_lines_are_seen():
    def two():
        raise ValueError("one\ntwo")

    assert outcome(lambda: {}["x"])[0] == "traceback" and outcome(two)[0] == "traceback"
    assert outcome(lambda: None) == ("accepted", "")


def test_changes_reach_every_depth_of_json():
    import random

    values = {"a": [1, {"b": "c"}], "d": None}
    found = {str(json_changed(values, random.Random(seed))) for seed in range(200)}
    assert len(found) > 60 and values == {"a": [1, {"b": "c"}], "d": None}
