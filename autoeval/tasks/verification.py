"""``python -m autoeval.tasks.verification SOURCE OUTPUT``: compare a converted model with Megatron's own logits.

The last line on standard output is JSON: ``difference``, ``tolerance``, ``positions``, ``same_argmax`` and ``passed``,
or ``unable`` with the reason when Megatron cannot build the model here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path


def main(source: Path, output: Path) -> int:
    from autoeval.convert.errors import ConversionError
    from autoeval.convert.verify import TOLERANCE, verify

    try:
        found = verify(source, output)
    except ConversionError as error:
        print(json.dumps({"unable": str(error)}))
    else:
        print(json.dumps({**asdict(found), "tolerance": TOLERANCE, "passed": found.passed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
