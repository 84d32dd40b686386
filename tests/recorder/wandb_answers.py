"""What the imitation of W&B's server knows, and its answers to GraphQL operations.

Only what the client of wandb 0.31 and wandb-workspaces asks for is answered; anything else is noted in ``unhandled``
(tests assert that it stays empty: that is how a new client's new question shows up). History is kept as the file
stream sends it: lines at offsets, so that a repeated request changes nothing and two writers overwrite each other.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

KEY = "k" * 40
ENTITY = "team"


class Refused(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class RunState:
    storage_id: str
    entity: str
    project: str
    name: str  # the id that the client chose
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)  # file name -> lines
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    used: list[str] = field(default_factory=list)  # ids of artifacts
    begun: int = 0  # how often a client opened it

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", []) if line]


@dataclass
class ArtifactState:
    id: str
    project: str
    type: str
    name: str
    run: str | None
    digest: str
    version: int
    aliases: list[str]
    committed: bool = False
    files: dict[str, str] = field(default_factory=dict)  # path -> name of the upload
    metadata: str = "{}"


def _time() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Backend:
    """One team's projects. Not thread-safe: the server holds its lock around each call."""

    def __init__(self) -> None:
        self.key = KEY
        self.runs: dict[tuple[str, str, str], RunState] = {}
        self.deleted: set[tuple[str, str, str]] = set()
        self.projects: set[str] = set()
        self.artifacts: dict[str, ArtifactState] = {}
        self.uploads: dict[str, bytes] = {}
        self.alerts: list[dict[str, Any]] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.unhandled: list[str] = []
        self.stale_reads = 0  # so many of the next readings of history show what was there before
        self.shown: dict[tuple[str, str, str], list[str]] = {}
        self.url = ""
        self._count = itertools.count(1)

    # What a test looks at, or does as a person at the web page would

    def run(self, name: str, project: str = "proj") -> RunState:
        return self.runs[ENTITY, project, name]

    def delete(self, name: str, project: str = "proj") -> None:
        del self.runs[ENTITY, project, name]
        self.deleted.add((ENTITY, project, name))

    def logged(self, kind: str) -> list[ArtifactState]:
        return [one for one in self.artifacts.values() if one.type == kind and one.committed]

    def add_artifact(self, kind: str, name: str, aliases: list[str], project: str = "proj") -> ArtifactState:
        """As a training run logs one."""
        identity = self._id("Artifact")
        made = ArtifactState(identity, project, kind, name, None, identity, 0, aliases, committed=True)
        self.artifacts[identity] = made
        self.projects.add(project)
        return made

    # The file stream

    def stream(self, entity: str, project: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get((entity, project, name))
        if run is None:
            raise Refused(404, f"run {name} not found")
        for file, chunk in (body.get("files") or {}).items():
            lines = run.streams.setdefault(file, [])
            offset, content = int(chunk["offset"]), chunk["content"]
            if file == "wandb-summary.json":
                run.summary = json.loads(content[-1])
                continue
            lines.extend([""] * (offset - len(lines)))
            lines[offset : offset + len(content)] = content
        if body.get("complete"):
            run.state = "finished" if body.get("exitcode") == 0 else "failed"
        return {"exitcode": None, "limits": {}}

    # GraphQL

    def answer(self, operation: str, query: str, given: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        method = getattr(self, f"_do_{operation}", None)
        if method is None:
            self.unhandled.append(f"{operation}: {json.dumps(given)[:300]} {' '.join(query.split())[:600]}")
            raise Refused(400, f"{operation} is not imitated")
        answer: dict[str, Any] = method(given)
        return answer

    def _id(self, kind: str) -> str:
        return base64.b64encode(f"{kind}:{next(self._count)}".encode()).decode()

    def _project(self, name: str | None) -> dict[str, Any]:
        entity = {"id": "RW50aXR5OjE=", "name": ENTITY, "organization": None, "isTeam": True}
        stem = {
            "id": base64.b64encode(f"Project:{name}".encode()).decode(),
            "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==",
        }
        return {
            **stem,
            "name": name,
            "entityName": ENTITY,
            "entity": entity,
            "createdAt": _time(),
            "isBenchmark": False,
            "user": None,
        }

    def _key(self, given: dict[str, Any], name: str = "name") -> tuple[str, str, str]:
        return given.get("entity") or ENTITY, str(given["project"]), str(given[name])

    def _bucket(self, run: RunState) -> dict[str, Any]:
        history = run.streams.get("wandb-history.jsonl", [])
        keys = sorted({key for row in run.history for key in row})
        last = max((int(row["_step"]) for row in run.history), default=-1)
        historical = {"keys": {key: {"typeCounts": [{"type": "number"}]} for key in keys}, "lastStep": last}
        user = {"id": "1", "name": "user", "username": "user", "email": None, "admin": False}
        return {
            **{"id": run.storage_id, "name": run.name, "displayName": run.display_name, "description": None},
            **{"notes": None, "group": run.group, "groupName": run.group, "jobType": run.job_type, "tags": run.tags},
            **{"config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}"},
            **{"state": run.state, "sweepName": None, "commit": None, "readOnly": False, "createdAt": _time()},
            **{"heartbeatAt": _time(), "user": user, "projectId": "1", "historyKeys": historical},
            **{"historyLineCount": len(history), "eventsLineCount": len(run.streams.get("wandb-events.jsonl", []))},
            **{"logLineCount": len(run.streams.get("output.log", [])), "eventsTail": "[]", "wandbConfig": '{"t": 1}'},
            **{"historyTail": json.dumps(history[-1:]), "project": self._project(run.project)},
        }

    def _do_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY, "id": "1"}}]}
        user = {"id": "VXNlcjox", "entity": ENTITY, "username": "user", "email": "u@example.com", "flags": "{}"}
        return {
            "viewer": {
                **user,
                "name": "user",
                "admin": False,
                "deletedAt": None,
                "teams": teams,
                "apiKeys": {"edges": []},
            }
        }

    _do_GetViewer = _do_GetDefaultEntity = _do_Viewer

    def _do_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _do_OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _do_XXHashDigestsEnabled(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _do_RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(self._key(given))
        if given["project"] not in self.projects:
            return {"model": None}
        return {"model": {**self._project(given["project"]), "bucket": None if run is None else self._bucket(run)}}

    def _do_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        by_id = {run.storage_id: run for run in self.runs.values()}
        run = by_id.get(given.get("id") or "")
        inserted = False
        if run is None:
            key = self._key(given)
            if key in self.deleted:
                raise Refused(409, f"run {key[2]} was previously created and deleted; try a new run name")
            inserted = key not in self.runs
            run = self.runs.setdefault(key, RunState(self._id("Run"), *key))
            run.begun += 1
            run.state = "running"
            self.projects.add(key[1])
        for name, value in {
            "display_name": given.get("displayName") or given.get("display_name"),
            "group": given.get("groupName"),
            "job_type": given.get("jobType"),
            "tags": given.get("tags"),
            "config": json.loads(given["config"]) if given.get("config") else None,
            "summary": json.loads(given["summaryMetrics"]) if given.get("summaryMetrics") else None,
        }.items():
            if value:
                setattr(run, name, value)
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def _do_Run(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(self._key(given))
        if given["project"] not in self.projects:
            return {"project": None}
        return {"project": {**self._project(given["project"]), "run": None if run is None else self._bucket(run)}}

    _do_RunHistoryKeys = _do_RunState = _do_Run

    def _do_RunParquetHistory(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    def _do_HistoryPage(self, given: dict[str, Any]) -> dict[str, Any]:
        key = self._key(given, "run")
        lines = [line for line in self.runs[key].streams.get("wandb-history.jsonl", []) if line]
        if self.stale_reads > 0:
            self.stale_reads -= 1
            lines = self.shown.get(key, [])
        self.shown[key] = list(lines)
        wanted = range(int(given["minStep"]), int(given["maxStep"]))
        return {"project": {"run": {"history": [line for line in lines if json.loads(line)["_step"] in wanted]}}}

    def _do_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[self._key(given, "run")]
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{run.storage_id}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": run.storage_id, "uploadHeaders": [], "files": files}}

    def _do_NotifyScriptableRunAlert(self, given: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    # Artifacts

    def _do_ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _do_FetchArtifactDigestAlgorithm(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifactType": {"artifactCollection": None}}}

    def _do_CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given["input"]
        name = asked["artifactCollectionName"]
        same = [a for a in self.artifacts.values() if (a.name, a.project) == (name, asked["projectName"])]
        aliases = [one["alias"] for one in asked.get("aliases") or []]
        known = next((a for a in same if a.digest == asked["digest"] and a.committed), None)
        if known is None:
            identity, version = self._id("Artifact"), sum(a.committed for a in same)
            known = ArtifactState(
                identity, asked["projectName"], asked["artifactTypeName"], name, asked.get("runName"), asked["digest"],
                version, [], metadata=asked.get("metadata") or "{}",
            )  # fmt: skip
            self.artifacts[identity] = known
        for alias in aliases:  # an alias belongs to one version
            for other in same:
                other.aliases = [one for one in other.aliases if one != alias]
        known.aliases = [*known.aliases, *(alias for alias in aliases if alias not in known.aliases)]
        state = "COMMITTED" if known.committed else "PENDING"
        latest = max((a for a in same if a.committed), key=lambda a: a.version, default=None)
        base = None if latest is None else {"id": latest.id, "versionIndex": latest.version}
        created = {"id": known.id, "state": state, "artifactSequence": {"id": "1", "latestArtifact": base}}
        return {"createArtifact": {"artifact": {**created, "digest": known.digest}}}

    def _do_CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = f"manifest-{given['artifactID']}"
        url = f"{self.url}/storage/{identity}"
        file = {
            "id": identity,
            "name": given["name"],
            "displayName": given["name"],
            "uploadUrl": url,
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": identity, "file": file}}}

    def _do_UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = given["artifactManifestID"]
        file = {"id": identity, "uploadUrl": f"{self.url}/storage/{identity}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": identity, "file": file}}}

    def _do_CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for asked in given["input"]["artifactFiles"]:
            stored = f"artifact-{asked['artifactID']}/{asked['name']}"
            self.artifacts[asked["artifactID"]].files[asked["name"]] = stored
            nodes.append(
                {
                    **{"id": stored, "name": asked["name"], "displayName": asked["name"], "storagePath": stored},
                    **{"uploadUrl": f"{self.url}/storage/{stored}", "uploadHeaders": [], "uploadMultipartUrls": None},
                    "artifact": {"id": asked["artifactID"]},
                }
            )
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _do_CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[given["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _do_UpdateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifact": {"artifact": {"id": given["artifactID"]}}}

    def _do_UseArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given.get("input") or given
        run = self.runs[asked["entityName"], asked["projectName"], asked["runName"]]
        if asked["artifactID"] not in run.used:
            run.used.append(asked["artifactID"])
        return {"useArtifact": {"artifact": self._artifact(self.artifacts[asked["artifactID"]])}}

    def _artifact(self, one: ArtifactState) -> dict[str, Any]:
        collection = {
            "__typename": "ArtifactSequence",
            "id": "1",
            "name": one.name,
            "project": self._project(one.project),
        }
        return {
            **{"__typename": "Artifact", "id": one.id, "artifactSequence": collection, "versionIndex": one.version},
            **{"artifactType": {"name": one.type}, "description": None, "metadata": one.metadata, "tags": []},
            **{"ttlDurationSeconds": -1, "ttlIsInherited": True, "historyStep": None, "state": "COMMITTED", "size": 1},
            **{
                "digest": one.digest,
                "digestAlgorithm": "MANIFEST_MD5",
                "commitHash": None,
                "fileCount": len(one.files),
            },
            **{"createdAt": _time(), "updatedAt": None, "aliases": []},
        }

    def _do_ArtifactByID(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._artifact(self.artifacts[given["id"]])}

    def _do_ArtifactMembershipByName(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["project"] not in self.projects:
            return {"project": None}
        name, _, alias = given["name"].partition(":")
        found = [
            one
            for one in self.artifacts.values()
            if (one.project, one.name) == (given["project"], name) and alias in (*one.aliases, f"v{one.version}")
        ]
        if not found:
            return {"project": {"artifactCollectionMembership": None}}
        collection = self._artifact(found[0])["artifactSequence"]
        membership = {"__typename": "ArtifactCollectionMembership", "id": "1", "versionIndex": found[0].version}
        aliases = [{"__typename": "ArtifactAlias", "id": one, "alias": one} for one in found[0].aliases]
        rest = {"createdAt": _time(), "aliases": aliases, "artifactCollection": collection}
        return {
            "project": {"artifactCollectionMembership": {**membership, **rest, "artifact": self._artifact(found[0])}}
        }

    # Reports

    def _do_ProjectInternalId(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["projectName"]
        return {"project": self._project(name) if name in self.projects else None}

    def _do_GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": self._project(name), "cursor": name} for name in sorted(self.projects)]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def _do_upsertView(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = given.get("id") or self._id("View")
        self.views[identity] = {**self.views.get(identity, {}), **given, "id": identity}
        view = {"project": self._project(given["projectName"]), "updatedAt": _time(), "createdAt": _time()}
        shown = {key: given.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        return {"upsertView": {"view": {"id": identity, **shown, **view}, "inserted": given.get("id") is None}}
