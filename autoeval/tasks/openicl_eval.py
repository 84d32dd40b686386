"""``python -m autoeval.tasks.openicl_eval CONFIG``: one ``OpenICLEvalTask`` in a process of its own."""

from __future__ import annotations

import sys

from autoeval.tasks.openicl import OpenICLEvalTask, main

if __name__ == "__main__":
    sys.exit(main(OpenICLEvalTask, sys.argv[1:]))
