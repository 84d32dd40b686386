"""``python -m autoeval.tasks.verification OUTPUT``: compare a converted model with Megatron's own logits.

What passes has that in its receipt, what does not is quarantined. The last line on standard output is JSON: empty, or
``failed`` with the reason, or ``unable`` with the reason when Megatron cannot build the model here; ``changed`` beside it
when it is only that the checkpoint is gone, or was saved again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(output: Path) -> int:
    from autoeval.convert import ConversionError, Quarantined, SourceChanged
    from autoeval.convert.conversion import check

    answer = {}
    try:
        check(output, verify=True)
    except Quarantined as error:
        answer["failed"] = str(error)
    except SourceChanged as error:
        answer["unable"] = answer["changed"] = str(error)
    except ConversionError as error:
        answer["unable"] = str(error)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
