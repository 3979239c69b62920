"""The server as a process: many raters at once, and a SIGKILL midway. The whole of it: python tests/rating_load.py."""

import re

import pytest

import rating_load
import ratings
import servers

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_raters_at_once_lose_nothing_though_the_server_is_killed_midway(tmp_path, request, database):
    url = request.getfixturevalue("postgresql") if database == "postgresql" else ""
    folder = ratings.folder(tmp_path, forms=["pairs"], raters=10)
    text = (folder / "plan.toml").read_text()
    (folder / "plan.toml").write_text(re.sub(r"(?m)^(checks|repeats) = \d+", r"\1 = 1", text))
    found, wrong, *_ = rating_load.run(folder, url, 10, (0, 0), pictures=False, kill=30)
    assert wrong == [] and len(found.told) == 70 and found.again > 0


def test_ctrl_c_ends_the_server_and_its_log_names_nobody(tmp_path):
    folder = ratings.folder(tmp_path)
    with servers.survey(folder) as (raters, researcher, process):
        assert raters.startswith("http://127.0.0.1:") and "/?token=" in researcher
        process.send_signal(2)
        assert process.wait(60) == 130
        assert process.stdout.read() == ""
