"""The chat client against a real server: what is tried again, what is not, and whom the key reaches."""

import _thread
import asyncio
import json
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from pydantic import SecretStr

from ka2l_ray.annotate.claims import Claims
from ka2l_ray.annotate.client import ChatClient, Gate, retry_after_s
from ka2l_ray.annotate.endpoint import content_hash, request
from ka2l_ray.config import EndpointSection
from ka2l_ray.dataflow.storage import Folder

KEY = "sk-SECRET"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer().running() as server:
        yield server


def ask(server: ChatServer, folder: Path, *questions: str, **changes: Any) -> list[str]:
    """The reason of each question that got no reply, empty for the others."""
    endpoint = EndpointSection.model_validate({"url": server.url, "backoff_s": 0.01} | changes)
    client = ChatClient(endpoint, SecretStr(KEY), Folder.of(str(folder)), "round")
    return asyncio.run(reasons(client, endpoint, questions))


async def reasons(client: ChatClient, endpoint: EndpointSection, questions: Sequence[str]) -> list[str]:
    requests = {content_hash(asked): asked for asked in (request(endpoint, q) for q in questions)}
    failed = await client.ask(requests)
    assert failed.keys() <= requests.keys()
    return [failed.get(name, "") for name in requests]


@pytest.mark.parametrize(
    "trouble",
    ["status 408", "status 409", "status 425", "status 429", "status 500", "status 504", "drop", "cut", "html"],
)
def test_what_may_pass_is_tried_again_until_there_is_a_reply(server, tmp_path, trouble):
    server.troubles["q"] = [trouble] * 3
    assert ask(server, tmp_path, "q", retries=3) == [""]
    assert (server.asked["q"], server.answered["q"]) == (4, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_will_not_pass_is_asked_once(server, tmp_path, status):
    server.troubles["bad"] = [f"status {status}"]
    bad, good = ask(server, tmp_path, "bad", "good")
    assert bad.startswith(f"HTTP {status}: ")
    assert KEY not in bad
    assert good == ""
    assert server.asked == {"bad": 1, "good": 1}


def test_retries_are_used_up_and_counted(server, tmp_path):
    server.troubles["q"] = ["status 503"] * 9
    assert ask(server, tmp_path, "q", retries=2)[0].endswith("(3 tries)")
    assert server.asked["q"] == 3


def test_a_redirect_is_not_followed_because_it_would_carry_the_key(server, tmp_path):
    with ChatServer().running() as elsewhere:
        server.troubles["q"] = [f"redirect {elsewhere.url}"]
        assert ask(server, tmp_path, "q")[0].startswith("HTTP 307")
        assert not elsewhere.headers


def test_a_reply_that_is_kept_counts_at_another_address(server, tmp_path):
    assert ask(server, tmp_path, "q", "r") == ["", ""]
    with ChatServer().running() as moved:
        assert ask(moved, tmp_path, "q", "r", "new") == [""] * 3
        assert moved.asked == {"new": 1}
        assert ask(moved, tmp_path, "q", model="another annotator") == [""]
        assert moved.asked == {"new": 1, "q": 1}


def test_a_server_that_asks_for_a_long_wait_is_not_asked_again(server, tmp_path):
    server.troubles["q"] = ["wait 86400"]
    assert "Retry-After: 86400 s" in ask(server, tmp_path, "q")[0]
    assert server.asked["q"] == 1


def test_a_server_that_is_not_there_is_a_failed_row(tmp_path):
    with ChatServer().running() as gone:
        pass
    assert "ClientConnectorError" in ask(gone, tmp_path, "q", retries=1)[0]


@pytest.mark.timeout(300)
def test_an_interrupt_that_is_no_signal_ends_it_while_the_server_is_silent(server, tmp_path):
    """Ray interrupts a task that it cancels in this way, which does not wake an event loop. Its workers have Python's
    own handler, which a process that a script started in the background lacks."""
    server.troubles["q"] = ["hang"]
    server.before = lambda question: _thread.interrupt_main()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(server, tmp_path, "q", timeout_s=600)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_kept_reply_is_not_asked_for_again_and_holds_no_key(server, tmp_path):
    server.says["q"] = f"your key is {KEY}"
    assert ask(server, tmp_path, "q") == ask(server, tmp_path, "q") == [""]
    assert server.asked["q"] == 1
    (kept,) = tmp_path.iterdir()
    assert KEY not in kept.read_text()
    assert "your key is ***" in kept.read_text()


class Own:
    """One of two owners of claims in this process."""

    def __init__(self, claims: Claims, owner: str) -> None:
        self.claims, self.owner = claims, owner

    async def take(self, name: str) -> bool:
        return self.claims.take(name, self.owner, 30)

    async def leave(self, name: str) -> None:
        self.claims.leave(name, self.owner)


def ask_twice(server: ChatServer, folder: Path, questions: list[str], **changes: Any) -> list[list[str]]:
    """The same questions through two clients at the same time, as two curves of a comparison ask."""
    endpoint = EndpointSection.model_validate({"url": server.url, "backoff_s": 0.01} | changes)
    claims = Claims()

    async def one(owner: str) -> list[str]:
        client = ChatClient(endpoint, SecretStr(KEY), Folder.of(str(folder)), owner, Own(claims, owner))
        return await reasons(client, endpoint, questions)

    async def both() -> list[list[str]]:
        return list(await asyncio.gather(one("a"), one("b")))

    return asyncio.run(both())


@pytest.mark.parametrize("concurrency", [1, 6])
def test_two_that_ask_the_same_at_the_same_time_pay_once(server, tmp_path, concurrency):
    questions = [f"q{n}" for n in range(6)]
    for q in questions:
        server.troubles[q] = ["status 500", "slow 0.05"]
    assert ask_twice(server, tmp_path, questions, concurrency=concurrency) == [[""] * 6] * 2
    assert server.answered == dict.fromkeys(questions, 1)
    assert {json.loads(f.read_text())["asked_by"] for f in tmp_path.iterdir()} <= {"a", "b"}


def test_what_one_gives_up_the_other_asks_itself(server, tmp_path):
    server.troubles["q"] = ["status 400"]
    given_up, answered = sorted(
        (reason for reason in chain.from_iterable(ask_twice(server, tmp_path, ["q"]))), key=len, reverse=True
    )
    assert given_up.startswith("HTTP 400")
    assert answered == ""


def test_no_more_requests_at_once_than_allowed(server, tmp_path):
    for n in range(12):
        server.troubles[f"q{n}"] = ["slow 0.05"]
    ask(server, tmp_path, *(f"q{n}" for n in range(12)), concurrency=3)
    assert server.most_at_once <= 3
    assert server.answered.total() == 12


def test_the_gate_spaces_its_turns_and_holds_all_of_them_back_in_a_pause():
    """A lower bound only: a slow machine cannot break it."""

    async def eight_turns() -> float:
        gate, started_s = Gate(concurrency=4, requests_per_s=100.0), time.monotonic()

        async def take(n: int) -> None:
            async with gate.turn():
                if n == 0:
                    gate.pause(0.1)

        await asyncio.gather(*(take(n) for n in range(8)))
        return time.monotonic() - started_s

    assert asyncio.run(eight_turns()) >= 0.1 + 6 / 100.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("17", 17.0),
        ("Wed, 01 Jan 2025 00:00:30 GMT", 30.0),
        ("Tue, 31 Dec 2024 00:00:00 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_holds_seconds_or_a_date(header, seconds):
    assert retry_after_s(header, datetime(2025, 1, 1, tzinfo=UTC)) == seconds
