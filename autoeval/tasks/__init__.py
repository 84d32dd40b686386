"""What is computed, and the processes that compute it."""

from __future__ import annotations

BAD_INPUT = 2  # exit code of a task whose input is wrong: another try is of no use
ENDS_WITH_INPUT = "AUTOEVAL_ENDS_WITH_INPUT"  # in a task's environment: it ends when its standard input closes
