"""Which keys of a file a tool would load, which it would pass over, and which it would load at the wrong strength."""

from ..layouts import TOOLS
from .judging import check, judge, notes
from .seen import File, Verdict

__all__ = ["TOOLS", "File", "Verdict", "check", "judge", "notes"]
