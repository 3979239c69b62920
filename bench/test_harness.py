"""What the benches' numbers mean."""

import json
import time
from pathlib import Path

import pytest

from harness import FLOOR, Row, above, arguments, compare, extra, report, seconds, table


def test_ways_run_in_turn_and_the_warming_round_does_not_count():
    told = []
    row = compare("x", {"ours": lambda: told.append("a"), "theirs": lambda: told.append("b")}, rounds=3)
    assert told == ["a", "b"] * 4 and [len(x) for x in row.measured.values()] == [3, 3]
    told.clear()
    compare("x", {"ours": lambda: told.append("a"), "theirs": lambda: told.append("b")}, rounds=2, warm=False)
    assert told == ["a", "b"] * 2


def test_a_machine_that_slows_down_halfway_hardly_moves_the_ratio():
    """Each round's pair is ten to one; the medians of the two columns would say 32 to one."""
    row = Row("x", {"ours": [1, 1, 3.2, 10, 10], "theirs": [10, 10, 32, 100, 100]})
    assert row.ratio("theirs") == 10 and row.median("ours") == 3.2


@pytest.mark.parametrize(
    ("goal", "theirs", "met"),
    [
        ("<=0.5x", -2.0, False),  # an extra within the noise proves nothing
        ("10x", 9.9, False),
        ("10x", 10.0, True),
        (">=2x", 3.0, True),
        ("<=1.5x", 0.5, False),
        ("<=1.5x", 0.8, True),
    ],
)
def test_a_goal_is_a_bound_on_time_saved_or_on_time_added(goal, theirs, met):
    assert Row("x", {"ours": [1.0], "theirs": [theirs]}, {"theirs": goal}).met("theirs") is met
    assert Row("x", {"ours": [1.0], "theirs": [theirs]}).met("theirs") is None


def test_seconds_are_wall_time():
    assert 0.02 <= seconds(lambda: time.sleep(0.02)) < 1


def test_anything_can_be_measured_and_goals_differ_by_alternative():
    row = compare(
        "peak",
        {"ours": lambda: 2.0, "b": lambda: 8.0, "c": lambda: 3.0},
        rounds=2,
        goal={"b": "3x", "c": "3x"},
        measure=lambda work: work(),
        unit="MB",
        note="n",
    )
    assert (row.ratio("b"), row.met("b"), row.met("c"), row.median("c")) == (4.0, True, False, 3.0)
    assert table([row]).split("\n")[2:] == [
        "| peak | 2 MB | b | 8 MB | 4x | 3x | yes | n |",
        "| peak | 2 MB | c | 3 MB | 1.5x | 3x | no | n |",
    ]


@pytest.mark.parametrize(
    ("ways", "rounds", "goal"),
    [(["a"], 1, ""), (["a", "b"], 0, ""), (["a", "b"], 1, "fast"), (["a", "b"], 1, {"a": "2x"})],
)
def test_a_comparison_without_meaning_is_refused(ways, rounds, goal):
    with pytest.raises(ValueError):
        compare("x", {way: lambda: None for way in ways}, rounds=rounds, goal=goal)


def test_a_report_is_a_table_and_a_file_with_every_lap_and_the_machine(tmp_path, capsys):
    row = Row("thing", {"ours": [0.5, 0.25], "theirs": [1.0, 1.0]}, {"theirs": "3x"}, {"energy": 0.99})
    path = report("Many things, r 64", [row], tmp_path / "deep")
    assert "| thing | 375 ms | theirs | 1 s | 3x | 3x | yes | 0.99 |" in capsys.readouterr().out
    told = json.loads(path.read_text())
    assert path.name == "many-things-r-64.json" and told["machine"]["threads"] >= 1
    assert told["rows"][0]["ways"]["ours"]["all"] == [0.5, 0.25] and told["rows"][0]["ways"]["theirs"]["met"] is True


def test_every_bench_takes_the_same_options():
    options = arguments("What it is.\n\nMore.").parse_args(["--device", "cuda", "--quick", "--folder", "here"])
    assert (options.device, options.quick, options.folder) == ("cuda", True, Path("here"))
    scripts = [
        path
        for path in (Path(__file__).parents[1] / "bench").glob("*.py")
        if "harness" not in path.name and not path.name.startswith("test_")
    ]
    assert len(scripts) > 8 and all("arguments(__doc__)" in path.read_text() for path in scripts)


def test_an_extra_is_what_a_way_takes_beyond_the_base_and_its_ratio_that_of_medians():
    """A round in which noise hides one of the differences says nothing by itself."""
    took = {"ours": [11.0, 10.1, 12.0], "theirs": [14.0, 14.0, 13.0], "base": [10.0, 10.0, 10.0]}
    row = extra("x", took, "base", {"theirs": "<=0.5x"}, "ms")
    assert row.measured == {"ours": [1.0, pytest.approx(0.1), 2.0], "theirs": [4.0, 4.0, 3.0]}
    assert row.ratio("theirs") == 4 and row.met("theirs") and row.notes == {"base alone": "10 ms"}


def test_a_floor_is_no_way_but_a_column_and_how_often_ours_holds_it():
    took = {"ours": [0.013], "theirs": [0.014], "base": [0.010], FLOOR: [0.011]}
    row = extra("x", took, "base", {})
    assert (
        list(row.measured) == ["ours", "theirs"] and row.notes["floor"] == "1 ms" and row.notes["ours / floor"] == "3"
    )
    assert above(Row("x", {"ours": [4.0], "b": [8.0]}, unit="MB"), 2.0, "the file").notes == {
        "floor": "2 MB, the file",
        "ours / floor": "2",
    }
    assert above(Row("x", {"ours": [4.0], "b": [8.0]}), -1.0).notes["ours / floor"] == ""  # within the noise


def test_what_a_gpu_is_to_measure_at_full_size_runs_on_a_pico_base():
    """The same lines with another name and size: twins of one weight, every row, nothing left on the model."""
    import torch

    import pico
    from sampling import against, looking, stock, two_adapters
    from step import full_size, shapes, ways, whole

    name = str(pico.folder("flux"))
    steps = whole(name, pico.SIZE, "20x", "cpu", 1)
    assert [row.name.rpartition(", ")[2] for row in steps] == ["extra time", "extra memory", "500 updates"]
    assert all("floor" in row.notes for row in steps)
    assert steps[1].median("ours") < steps[1].median("peft lora")
    base, latents, condition = full_size(name, pico.SIZE, "cpu")
    before = list(base.model.state_dict())
    found = ways(base.model, shapes(base, base.defaults.targets), 2)
    assert {p.data_ptr() for p in base.model.parameters()} <= {p.data_ptr() for p in found["ours"][0].parameters()}
    with torch.no_grad():
        answers = [base.family.predict(m, latents, torch.tensor([500.0]), condition) for m, _ in found.values()]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    adapters, look = two_adapters(shapes(base, base.defaults.targets), base), looking(base, latents, condition)
    theirs = stock(base.model, adapters)
    beside, folded = against("pico", base.model, theirs, adapters, look, 1)
    assert (set(beside.measured), set(folded.measured)) == ({"ours", "two LoRAs"}, {"ours", "base"})
    assert list(base.model.state_dict()) == before
