"""A command that is stopped from outside leaves nothing half."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

MERGE = """
import signal, sys, time
from qrlora import cli, safetensors_files

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored

def slowly(tensor, real=safetensors_files.raw_bytes):
    print("writing", flush=True)
    time.sleep(60)
    return real(tensor)

safetensors_files.raw_bytes = slowly
{before}
cli.main(["merge", *sys.argv[1:]])
"""


def merging(studio, folder, before=""):
    """A merge of two adapters into the folder, in the midst of writing."""
    words = [str(studio / "dog.safetensors"), str(studio / "cat.safetensors"), "-o", str(folder / "out.safetensors")]
    command = [sys.executable, "-c", MERGE.format(before=before), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n", process.stderr.read()
    assert [path.suffix for path in folder.iterdir()] == [".partial"]
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_command_that_is_stopped_leaves_nothing_half(studio, tmp_path, name):
    process = merging(studio, tmp_path)
    process.send_signal(getattr(signal, name))
    _, told = process.communicate()
    assert process.returncode == 130 and told.startswith("stopped") and (name in told or name == "SIGINT")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
def test_closed_standard_streams_are_no_error_and_no_file_gets_what_is_printed(studio, tmp_path):
    command = [sys.executable, "-m", "qrlora", "merge", studio / "dog.safetensors", studio / "cat.safetensors", "-o"]
    for k, closed in enumerate(("<&-", ">&-", "2>&-", "<&- >&- 2>&-")):
        words = map(str, [*command, tmp_path / f"{k}.safetensors"])
        ended = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *words], capture_output=True, text=True)
        assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1 and len([*tmp_path.iterdir()]) == 4


def test_what_is_ignored_stays_ignored(studio, tmp_path):
    process = merging(studio, tmp_path, "signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130 and not list(tmp_path.iterdir())
