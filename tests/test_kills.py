"""What is killed and given again ends in the bytes of a run that was not; `kills.py` alone does so a hundred times."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


def test_each_command_that_is_killed_and_given_again_ends_in_the_same_bytes_and_leaves_nothing():
    script = str(Path(__file__).with_name("kills.py"))
    done = subprocess.run([sys.executable, script, "--kills", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("4 kills: equal bytes, nothing left over\n")
