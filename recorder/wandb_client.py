"""The only module that talks to W&B's client: runs opened and finished, read back, and what its errors mean.

What shapes it (seen with wandb 0.31.0): a kill loses up to the last 15 seconds of rows, so a run is open for a moment
only; ``step=`` drops a late row, so the iteration is a value and the x-axis; offline, ``finish()`` returns before the
client's service has written the file and let go of the run's id, so there the service is ended after each run.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recorder.wandb_file import WandbFileError, WandbRun, read_wandb_file, wandb_files

logger = logging.getLogger(__name__)

INIT_SECONDS = 30.0
FINISH_SECONDS = 120.0  # without a limit a server that goes away now would hold the publisher for ever
ARTIFACT_SECONDS = 120

Mode = Literal["offline", "online", "disabled"]
Trouble = Literal["refused", "deleted", "away", "other"]

# What the client's messages say, in the order of looking. It raises few kinds of exceptions, and for an unreachable
# server the same as for a wrong key.
_SIGNS: tuple[tuple[Trouble, str], ...] = (
    ("deleted", r"previously created and deleted"),
    (
        "away",
        r"timed? ?out|deadline|refused|reset|unreachable|no such host|EOF|did not respond|error 5\d\d|HTTP 5\d\d|429",
    ),
    ("refused", r"permission denied|error 40[13]|HTTP 40[13]|No API key|api.key|not logged in|unauthori[sz]ed"),
)


@dataclass(frozen=True)
class WandbSettings:
    mode: Mode
    project: str
    entity: str | None = None
    base_url: str | None = None

    @property
    def place(self) -> str:
        """Where the rows go: what has been published is known for each such place."""
        return f"{self.mode}/{self.base_url or ''}/{self.entity or ''}/{self.project}"


@dataclass
class RunState:
    """What is known of one run: the last value of each (iteration, metric), and the summary.

    ``over`` says whether the run ended in order; a publisher that was killed leaves it running.
    """

    values: dict[tuple[int, str], float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    over: bool = True


def trouble(error: BaseException) -> Trouble:
    """What kind of trouble an exception of the client tells of."""
    text = f"{type(error).__name__}: {error}"
    for kind, pattern in _SIGNS:
        if re.search(pattern, text, re.IGNORECASE):
            return kind
    return "other"


def use_own_directories(work_dir: Path) -> None:
    """The client's staged and cached files go below ``work_dir/wandb``: the home directory may be small, or not ours."""
    for name, folder in (
        ("WANDB_DATA_DIR", ".data"),
        ("WANDB_CACHE_DIR", ".cache"),
        ("WANDB_ARTIFACT_DIR", ".artifacts"),
    ):
        os.environ.setdefault(name, str(work_dir / "wandb" / folder))
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # the client's own telemetry
    os.environ["WANDB_SILENT"] = "true"


def credentials_mark(settings: WandbSettings, salt: str) -> str:
    """32 bits that tell one key from another and say nothing about either; of an empty text when there is no key."""
    from wandb.sdk.lib.wbauth.wbnetrc import read_netrc_auth

    key = os.environ.get("WANDB_API_KEY")
    if not key:
        host = settings.base_url or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
        try:
            key = read_netrc_auth(host=host)
        except Exception:  # an unreadable netrc is told by the client itself
            key = None
    return hmac.new(salt.encode(), (key or "").encode(), hashlib.sha256).hexdigest()[:8]


class Client:
    """Runs of one project. Who uses it holds the publisher's lock (``recorder.publishing.publisher_lock``)."""

    def __init__(self, settings: WandbSettings, work_dir: Path):
        self.settings = settings
        self.work_dir = work_dir
        self._api: Any = None
        use_own_directories(work_dir)

    @property
    def online(self) -> bool:
        return self.settings.mode == "online"

    @contextmanager
    def run(
        self, identity: str, name: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any]
    ) -> Iterator[Any]:
        """One short run: it is finished when the block ends, as failed when the block raises."""
        import wandb

        self.work_dir.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                dir=self.work_dir,
                id=identity,
                name=name,
                group=name,
                job_type=job_type,
                tags=list(tags),
                config=dict(config),
                mode="online" if self.online else "offline",
                resume="allow",
                settings=self._settings(),
            )
            try:
                yield run
            except BaseException:
                run.finish(exit_code=1)
                raise
            run.finish()
        finally:
            if not self.online:
                wandb.teardown()

    def _settings(self) -> Any:
        import wandb

        options: dict[str, Any] = {"base_url": self.settings.base_url} if self.settings.base_url else {}
        return wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            **options,
        )

    def api(self) -> Any:
        """The client's ``Api``, made at its first use. Raises what the client raises when the key is refused."""
        if self._api is None:
            import wandb

            overrides = {"base_url": self.settings.base_url} if self.settings.base_url else {}
            self._api = wandb.Api(overrides=overrides, timeout=int(INIT_SECONDS))
        return self._api

    def entity(self) -> str:
        return str(self.settings.entity or self.api().default_entity)

    def state(self, identity: str) -> RunState | None:
        """What the server shows of a run; offline, what its directories hold. ``None`` when there is no such run."""
        return self._server_state(identity) if self.online else self.local_state(identity)

    def _server_state(self, identity: str) -> RunState | None:
        import wandb

        api = self.api()
        api.flush()  # it remembers what it has read
        try:
            run = api.run(f"{self.entity()}/{self.settings.project}/{identity}")
        except (ValueError, wandb.errors.CommError) as error:
            if "could not find run" in str(error).lower():
                return None
            raise
        values: dict[tuple[int, str], float] = {}
        for row in run.scan_history(use_cache=False):
            values.update(_by_metric(row))
        return RunState(values, dict(run.summary_metrics or {}), run.state == "finished")

    def local_state(self, identity: str, directory: Path | None = None) -> RunState | None:
        """What the offline directories of a run hold, or one of them; over when the last one is."""
        found = None
        for run in offline_runs(self.work_dir, identity):
            if directory is None or run.path.parent == directory:
                found = found or RunState()
                for row in run.history:
                    found.values.update(_by_metric(row))
                found.summary.update(run.summary)
                found.over = run.finished
        return found


def offline_runs(work_dir: Path, identity: str) -> Iterator[WandbRun]:
    """The readable runs of the offline directories: what an online run left was, or will be, sent by itself."""
    for file in wandb_files(work_dir / "wandb", identity):
        if not file.parent.name.startswith("offline-"):
            continue
        try:
            run = read_wandb_file(file)
        except WandbFileError as error:
            logger.warning("W&B: %s; taken as if it held nothing", error)
            continue
        if run.run_id == identity:
            yield run


def mark_synced(work_dir: Path, identity: str, state: RunState | None = None) -> None:
    """Let ``wandb sync`` pass over the offline directories of a run whose rows are all in ``state``.

    Without ``state`` all of them are marked: their newest content is on the server.
    """
    for run in offline_runs(work_dir, identity):
        known = {key for row in run.history for key in _by_metric(row) if not key[1].startswith("_")}
        if state is None or known <= state.values.keys():
            run.path.with_name(run.path.name + ".synced").touch()


def _by_metric(row: Mapping[str, Any]) -> dict[tuple[int, str], float]:
    if row.get("iteration") is None:
        return {}
    iteration = int(row["iteration"])
    return {(iteration, key): value for key, value in row.items() if isinstance(value, int | float)}
