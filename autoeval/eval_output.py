"""What the scripts in ``eval/`` have in common: one JSON answer on standard output, all else on standard error.

The answer is ``{"code": 0, "msg": "…", "data": {…}}``. On failure ``code`` is the exit status, ``msg`` says what was
wrong, and ``data`` is empty: 1 the work failed, 2 wrong arguments or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from recorder.untrusted import PrintableRecord

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

Answer = tuple[str, dict[str, Any]]  # msg, data

logger = logging.getLogger(__name__)


class ScriptError(Exception):
    """Ends a script: ``code`` is the answer's ``code`` and the exit status, the text its ``msg``."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, except that a wrong command line is a ``ScriptError``, so that it is answered in JSON too."""

    def error(self, message: str) -> NoReturn:
        raise ScriptError(f"{message} ({' '.join(self.format_usage().split())})", BAD_INPUT)


def run_script(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], Answer],
    arguments: Sequence[str] | None = None,
    *,
    flat: bool = False,
) -> int:
    """Parse the command line, do the work, print its answer; the exit status.

    ``flat``: the content stands beside ``code`` and ``msg``, not below ``data`` (a published shape).

    What ``work`` raises becomes the answer: a ``ScriptError`` with its code, ``ValueError`` and ``OSError`` (a bad
    file, a missing path) with 2, anything else with 1 and its traceback on standard error. Whatever is printed while
    it works, by whichever library or child process, goes to standard error.
    """
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        options = parser.parse_args(arguments)
        with _stdout_to_stderr(), _interrupts_kept():
            message, content = work(options)
        answer = {"code": 0, "msg": message, **(content if flat else {"data": content})}
    except ScriptError as error:
        answer = _failure(error.code, str(error))
    except KeyboardInterrupt:
        answer = _failure(INTERRUPTED, "interrupted")
    except OSError as error:
        known = error.filename is not None and error.strerror is not None
        answer = _failure(BAD_INPUT, f"{error.filename}: {error.strerror}" if known else str(error))
    except ValueError as error:
        logger.debug("bad input", exc_info=True)
        answer = _failure(BAD_INPUT, str(error))
    except Exception as error:
        logger.exception("failed")
        answer = _failure(FAILED, f"{type(error).__name__}: {error}")
    return print_answer(answer)


def print_answer(answer: dict[str, Any]) -> int:
    """Write ``answer`` to standard output as one JSON document (numbers that are not finite become null).

    Returns its ``code``; ``FAILED`` when nobody reads standard output any more.
    """
    text = json.dumps(_finite(answer), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    try:
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))  # UTF-8 whatever the locale is
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return FAILED
    return int(answer["code"])


def _failure(code: int, message: str) -> dict[str, Any]:
    return {"code": code, "msg": message, "data": {}}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """A Ctrl-C that a library swallowed, as imports of big ones do, still ends the work as an interruption."""
    seen = False

    def on_interrupt(_number: int, _frame: Any) -> None:
        nonlocal seen
        seen = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except Exception:
        if seen:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Point file descriptor 1 and ``sys.stdout`` at standard error meanwhile."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
