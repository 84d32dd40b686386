"""An imitation of PAI-DLC's API on this machine: the requests and answers of version 2020-12-03, and jobs that really run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class DlcService:
    """``faults``: the next requests of an action answer with a status instead; "lost" does the work first."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.faults: dict[str, list[Any]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service._answer(self, "GET", None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service._answer(self, "POST", json.loads(body) if body else None)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def _answer(self, handler: BaseHTTPRequestHandler, method: str, body: Any) -> None:
        url = urlsplit(handler.path)
        status, content = 403, {"Code": "InvalidAuthorization", "Message": "no signature"}
        if re.match(
            r"ACS3-HMAC-SHA256 Credential=\w+,SignedHeaders=.+,Signature=\w+", handler.headers["Authorization"] or ""
        ):
            assert handler.headers["x-acs-version"] == "2020-12-03"
            action = handler.headers["x-acs-action"]
            with self._lock:
                self.requests.append((action, url.path, body))
                fault = (self.faults.get(action) or [None]).pop(0)
                if fault in (None, "lost"):
                    status, content = self._act(action, url.path, parse_qs(url.query), body)
                if fault == "lost":
                    status, content = 500, {"Code": "InternalError", "Message": "the answer was lost"}
                elif fault is not None:
                    status, content = (
                        fault,
                        {"Code": {429: "Throttling"}.get(fault, "Fault"), "Message": f"status {fault}"},
                    )
        text = json.dumps({**content, "RequestId": "r"}).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def _act(self, action: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, dict[str, Any]]:
        if action == "CreateJob":
            if body["JobSpecs"][0]["Image"] == "no-such-image":
                return 400, {"Code": "InvalidParameter", "Message": "Image is invalid"}
            job = f"dlc{len(self.jobs):013x}"
            self.jobs[job] = {"JobId": job, "Status": "Creating", **body}
            return 200, {"JobId": job}
        if action == "ListJobs":
            wanted = json.loads(query.get("Tags", ["{}"])[0])
            found = [one for one in self.jobs.values() if wanted.items() <= one["Settings"]["Tags"].items()]
            return 200, {"Jobs": found, "TotalCount": len(found)}
        job = path.split("/")[4]
        if job not in self.jobs:
            return 404, {"Code": "JobNotFound", "Message": f"{job} does not exist"}
        if action == "StopJob":
            if self.jobs[job]["Status"] in ("Succeeded", "Failed", "Stopped"):
                return 400, {"Code": "InvalidJobStatus", "Message": "Job can't be stopped"}
            process = self._processes.get(job)
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            self.jobs[job]["Status"] = "Stopped"
            return 200, {"JobId": job}
        self._step(job)
        return 200, self.jobs[job]

    def _step(self, job: str) -> None:
        """A look at a job lets it go on by a state, as far as its command is."""
        content = self.jobs[job]
        if content["Status"] == "Creating":
            content["Status"] = "Queuing"
        elif content["Status"] == "Queuing":
            content["Status"] = "Running"
            self._processes[job] = subprocess.Popen(
                ["sh", "-c", content["UserCommand"]],
                env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **content["Envs"]},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        elif content["Status"] == "Running" and (code := self._processes[job].poll()) is not None:
            content["Status"] = "Failed" if code else "Succeeded"
            if code:
                content |= {"ReasonCode": "JobFailed", "ReasonMessage": f"exit code {code}"}
