"""`qrlora` in this process, for the tests of the commands."""

import pytest

from qrlora import cli


def run(capsys, *words):
    """(exit code, standard output, standard error) of a command, in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    return end.value.code or 0, shown.out, shown.err
