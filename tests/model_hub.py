"""A model hub on this machine: one gated model, which it lists to everybody, and whose files it gives to whoever sends
the right token. Answers are those of huggingface.co, as `huggingface_hub` reads them."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from http_server import serving
from huggingface_hub import constants
from huggingface_hub.utils import _http

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Answer = tuple[int, dict[str, str], bytes]


class ModelHub:
    """`model` is an id OWNER/NAME, `folder` contains its files. `given` are the files that were asked for with the
    token, `sent` those of them whose bytes were; of the first `to_cut` large ones only half, before the connection
    ends. `is_down`: every answer is HTTP 503."""

    def __init__(self, model: str, folder: Path, token: str) -> None:
        self.url, self.given, self.sent, self.refused = "", list[str](), list[str](), list[str]()
        self.to_cut, self.is_down, self.requests = 0, False, 0
        self._model, self._folder, self._token = model, folder, token

    def answer(self, handler: BaseHTTPRequestHandler) -> Answer:
        """Status, headers and body for a request, in the form that `huggingface_hub` expects."""
        self.requests += 1
        path, sent = handler.path.partition("?")[0], handler.headers["Authorization"]
        if self.is_down:
            return 503, {}, b""
        if f"/{self._model}/" not in f"{path}/":
            return (404 if sent else 401), {"X-Error-Code": "RepoNotFound"}, b""
        if path.startswith("/api/models/"):
            return self._listing(path)
        if sent != f"Bearer {self._token}":
            self.refused.append(path)
            return (403 if sent else 401), {"X-Error-Code": "GatedRepo"}, b""
        file = self._folder / path.rpartition("/")[2]
        if not (path.startswith(f"/{self._model}/resolve/") and file.is_file()):
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        self.given.append(file.name)
        body = file.read_bytes()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body

    def _listing(self, path: str) -> Answer:
        if path.rpartition("/revision/")[2] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = [{"rfilename": f.name, "size": f.stat().st_size} for f in sorted(self._folder.iterdir())]
        found = {"id": self._model, "modelId": self._model, "sha": COMMIT, "siblings": files, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    def is_asked(self, patch: pytest.MonkeyPatch, token: str | None = None) -> None:
        """Have this process ask it, as one that was started with HF_ENDPOINT does; `token` is HF_TOKEN."""
        patch.setenv("HF_TOKEN", self._token if token is None else token)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", "none")
        patch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(_http, "time", SimpleNamespace(**vars(time) | {"sleep": lambda _: None}))  # between its tries

    @contextmanager
    def running(self) -> Iterator["ModelHub"]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(with_body=True)

            def do_HEAD(self) -> None:
                self._send(with_body=False)

            def _send(self, with_body: bool) -> None:
                status, headers, body = hub.answer(self)
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if not with_body:
                    return
                if status == 200 and "/resolve/" in self.path:
                    hub.sent.append(self.path.rpartition("/")[2])
                if hub.to_cut and len(body) > 100_000:
                    hub.to_cut -= 1
                    body, self.close_connection = body[: len(body) // 2], True
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with serving(Handler) as self.url:
            yield self
