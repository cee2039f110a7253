"""What W&B's server answers, as far as runs and artefacts need it, and a record of what it got."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, request
from werkzeug.serving import make_server

PROJECT = {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}}
NO_UPLOADS: dict[str, Any] = {"uploadHeaders": [], "uploadMultipartUrls": None}


class WandbServer:
    """A server on this machine.

    Attributes:
        uri: Its address.
        asked: Operations of GraphQL and their variables, in order.
        streams: What runs sent of their histories, by run.
        files: What was uploaded, by the path that was given for it.
        keys: With which it was asked.
    """

    def __init__(self) -> None:
        self.uri = ""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.streams: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, bytes] = {}
        self.keys: set[str] = set()

    def of(self, operation: str) -> list[dict[str, Any]]:
        """Return the variables of all calls of an operation."""
        return [variables for name, variables in self.asked if name == operation]

    def app(self) -> Flask:
        """Return the application."""
        made = Flask(__name__)
        made.add_url_rule("/graphql", "graphql", self._graphql, methods=["POST"])
        made.add_url_rule("/files/<a>/<b>/<run>/file_stream", "s", self._stream, methods=["POST"])
        made.add_url_rule("/up/<path:name>", "up", self._upload, methods=["PUT"])
        made.add_url_rule("/<path:path>", "other", lambda path: {}, methods=["GET", "POST"])
        return made

    def _graphql(self) -> dict[str, Any]:
        content = request.get_json()
        operation, variables = content.get("operationName") or "", content.get("variables") or {}
        if request.authorization is not None:
            self.keys.add(str(request.authorization.password))
        self.asked.append((operation, variables))
        bucket = {"id": "r", "name": variables.get("name"), "displayName": "d", "sweepName": None}
        bucket |= {"historyLineCount": 0, "logLineCount": 0, "eventsLineCount": 0}
        bucket |= {"config": None, "summaryMetrics": None, "tags": [], "project": PROJECT}
        pending = {"id": "a", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        manifest = {"id": "m", "file": {"id": "f"} | self._place("manifest")}
        return {
            "data": {
                "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}"},
                "serverInfo": {"cliVersionInfo": {}, "features": [], "serverSettings": {}},
                "upsertBucket": {"bucket": bucket, "inserted": True},
                "model": {"bucket": None},
                "project": {"artifact": None, "artifactType": None, "artifactCollection": None},
                "createArtifact": {"artifact": pending},
                "createArtifactManifest": {"artifactManifest": manifest},
                "createArtifactFiles": {"files": {"edges": self._artefact_files(variables)}},
                "commitArtifact": {"artifact": {"id": "a", "digest": "d"}},
                "createRunFiles": {
                    "runID": "r",
                    "uploadHeaders": [],
                    "files": [{"name": n} | self._place(n) for n in variables.get("files", [])],
                },
            }
        }

    def _artefact_files(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        files = variables.get("input", {}).get("artifactFiles", [])
        return [
            {"node": {"storagePath": "x", "artifact": {"id": "a"}} | self._place(file["name"])}
            for file in files
        ]

    def _place(self, name: str) -> dict[str, Any]:
        return NO_UPLOADS | {"uploadUrl": f"{self.uri}/up/{name}"}

    def _stream(self, a: str, b: str, run: str) -> dict[str, Any]:
        self.streams.setdefault(run, []).append(request.get_json())
        return {}

    def _upload(self, name: str) -> str:
        self.files[name] = request.get_data()
        return ""


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Run a server while the context is open."""
    server = WandbServer()
    made = make_server("127.0.0.1", 0, server.app(), threaded=True)
    server.uri = f"http://127.0.0.1:{made.port}"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        made.shutdown()
        thread.join()
