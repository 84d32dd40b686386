"""What the tests let a conversion do in a process of its own."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from autoeval.convert import __main__ as command


def stopping(told: Connection, arguments: list[str]) -> int:
    """The command line; at half of the bytes it tells so and waits for an answer before it goes on."""
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        if done * 2 >= total and not seen:
            seen.append(done)
            told.send("half")
            told.recv()

    command._Bar.__enter__ = lambda bar: progress  # type: ignore[method-assign]
    command._Bar.__exit__ = lambda bar, *details: None  # type: ignore[method-assign]
    return command.main(arguments)


def measured(small: Path, big: Path) -> int:
    """Prints how many parameters ``big`` has and by how many bytes the process grew while it was converted."""
    from autoeval.convert import convert

    def now(key: str) -> int:
        return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

    convert(small, big.with_name("small_hf"), tokenizer=None)  # everything is imported now
    before = now("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")
    receipt = convert(big, big.with_name("hf"), tokenizer=None)
    print(receipt.parameters, now("VmHWM:") - before)
    return 0
