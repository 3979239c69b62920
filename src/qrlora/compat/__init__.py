"""Which keys of a file a tool would load, which it would pass over, and which it would load at the wrong strength."""

from ..layouts import TOOLS
from .checked_file import CheckedFile, Verdict
from .tool_verdicts import check, key_verdicts, tool_notes

__all__ = ["TOOLS", "CheckedFile", "Verdict", "check", "key_verdicts", "tool_notes"]
