"""What there is to tell about the runs of a ledger, as (key, message): a key is told once for each channel."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from recorder import words
from recorder.ledger import CheckpointRow, Ledger, ScoreRow, TaskRow
from recorder.messages.channel import Told
from recorder.messages.message import Message, Tone
from recorder.messages.outbox import Delivered, MessageOutbox, send_pending
from recorder.trend import Worth
from recorder.verdict import CheckpointVerdict

VerdictOf = Callable[[str, int], CheckpointVerdict | None]
WorthOf = Callable[[str], Worth | None]
TONES: dict[str, Tone] = {"better": "good", "worse": "bad", "cannot tell": "unsure"}
SHOWN_TASKS = 5


@contextmanager
def telling(
    ledger: Ledger, told: Told, project: str, scores: Sequence[ScoreRow], verdict_of: VerdictOf, worth_of: WorthOf
) -> Iterator[list[Delivered]]:
    """Queue what is new; send what is queued while the body runs. The list has the outcome when the body is left.

    Nothing of the network is raised, and at most ``PATIENCE_SECONDS`` (and a last timeout) are waited for at the end.
    """
    outcome: list[Delivered] = []
    if not told.channels:
        yield outcome
        return
    outbox = MessageOutbox(ledger.path)
    try:
        _queue(ledger, outbox, told, project, scores, verdict_of, worth_of)
        sender = threading.Thread(target=lambda: outcome.append(send_pending(outbox, told.channels)), name="messages")
        sender.start()
        try:
            yield outcome
        finally:
            sender.join()
    finally:
        outbox.close()


def _queue(
    ledger: Ledger,
    outbox: MessageOutbox,
    told: Told,
    project: str,
    scores: Sequence[ScoreRow],
    verdict_of: VerdictOf,
    worth_of: WorthOf,
) -> None:
    news = list(_news(ledger, told, project, scores, verdict_of, worth_of, _all_known(outbox, told)))
    for channel in told.channels:
        # Messages may be asked for late in a run: what was measured before that is no news.
        first_time = not outbox.knows(channel.name, f"started:{told.model}")
        for key, happened, message in news:
            outbox.put(channel.name, key, message, drop=first_time and happened < told.since)


def _all_known(outbox: MessageOutbox, told: Told) -> Callable[[str], bool]:
    """Whether every channel has been told: then the message need not be made."""
    return lambda key: all(outbox.knows(channel.name, key) for channel in told.channels)


def _news(
    ledger: Ledger,
    told: Told,
    project: str,
    scores: Sequence[ScoreRow],
    verdict_of: VerdictOf,
    worth_of: WorthOf,
    known: Callable[[str], bool],
) -> Iterable[tuple[str, float, Message]]:
    """(key, Unix time at which it happened, message), in the order in which it should be read."""
    saves = [row for row in ledger.checkpoints() if row.model == told.model and not row.superseded]
    runs: dict[tuple[int, str], list[TaskRow]] = defaultdict(list)
    for run in ledger.tasks():
        if run.model == told.model and not run.superseded:
            runs[run.iteration, run.fingerprint].append(run)
    if not known(f"started:{told.model}"):
        yield f"started:{told.model}", told.since, _started(told, project)
    recorded: dict[int, float] = {}
    for row in scores:
        if row.model == told.model:
            recorded[row.iteration] = max(row.recorded_at, recorded.get(row.iteration, 0.0))
    for save in sorted(saves, key=lambda row: (row.updated_at, row.iteration)):
        if save.state in words.AT_WORK:
            continue
        where = f"{save.model}:{save.iteration}:{save.fingerprint}"
        failed = [run for run in runs[save.iteration, save.fingerprint] if run.state == "failed"]
        if failed or save.state in ("failed", "missed"):
            said = "|".join([save.state, *(f"{run.task}:{run.version}:{run.attempts}:{run.error}" for run in failed)])
            key = f"failure:{where}:{hashlib.sha256(said.encode()).hexdigest()[:12]}"
            if not known(key):
                yield key, save.updated_at, _failure(save, failed, project)
        happened = recorded.get(save.iteration)
        if happened is not None and not known(f"verdict:{where}"):
            message = _verdict(save, project, scores, verdict_of(save.model, save.iteration), worth_of)
            yield f"verdict:{where}", happened, message
    if told.finished and saves:
        key = f"finished:{told.model}:{max(row.iteration for row in saves)}"
        if not known(key):
            every = [run for of_save in runs.values() for run in of_save]
            yield key, told.since, _finished(told.model, project, saves, every, worth_of)


def _started(told: Told, project: str) -> Message:
    tasks = f"{len(told.tasks)} tasks" if len(told.tasks) != 1 else "one task"
    return Message(
        "started",
        "plain",
        f"{told.model}: evaluation started",
        f"Watching {told.watching}; every checkpoint is scored on {tasks}.",
        lines=(", ".join(told.tasks),) if told.tasks else (),
        project=project,
        model=told.model,
    )


def _failure(save: CheckpointRow, failed: Sequence[TaskRow], project: str) -> Message:
    place = f"{save.model}, iteration {save.iteration:,}"
    if save.state in ("failed", "missed"):
        title, text = f"{place}: {save.state}", save.error or "no reason was noted"
        lines: list[str] = []
    else:
        count = f"{len(failed)} tasks" if len(failed) > 1 else "one task"
        title, text = f"{place}: {count} failed", "The others are recorded."
        lines = [f"{run.task}: {_one_line(run.error)}{f' (log: {run.log})' if run.log else ''}" for run in failed]
    return Message("failure", "bad", title, _one_line(text), (), tuple(lines), project, save.model, save.iteration)


def _verdict(
    save: CheckpointRow,
    project: str,
    scores: Sequence[ScoreRow],
    verdict: CheckpointVerdict | None,
    worth_of: WorthOf,
) -> Message:
    mine = [row for row in scores if (row.model, row.iteration) == (save.model, save.iteration)]
    previous = verdict.previous if verdict is not None else None
    place = f"{save.model}, iteration {save.iteration:,}"
    tone: Tone = "plain"
    facts = [("tokens", words.tokens(save.tokens))] if save.tokens is not None else []
    if previous is None:
        title = f"{place}: first scores"
        text = "There is no earlier checkpoint to compare it with."
        lines = [f"{row.task}.{row.metric}: {words.score(row.value)}" for row in mine if row.position == 0][
            :SHOWN_TASKS
        ]
    else:
        word = previous.word
        title, tone = f"{place}: {word}", TONES[word]
        text = f"Iteration {save.iteration:,} {words.comparison(previous)}."
        changed = sorted(previous.tasks, key=lambda t: (t.word == "cannot tell", -abs(t.difference.value)))
        lines = [words.task_line(task) for task in changed[:SHOWN_TASKS]]
        if fallen := words.fallen(verdict) if verdict is not None else []:
            tone = "bad"
            lines += ["Worse beyond noise:", *(f"{words.task_line(task)}, against {since}" for task, since in fallen)]
        best = verdict.best if verdict is not None else None
        if best is not None and best.old_iteration != previous.old_iteration:
            facts.append(("the best so far", words.comparison(best)))
    outlook = worth_of(save.model)
    newest = max(row.iteration for row in scores if row.model == save.model)
    if outlook is not None and save.iteration == newest:
        facts.append(("go on?", words.outlook(outlook)))
    return Message("verdict", tone, title, text, tuple(facts), tuple(lines), project, save.model, save.iteration)


def _finished(
    model: str, project: str, saves: Sequence[CheckpointRow], runs: Sequence[TaskRow], worth_of: WorthOf
) -> Message:
    failed = words.failures(saves, runs)
    outlook = worth_of(model)
    facts = [("go on?", words.outlook(outlook))] if outlook is not None else []
    text = words.state(saves)
    return Message(
        "finished",
        "bad" if failed else "good",
        f"{model}: evaluation finished",
        f"{text[0].upper()}{text[1:]}; {failed or 'no failures'}.",
        tuple(facts),
        project=project,
        model=model,
        iteration=max(row.iteration for row in saves),
    )


def _one_line(text: str | None, limit: int = 300) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
