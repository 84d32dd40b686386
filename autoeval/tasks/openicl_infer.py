"""``python -m autoeval.tasks.openicl_infer CONFIG``: one ``OpenICLInferTask`` in a process of its own."""

from __future__ import annotations

import sys

from autoeval.tasks.openicl import OpenICLInferTask, main

if __name__ == "__main__":
    sys.exit(main(OpenICLInferTask, sys.argv[1:]))
