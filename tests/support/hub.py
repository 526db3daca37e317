"""A Hub of its own on this machine: the few endpoints by which huggingface_hub makes a repository and fills it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """What it holds: files by repository, which of them are private, and which answer is an error, of which status."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)
    status: int = 500
    address: str = ""


def answer(hub: Hub, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
    parts = path.split("?")[0].strip("/").split("/")
    if token != TOKEN:
        return 401, {"error": "Invalid username or password."}
    if any(part in hub.fails for part in parts):
        return hub.status, {"error": "out of order"}
    if parts == ["api", "repos", "create"]:
        asked = json.loads(body)
        kind = asked.get("type") or "model"
        name = f"{kind}s/{asked.get('organization') or 'me'}/{asked['name']}"
        if name in hub.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{hub.address}/{name}"}
        hub.repositories[name], hub.private[name] = (
            {},
            asked.get("visibility") == "private" or bool(asked.get("private")),
        )
        return 200, {"url": f"{hub.address}/{name.removeprefix('models/')}"}
    if parts == ["api", "validate-yaml"]:
        return 200, {"errors": [], "warnings": []}
    name = "/".join(parts[1:4])
    if parts[4:] == []:
        if name not in hub.repositories:
            return 404, {"error": "Repository not found"}
        return 200, {"id": "/".join(parts[2:4]), "private": hub.private[name], "siblings": [], "tags": []}
    if parts[4] == "preupload":
        files = json.loads(body)["files"]
        return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
    if parts[4] == "commit":
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                hub.repositories[name][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
        return 200, {"commitUrl": f"{hub.address}/{name}/commit/abc", "commitOid": "abc", "success": True}
    return 404, {"error": path}


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            status, said = answer(hub, self.path, body, token)
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = reply

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
