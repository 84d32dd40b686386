"""HELM's imports, which take seconds: done while there is time, in a thread of their own, and without what they needn't do.

begin()     returns at once; the daemon's worker calls it while a save is under way or is converted
finish()    waits for them, or does them now
"""

from __future__ import annotations

import logging
import threading
import time

from autoeval.importing import without_collection

_LOGGER = logging.getLogger("autoeval.worker")

_LOCK = threading.Lock()
_done = threading.Event()
_thread: threading.Thread | None = None


def begin(after: threading.Event | None = None) -> None:
    """Import in a thread, once a process; not before ``after`` is set, when imports that these need are under way."""
    global _thread
    with _LOCK:
        if _thread is None and not _done.is_set():
            _thread = threading.Thread(target=_in_thread, args=(after,), name="helm-imports", daemon=True)
            _thread.start()


def finish() -> None:
    """All is imported when this returns. Raises ``ImportError`` for what is not installed."""
    if _thread is not None:
        _thread.join()
    if not _done.is_set():
        with without_collection():
            _import()
        _done.set()


def _in_thread(after: threading.Event | None) -> None:
    if after is not None:
        after.wait()
    started = time.perf_counter()
    try:
        _import()
    except Exception:  # it will fail the tasks too, whose logs say so
        _LOGGER.exception("HELM cannot be imported")
    else:
        _done.set()
        _LOGGER.info("HELM is imported (%.1f s)", time.perf_counter() - started)


def _import() -> None:
    """What takes long of all that a run imports. Not HELM's metrics: they set a signal's handler, which only the main
    thread may, and look for nltk's data, whose place the runner tells."""
    # All of them for their time alone.
    import calibration  # noqa: F401 - see above
    import datasets  # noqa: F401 - see above
    import helm.benchmark.run  # noqa: F401 - see above
    import nltk  # noqa: F401 - see above
    import rouge_score.rouge_scorer  # noqa: F401 - see above

    import autoeval.helm.runner  # noqa: F401 - see above
