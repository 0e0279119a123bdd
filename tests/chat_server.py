"""A real local chat endpoint that fails as scripted, and counts.

A question's script is a list of troubles, each met once, in order; afterwards it is answered. Questions are
distinguished by the user's message. Tokens: 10 + the words of the question for the prompt, 3 for the completion.
"""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from http_server import serving

COMPLETION_TOKENS = 3


def prompt_tokens(question: str) -> int:
    return 10 + len(question.split())


class ChatServer:
    """What it will do, and what it has seen."""

    def __init__(self) -> None:
        self.troubles: dict[str, list[str]] = defaultdict(list)
        self.says: dict[str, str] = {}
        """Answers; a question without one is answered by `answer to <question>`."""
        self.before: Callable[[str], None] = lambda question: None
        """Called with each question before it is dealt with."""
        self.refuses: Callable[[dict[str, Any]], bytes | None] = lambda asked: None
        """What is wrong with a request in the form in which it came, as the body of a response; None takes it."""
        self.refuses_with = 400
        """The status of that response."""
        self.report_usage = True
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.came_early: list[str] = []
        self._at_once = 0
        self._not_before: dict[str, float] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.url = ""

    def _enter(self, question: str, headers: dict[str, str]) -> str | None:
        with self._lock:
            self.asked[question] += 1
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            if time.monotonic() < self._not_before.get(question, 0.0):
                self.came_early.append(question)
            return self.troubles[question].pop(0) if self.troubles[question] else None

    def _leave(self) -> None:
        with self._lock:
            self._at_once -= 1

    def deal_with(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        question = asked["messages"][-1]["content"]
        self.requests.append(asked)
        if refusal := self.refuses(asked):
            send(handler, self.refuses_with, refusal)
            return
        kind, _, value = (self._enter(question, dict(handler.headers)) or "").partition(" ")
        try:
            self.before(question)
            if kind == "slow":
                time.sleep(float(value))
        finally:
            self._leave()  # before the response, which the client's next request may overtake
        if kind == "hang":
            self._closing.wait()
        else:
            self._respond(handler, question, kind, value)

    def _respond(self, handler: BaseHTTPRequestHandler, question: str, kind: str, value: str) -> None:
        if kind == "wait":  # "wait 1": 429, come back in a second
            self._not_before[question] = time.monotonic() + float(value)
            send(handler, 429, b'{"error": "too many"}', {"Retry-After": value})
        elif kind == "status":
            send(handler, int(value), json.dumps({"error": f"you sent {handler.headers['Authorization']}"}).encode())
        elif kind == "body":  # "body 429 {…}"
            status, _, body = value.partition(" ")
            send(handler, int(status), body.encode())
        elif kind == "redirect":
            send(handler, 307, b"", {"Location": value})
        elif kind == "malformed":
            send(handler, 200, b'{"choices": [{"message": {"content": "half an ans')
        elif kind == "html":
            send(handler, 200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        elif kind == "empty":
            send(handler, 200, b'{"choices": []}')
        elif kind == "cut":  # the body ends before its announced length
            send(handler, 200, b'{"choices": [', {"Content-Length": "500"})
            handler.close_connection = True
        elif kind == "drop":
            handler.close_connection = True
        else:
            with self._lock:
                self.answered[question] += 1
            send(handler, 200, json.dumps(self._completion(question, kind)).encode())

    def _completion(self, question: str, kind: str) -> dict[str, Any]:
        said = self.says.get(question, f"answer to {question}")
        choice = {
            "message": {"role": "assistant", "content": said},
            "finish_reason": "length" if kind == "long" else "stop",
        }
        used = {"prompt_tokens": prompt_tokens(question), "completion_tokens": COMPLETION_TOKENS}
        return {"object": "chat.completion", "choices": [choice]} | ({"usage": used} if self.report_usage else {})

    @contextmanager
    def running(self) -> Iterator["ChatServer"]:
        chat = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                chat.deal_with(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with serving(Handler) as address:
            self.url = f"{address}/v1/chat/completions"
            try:
                yield self
            finally:
                self._closing.set()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in (
        {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
    ).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
