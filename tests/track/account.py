"""The GraphQL schema of the fake Weights & Biases server, over what it remembers."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence

from tests.track.graphql import Document, Node, Refused, connection, select
from tests.track.remote import RemoteArtifact, RemoteRun, RemoteView, matches, now, opaque, ordered

FEATURES = ("FILESTREAM_GZIP", "CLIENT_IDS", "LARGE_FILENAMES", "TOTAL_COUNT_IN_FILE_CONNECTION")


def given(values: Node, **names: str) -> Node:
    """Return the attributes that an input sets, by the input's names for them."""
    return {mine: values[theirs] for mine, theirs in names.items() if values.get(theirs) is not None}


class Account:
    """All that the server holds, and the root of its GraphQL schema."""

    def __init__(self, entities: Sequence[str]) -> None:
        self.url = ""
        self.requests: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.broken: list[str] = []
        self.entities = list(entities)
        self.projects: dict[tuple[str, str], str] = {}
        self.runs: dict[tuple[str, str, str], RemoteRun] = {}
        self.artifacts: dict[tuple[str, str, str, str], list[RemoteArtifact]] = {}
        self.views: dict[str, RemoteView] = {}
        self.numbers = itertools.count(1000)
        self.blobs: dict[str, bytes] = {}
        self.query: Node = {
            "__typename": "Query",
            "viewer": self.viewer,
            "serverInfo": self.server_info,
            "entity": self.entity,
            "project": self.project,
            "model": self.project,
            "models": self.models,
            "view": lambda id: self.view(self.views[id]) if id in self.views else None,
            "artifact": lambda id: self.artifact(self.version(id)),
        }
        self.mutation: Node = {
            "__typename": "Mutation",
            "upsertBucket": self.upsert_bucket,
            "deleteRun": self.delete_run,
            "stopRun": lambda input: {"__typename": "StopRunPayload", "success": True},
            "createRunFiles": self.create_run_files,
            "upsertModel": self.upsert_model,
            "upsertView": self.upsert_view,
            "deleteView": self.delete_view,
            "createArtifact": self.create_artifact,
            "createArtifactManifest": self.create_manifest,
            "createArtifactFiles": self.create_artifact_files,
            "commitArtifact": self.commit_artifact,
            "updateArtifact": self.update_artifact,
            "addAliases": self.add_aliases,
            "deleteAliases": self.delete_aliases,
            "useArtifact": self.use_artifact,
        }

    def answer(self, document: Document, variables: Node) -> Node:
        """Answer one parsed request; raises Refused."""
        root = self.mutation if document.kind == "mutation" else self.query
        return select(root, document.fields, document, document.defaults | variables)

    def viewer(self) -> Node:
        teams = [{"__typename": "Edge", "node": {"__typename": "Entity", "name": name}} for name in self.entities]
        return self.user() | {"teams": {"__typename": "Connection", "edges": teams}}

    def user(self) -> Node:
        name = self.entities[0]
        return {
            "__typename": "User",
            "id": opaque("User", name),
            "name": name,
            "username": name,
            "email": f"{name}@example.invalid",
            "entity": name,
            "admin": False,
            "flags": "{}",
            "deletedAt": None,
            "photoUrl": None,
            "apiKeys": {"__typename": "Connection", "edges": []},
        }

    def server_info(self) -> Node:
        features = [{"__typename": "ServerFeature", "name": name, "isEnabled": True} for name in FEATURES]
        return {"__typename": "ServerInfo", "features": features}

    def entity(self, name: str) -> Node | None:
        if name not in self.entities:
            return None
        return {
            "__typename": "Entity",
            "id": opaque("Entity", name),
            "name": name,
            "isTeam": False,
            "organization": None,
            "user": None,
            "xxhashDigestsEnabled": False,
        }

    def made(self, entity: str, project: str) -> tuple[str, str]:
        """Make sure of a project; refused in an entity that is not the key's."""
        if entity not in self.entities:
            raise Refused(f"permission denied: no entity {entity!r}")
        self.projects.setdefault((entity, project), now())
        return entity, project

    def number(self, entity: str, project: str) -> int:
        return 1 + list(self.projects).index((entity, project))

    def upsert_model(self, input: Node) -> Node:
        known = len(self.projects)
        node = self.project(*reversed(self.made(input.get("entityName") or self.entities[0], input["name"])))
        inserted = len(self.projects) > known
        return {"__typename": "UpsertModelPayload", "project": node, "model": node, "inserted": inserted}

    def models(self, entityName: str, after: str | None = None, first: int | None = None) -> Node:
        names = [project for entity, project in self.projects if entity == entityName]
        return connection(names, lambda name: self.project(name, entityName) or {}, first, after)

    def project(self, name: str, entityName: str | None = None) -> Node | None:
        entity = entityName or self.entities[0]
        if (entity, name) not in self.projects:
            return None

        def found(name: str, missingOk: bool = False) -> Node | None:
            return self.run(self.runs[entity, project, name]) if (entity, project, name) in self.runs else None

        def views(
            viewType: str = "runs",
            viewName: str | None = None,
            userName: str | None = None,
            first: int | None = None,
            after: str | None = None,
        ) -> Node:
            chosen = [v for v in self.views.values() if (v.entity, v.project, v.type) == (entity, project, viewType)]
            return connection([v for v in chosen if viewName in (None, v.name)], self.view, first, after)

        def chosen(filters: str | None = None, order: str | None = None) -> list[RemoteRun]:
            rule = json.loads(filters or "{}")
            return ordered(
                [r for r in self.runs.values() if r.key[:2] == (entity, project) and matches(r, rule)], order
            )

        project = name
        return {
            "__typename": "Project",
            "id": opaque("Project", "v1", name, entity),
            "internalId": opaque("ProjectInternalId", self.number(entity, name)),
            "name": name,
            "entityName": entity,
            "entity": self.entity(entity),
            "description": "",
            "access": "PRIVATE",
            "views": "{}",
            "isBenchmark": False,
            "readOnly": False,
            "createdAt": self.projects[entity, name],
            "user": self.viewer(),
            "run": found,
            "bucket": found,
            "runCount": lambda filters=None: len(chosen(filters)),
            "runs": lambda filters=None, order=None, first=None, after=None: connection(
                chosen(filters, order), self.run, first, after
            ),
            "allViews": views,
            "artifactType": lambda name: self.artifact_type(entity, project, name),
            "artifact": lambda name: self.artifact(self.named(entity, project, name)),
            "artifactCollectionMembership": lambda name: self.membership(self.named(entity, project, name)),
            "artifactCollection": lambda name: self.collection(entity, project, name),
        }

    def upsert_bucket(self, input: Node) -> Node:
        """Make a run or change one; what is null or left out stays."""
        run = next((run for run in self.runs.values() if run.storage_id == input.get("id")), None)
        inserted = False
        if run is None:
            if not input.get("name"):
                raise Refused(f"run {input.get('id')!r} not found")
            entity, project = self.made(
                input.get("entityName") or self.entities[0], input.get("modelName") or "uncategorized"
            )
            inserted = (entity, project, input["name"]) not in self.runs
            run = self.runs.setdefault(
                (entity, project, input["name"]), RemoteRun(entity, project, input["name"], display_name=input["name"])
            )
        changes = given(
            input,
            display_name="displayName",
            group="groupName",
            job_type="jobType",
            notes="notes",
            description="description",
            sweep="sweep",
            state="state",
            tags="tags",
        )
        for name, value in changes.items():
            setattr(run, name, value)
        for name, field_name in (("config", "settings"), ("summaryMetrics", "summary")):
            if input.get(name) is not None:
                setattr(run, field_name, json.loads(input[name]))
        run.writes += 1
        return {"__typename": "UpsertBucketPayload", "bucket": self.run(run), "inserted": inserted}

    def delete_run(self, input: Node) -> Node:
        gone = [key for key, run in self.runs.items() if run.storage_id == input["id"]]
        if not gone:
            raise Refused(f"run {input['id']!r} not found")
        del self.runs[gone[0]]
        return {"__typename": "DeleteRunPayload", "clientMutationId": None}

    def stream(self, key: tuple[str, str, str], body: Node) -> None:
        """Take one file_stream request: chunks at their offsets, then perhaps the end."""
        run = self.runs.get(key)
        if run is None:
            raise Refused(f"run {'/'.join(key)} not found")
        run.writes += 1
        run.heartbeat_at, run.state = now(), "running"
        for name, chunk in body.get("files", {}).items():
            lines, offset = chunk["content"], chunk["offset"]
            if name == "wandb-history.jsonl":
                run.place(offset, lines)
            elif name == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
            else:
                (run.events if name == "wandb-events.jsonl" else run.output).update(enumerate(lines, offset))
        if body.get("complete"):
            run.state = "failed" if body.get("exitcode") else "finished"

    def create_run_files(self, input: Node) -> Node:
        key = input["entityName"], input["projectName"], input["runName"]
        run = self.runs.get(key)
        if run is None:
            raise Refused(f"run {'/'.join(key)} not found")
        files = []
        for name in input["files"]:
            run.files[name] = path = "/".join(("run", *key, name))
            files.append({"__typename": "File", "name": name, "uploadUrl": self.stored(path)})
        return {
            "__typename": "CreateRunFilesPayload",
            "runID": run.storage_id,
            "uploadHeaders": [],
            "files": files,
        }

    def stored(self, path: str) -> str:
        return f"{self.url}/storage/{path}"

    def run(self, run: RemoteRun) -> Node:
        def history(
            minStep: int = 0,
            maxStep: int | None = None,
            samples: int | None = None,
        ) -> list[str]:
            rows = [(row.get("_step", at), json.dumps(row)) for at, row in enumerate(run.history)]
            return [line for step, line in rows if minStep <= step and (maxStep is None or step < maxStep)][:samples]

        def sampled(specs: list[str]) -> list[list[Node]]:
            wanted = [json.loads(spec) for spec in specs]
            return [
                [{k: row[k] for k in spec["keys"]} for row in run.history if set(spec["keys"]) <= row.keys()]
                for spec in wanted
            ]

        def files(
            names: list[str] | None = None,
            first: int | None = None,
            after: str | None = None,
            pattern: str | None = None,
        ) -> Node:
            there = {
                name: path for name, path in run.files.items() if path in self.blobs and (not names or name in names)
            }
            return connection(list(there.items()), lambda item: self.file(*item), first, after)

        def logged(used: bool) -> Callable[..., Node]:
            def page(first: int | None = None, after: str | None = None) -> Node:
                versions = [v for versions in self.artifacts.values() for v in versions]
                mine = [v for v in versions if run.key in (v.used_by if used else v.logged_by)]
                return connection(mine, lambda v: self.artifact(v) or {}, first, after)

            return page

        tails = {name: [lines[k] for k in sorted(lines)[-1:]] for name, lines in (("h", run.lines), ("e", run.events))}
        return {
            "__typename": "Run",
            "id": run.storage_id,
            "name": run.id,
            "displayName": run.display_name,
            "projectId": self.number(run.entity, run.project),
            "project": lambda: self.project(run.project, run.entity),
            "sweepName": run.sweep,
            "state": run.state,
            "config": lambda: json.dumps(run.settings),
            "wandbConfig": lambda keys: json.dumps(run.settings.get("_wandb", {}).get("value", {})),
            "group": run.group,
            "jobType": run.job_type,
            "commit": None,
            "readOnly": False,
            "createdAt": run.created_at,
            "heartbeatAt": run.heartbeat_at,
            "description": run.description,
            "notes": run.notes,
            "tags": run.tags,
            "systemMetrics": "{}",
            "summaryMetrics": lambda: json.dumps(run.summary),
            "historyLineCount": len(run.lines),
            "eventsLineCount": len(run.events),
            "logLineCount": len(run.output),
            "historyTail": json.dumps(tails["h"]),
            "eventsTail": json.dumps(tails["e"]),
            "historyKeys": lambda: self.history_keys(run),
            "history": history,
            "sampledHistory": sampled,
            "parquetHistory": lambda liveKeys: {
                "__typename": "ParquetHistory",
                "parquetUrls": [],
                "liveData": run.history,
            },
            "events": lambda samples=None: [run.events[k] for k in sorted(run.events)][:samples],
            "user": self.user(),
            "fileCount": lambda: len(files()["edges"]),
            "files": files,
            "outputArtifacts": logged(used=False),
            "inputArtifacts": logged(used=True),
        }

    def history_keys(self, run: RemoteRun) -> Node | None:
        rows = run.history
        if not rows:
            return None
        counts: Node = {}
        for row in rows:
            for name, value in row.items():
                kind = "number" if isinstance(value, (int, float)) else "string"
                entry = counts.setdefault(name, {"typeCounts": [{"type": kind, "count": 0}], "monotonic": False})
                entry["typeCounts"][0]["count"] += 1
        return {"lastStep": rows[-1].get("_step", len(rows) - 1), "sets": [], "keys": counts}

    def file(self, name: str, path: str) -> Node:
        content = self.blobs.get(path, b"")
        return {
            "__typename": "File",
            "id": opaque("File", path),
            "name": name,
            "displayName": name,
            "url": lambda upload=False: self.stored(path),
            "directUrl": self.stored(path),
            "storagePath": path,
            "sizeBytes": len(content),
            "mimetype": "",
            "updatedAt": now(),
            "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
            "digest": base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode(),
        }

    def view(self, view: RemoteView) -> Node:
        return {
            "__typename": "View",
            "id": view.id,
            "type": view.type,
            "name": view.name,
            "displayName": view.display_name,
            "description": view.description,
            "project": lambda: self.project(view.project, view.entity),
            "spec": view.spec,
            "user": self.user(),
            "createdAt": view.created_at,
            "updatedAt": view.updated_at,
        }

    def upsert_view(self, input: Node) -> Node:
        view = self.views.get(input.get("id") or "")
        if input.get("id") and view is None:
            raise Refused(f"view {input['id']!r} not found")
        inserted = view is None
        if view is None:
            entity, project = input["entityName"], input["projectName"]
            if (entity, project) not in self.projects:
                raise Refused(f"project {entity}/{project} not found")
            view = RemoteView(opaque("View", next(self.numbers)), entity, project, "runs", "", "", "", "{}", writes=0)
            self.views[view.id] = view
        changes = given(
            input, type="type", name="name", display_name="displayName", description="description", spec="spec"
        )
        for name, value in changes.items():
            setattr(view, name, value)
        view.writes += 1
        view.updated_at = now()
        return {"__typename": "UpsertViewPayload", "view": self.view(view), "inserted": inserted}

    def delete_view(self, input: Node) -> Node:
        gone = self.views.pop(input["id"], None)
        return {"__typename": "DeleteViewPayload", "success": gone is not None, "pendingDrafts": []}

    def version(self, id: str) -> RemoteArtifact:
        for versions in self.artifacts.values():
            for artifact in versions:
                if id in (artifact.id, artifact.client_id):
                    return artifact
        raise Refused(f"artifact {id!r} not found")

    def named(self, entity: str, project: str, name: str) -> RemoteArtifact | None:
        """Find "collection:alias", where the alias may be v0, v1, ..."""
        collection, _, alias = name.partition(":")
        for key, versions in self.artifacts.items():
            if (key[0], key[1], key[3]) == (entity, project, collection):
                for artifact in versions:
                    if artifact.state == "COMMITTED" and (alias or "latest") in [
                        *artifact.aliases,
                        f"v{artifact.version}",
                    ]:
                        return artifact
        return None

    def create_artifact(self, input: Node) -> Node:
        entity, project = self.made(input["entityName"], input["projectName"])
        name = input.get("artifactCollectionName") or input["artifactCollectionNames"][0]
        key = entity, project, input["artifactTypeName"], name
        versions = self.artifacts.setdefault(key, [])
        run = entity, project, input.get("runName") or ""
        latest = next((v for v in versions if "latest" in v.aliases), None)
        same = [v for v in versions if v.digest == input["digest"] and v.state == "COMMITTED"]
        if same and input.get("enableDigestDeduplication"):
            artifact = same[0]
        else:
            artifact = RemoteArtifact(*key, opaque("Artifact", *key[1:], len(versions)), input["digest"])
            artifact.algorithm = input.get("digestAlgorithm") or artifact.algorithm
            artifact.client_id, artifact.description = input.get("clientID"), input.get("description")
            artifact.metadata = json.loads(input.get("metadata") or "{}")
            versions.append(artifact)
        artifact.tags += [tag["tagName"] for tag in input.get("tags") or []]
        if run not in artifact.logged_by:
            artifact.logged_by.append(run)
        self.alias(artifact, [alias["alias"] for alias in input.get("aliases") or []])
        return {"__typename": "CreateArtifactPayload", "artifact": self.artifact(artifact, latest)}

    def alias(self, artifact: RemoteArtifact, names: Sequence[str]) -> None:
        """Move aliases to a version from whichever had them."""
        for name in names:
            for other in self.artifacts[artifact.key]:
                other.aliases = [alias for alias in other.aliases if alias != name]
            artifact.aliases.append(name)

    def add_aliases(self, input: Node) -> Node:
        self.alias(self.version(input["artifactID"]), [alias["alias"] for alias in input["aliases"]])
        return {"__typename": "AddAliasesPayload", "success": True}

    def delete_aliases(self, input: Node) -> Node:
        artifact, gone = self.version(input["artifactID"]), [alias["alias"] for alias in input["aliases"]]
        artifact.aliases = [alias for alias in artifact.aliases if alias not in gone]
        return {"__typename": "DeleteAliasesPayload", "success": True}

    def create_manifest(self, input: Node) -> Node:
        artifact = self.version(input["artifactID"])
        artifact.manifest = path = f"manifest/{artifact.id}/{input['name']}"
        file = self.file(input["name"], path) | {"uploadUrl": self.stored(path), "uploadHeaders": []}
        manifest = {"__typename": "ArtifactManifest", "id": opaque("ArtifactManifest", artifact.id), "file": file}
        return {"__typename": "CreateArtifactManifestPayload", "artifactManifest": manifest}

    def create_artifact_files(self, input: Node) -> Node:
        def build(spec: Node) -> Node:
            path = f"artifact/{spec['artifactID']}/{spec['name']}"
            return self.file(spec["name"], path) | {
                "uploadUrl": self.stored(path),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": lambda: self.artifact(self.version(spec["artifactID"])),
            }

        files = connection(input["artifactFiles"], build, None, None)
        return {"__typename": "CreateArtifactFilesPayload", "files": files}

    def commit_artifact(self, input: Node) -> Node:
        artifact = self.version(input["artifactID"])
        if artifact.state != "COMMITTED":
            if artifact.manifest not in self.blobs:
                raise Refused(f"artifact {artifact.id!r} has no manifest yet")
            artifact.entries = json.loads(self.blobs[artifact.manifest])["contents"]
            artifact.version = sum(v.version is not None for v in self.artifacts[artifact.key])
            artifact.state = "COMMITTED"
        return {"__typename": "CommitArtifactPayload", "artifact": self.artifact(artifact)}

    def update_artifact(self, input: Node) -> Node:
        artifact = self.version(input["artifactID"])
        if input.get("metadata") is not None:
            artifact.metadata = json.loads(input["metadata"])
        artifact.description = input.get("description") or artifact.description
        self.alias(artifact, [alias["alias"] for alias in input.get("aliases") or []])
        return {"__typename": "UpdateArtifactPayload", "artifact": self.artifact(artifact)}

    def use_artifact(self, input: Node) -> Node:
        artifact = self.version(input["artifactID"])
        run = input["entityName"], input["projectName"], input["runName"]
        if run not in self.runs:
            raise Refused(f"run {'/'.join(run)} not found")
        if run not in artifact.used_by:
            artifact.used_by.append(run)
        return {"__typename": "UseArtifactPayload", "artifact": self.artifact(artifact)}

    def artifact(self, artifact: RemoteArtifact | None, latest: RemoteArtifact | None = None) -> Node | None:
        if artifact is None:
            return None
        entity, project, kind, name = artifact.key
        collection = self.collection(entity, project, name) or {}
        newest = latest or next((v for v in self.artifacts[artifact.key] if "latest" in v.aliases), None)
        manifest = lambda: {  # noqa: E731
            "__typename": "ArtifactManifest",
            "id": opaque("ArtifactManifest", artifact.id),
            "file": self.file("wandb_manifest.json", artifact.manifest),
        }
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "state": artifact.state,
            "digest": artifact.digest,
            "digestAlgorithm": artifact.algorithm,
            "versionIndex": artifact.version,
            "artifactType": {"__typename": "ArtifactType", "name": kind},
            "artifactSequence": collection
            | {"latestArtifact": lambda: self.artifact(newest) if newest is not artifact else None},
            "description": artifact.description,
            "metadata": json.dumps(artifact.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [{"__typename": "Tag", "id": opaque("Tag", tag), "name": tag} for tag in artifact.tags],
            "historyStep": None,
            "size": sum(entry.get("size") or 0 for entry in artifact.entries.values()),
            "commitHash": None,
            "fileCount": len(artifact.entries),
            "createdAt": artifact.created_at,
            "updatedAt": artifact.created_at,
            "aliases": [
                {
                    "__typename": "ArtifactAlias",
                    "id": opaque("Alias", artifact.id, alias),
                    "alias": alias,
                    "artifactCollection": collection,
                }
                for alias in artifact.aliases
            ],
            "currentManifest": manifest,
            "usedBy": lambda: connection(
                [self.runs[key] for key in artifact.used_by if key in self.runs], self.run, None, None
            ),
            "createdBy": lambda: self.run(self.runs[artifact.logged_by[0]]) if artifact.logged_by else None,
            "filesByManifestEntries": lambda entries, **_: connection(
                [entry["name"] for entry in entries],
                lambda name: self.file(name, f"artifact/{artifact.id}/{name}"),
                None,
                None,
            ),
        }

    def collection(self, entity: str, project: str, name: str) -> Node | None:
        found = next((k for k in self.artifacts if (k[0], k[1], k[3]) == (entity, project, name)), None)
        if found is None:
            return None
        return {
            "__typename": "ArtifactSequence",
            "id": opaque("ArtifactCollection", entity, project, name),
            "name": name,
            "description": None,
            "digestAlgorithm": "MANIFEST_MD5",
            "project": lambda: self.project(project, entity),
            "defaultArtifactType": {"__typename": "ArtifactType", "name": found[2]},
            "artifacts": lambda first=None, after=None, order=None, filters=None: connection(
                [v for v in self.artifacts[found][::-1] if v.state == "COMMITTED"],
                lambda v: self.artifact(v) or {},
                first,
                after,
            ),
            "artifactMembership": lambda aliasName: self.membership(self.named(entity, project, f"{name}:{aliasName}")),
        }

    def artifact_type(self, entity: str, project: str, name: str) -> Node:
        return {
            "__typename": "ArtifactType",
            "id": opaque("ArtifactType", entity, project, name),
            "name": name,
            "artifactCollection": lambda name: self.collection(entity, project, name),
        }

    def membership(self, artifact: RemoteArtifact | None) -> Node | None:
        if artifact is None:
            return None
        node = self.artifact(artifact) or {}
        stored = [name for name, entry in artifact.entries.items() if "ref" not in entry]

        def files(names: list[str] | None = None, first: int | None = None, after: str | None = None) -> Node:
            wanted = [name for name in stored if not names or name in names]
            return connection(wanted, lambda name: self.file(name, f"artifact/{artifact.id}/{name}"), first, after)

        return {
            "__typename": "ArtifactCollectionMembership",
            "id": opaque("ArtifactCollectionMembership", artifact.id),
            "versionIndex": artifact.version,
            "createdAt": artifact.created_at,
            "aliases": node["aliases"],
            "artifactCollection": self.collection(artifact.entity, artifact.project, artifact.name),
            "artifact": node,
            "files": files,
        }
