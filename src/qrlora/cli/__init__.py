"""The command line: one verb for one public function, each in the file of its name."""

from .command_line import main as main
