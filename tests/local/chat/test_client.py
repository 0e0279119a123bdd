"""The chat client against a real server: what is tried again, what is not, and whom the key reaches."""

import _thread
import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from http_server import serving
from ports import free_ports
from pydantic import SecretStr

from ka2l_ray.chat.claims import Claims
from ka2l_ray.chat.client import ChatClient, Gate, proxy_of
from ka2l_ray.chat.endpoint import content_hash, request
from ka2l_ray.chat.server_errors import complaint, retry_after_s, wait_asked_s
from ka2l_ray.config import ConfigError, EndpointSection
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


def refusing(**names: str) -> Callable[[dict[str, Any]], bytes | None]:
    """A server that refuses fields, and says so in these words."""

    def refuses(asked: dict[str, Any]) -> bytes | None:
        roles = [m["role"] for m in asked["messages"]]
        return next((words.encode() for name, words in names.items() if name in (*asked, *roles)), None)

    return refuses


def openai(param: str, code: str, message: str) -> str:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json.dumps({"error": error})


NEW_NAME = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
ONE_VALUE = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is supported."
REFUSALS = {
    "OpenAI's o-series": (
        {
            "max_tokens": openai("max_tokens", "unsupported_parameter", NEW_NAME),
            "temperature": openai("temperature", "unsupported_value", ONE_VALUE),
        },
        {"model", "messages", "max_completion_tokens", "top_p"},
    ),
    "a validator": (
        {"top_p": '{"detail": [{"type": "extra_forbidden", "loc": ["body", "top_p"], "msg": "Extra inputs"}]}'},
        {"model", "messages", "max_tokens", "temperature"},
    ),
    "words alone": (
        {"temperature": '{"message": "`temperature` is deprecated for this model."}'},
        {"model", "messages", "max_tokens", "top_p"},
    ),
    "either name": (
        {"max_tokens": "unknown field max_tokens", "max_completion_tokens": "unknown field max_completion_tokens"},
        {"model", "messages", "temperature", "top_p"},
    ),
}


@pytest.mark.parametrize(("words", "kept"), REFUSALS.values(), ids=REFUSALS)
def test_what_a_server_does_not_take_is_left_out_and_remembered(
    server: ChatServer, tmp_path: Path, words: dict[str, str], kept: set[str]
) -> None:
    server.refuses = refusing(**words)
    questions = [f"q{n}" for n in range(6)]
    assert ask(server, tmp_path, *questions, concurrency=1, retries=0, parameters={"top_p": 0.9}) == [""] * 6
    assert len(server.requests) == 6 + len(words)
    assert all(r.keys() == kept for r in server.requests[len(words) :])
    assert ask(server, tmp_path, *questions, parameters={"top_p": 0.9}) == [""] * 6
    assert len(server.requests) == 6 + len(words), "replies are kept under the request as it was meant"


def test_many_at_once_learn_what_is_refused(server: ChatServer, tmp_path: Path) -> None:
    server.refuses = refusing(**REFUSALS["OpenAI's o-series"][0])
    questions = [f"q{n}" for n in range(40)]
    assert ask(server, tmp_path, *questions, concurrency=16, retries=0) == [""] * 40
    assert server.answered == dict.fromkeys(questions, 1)
    assert len(server.requests) <= 40 + 2 * 16


@pytest.mark.parametrize(
    "words",
    [
        openai(
            "messages[0].role", "unsupported_value", "'messages[0].role' does not support 'system' with this model."
        ),
        '{"object": "error", "message": "System role not supported", "code": 400}',
    ],
)
def test_a_model_without_a_system_role_gets_its_text_from_the_user(
    server: ChatServer, tmp_path: Path, words: str
) -> None:
    server.refuses = refusing(system=words)
    assert ask(server, tmp_path, "q", "r", system="Be brief.", concurrency=1) == ["", ""]
    assert [[m["role"] for m in r["messages"]] for r in server.requests] == [["system", "user"], ["user"], ["user"]]
    assert [r["messages"][-1]["content"] for r in server.requests] == ["q", "Be brief.\n\nq", "Be brief.\n\nr"]


@pytest.mark.parametrize(
    "words",
    [
        "'max_tokens' is too large: 64. This model's maximum context length is 2048 tokens",
        openai("temperature", "decimal_above_max_value", "Invalid 'temperature': decimal above maximum value."),
        openai("messages", "unsupported_value", "this content is not supported"),
        "The model `x` does not exist",
    ],
)
def test_another_mistake_in_a_request_is_no_refusal_of_a_part(server: ChatServer, tmp_path: Path, words: str) -> None:
    server.refuses = lambda asked: words.encode()
    (reason,) = ask(server, tmp_path, "q")
    assert reason.startswith("HTTP 400: ")
    assert len(server.requests) == 1


def test_an_error_with_status_200_is_told_in_the_servers_words(server: ChatServer, tmp_path: Path) -> None:
    server.troubles["no"] = ['body 200 {"error": {"code": 402, "message": "Insufficient credits"}}']
    server.troubles["later"] = ['body 200 {"error": {"message": "Overloaded"}}'] * 2
    server.troubles["never"] = ['body 200 {"code": "503", "msg": "model is loading"}'] * 2
    server.troubles["inside"] = [
        'body 200 {"choices": [{"message": {"content": "Par"}, "error": {"code": 502, "message": "cut off"}}]}'
    ]
    reasons = ask(server, tmp_path, "no", "later", "never", "inside", retries=1)
    assert reasons == [
        "HTTP 402: Insufficient credits",
        "HTTP 500: Overloaded (2 tries)",
        "HTTP 503: model is loading (2 tries)",
        "",
    ]
    assert server.asked == {"no": 1, "later": 2, "never": 2, "inside": 2}


@pytest.mark.parametrize(
    "words",
    [
        openai("temperature", "unsupported_value", ONE_VALUE),
        '{"error": {"type": "BadRequestError", "message": "`temperature` is deprecated for this model."}}',
        '{"error": "temperature: unknown field"}',
        '{"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], "msg": "Extra inputs"}]}',
    ],
)
def test_a_part_that_is_refused_with_status_200_is_left_out_too(server: ChatServer, tmp_path: Path, words: str) -> None:
    server.refuses, server.refuses_with = refusing(temperature=words), 200
    assert ask(server, tmp_path, "q", "r", concurrency=1, retries=0) == ["", ""]
    assert [r.keys() >= {"temperature"} for r in server.requests] == [True, False, False]


def test_words_of_an_answer_that_was_cut_off_refuse_nothing(server: ChatServer, tmp_path: Path) -> None:
    choice = {"message": {"content": "an unknown temperature"}, "error": {"message": "cut off"}}
    server.troubles["q"] = [f"body 200 {json.dumps({'choices': [choice]})}"]
    assert ask(server, tmp_path, "q", retries=1) == [""]
    assert all("temperature" in r for r in server.requests)


def test_a_request_that_is_wrong_with_status_200_is_not_tried_again(server: ChatServer, tmp_path: Path) -> None:
    error = '{"error": {"type": "invalid_request_error", "code": null, "message": "too long"}}'
    server.troubles["q"] = [f"body 200 {error}"]
    assert ask(server, tmp_path, "q", retries=1) == ["HTTP 400: too long"]


def test_a_reason_is_the_servers_own_and_its_providers(server: ChatServer, tmp_path: Path) -> None:
    metadata = {"raw": "quota of project x is used up"}
    error = json.dumps({"error": {"message": "Provider returned error", "metadata": metadata}})
    server.troubles["q"] = [f"body 403 {error}"]
    server.troubles["r"] = ["body 422 [1, 2"]
    assert ask(server, tmp_path, "q", "r") == [
        "HTTP 403: Provider returned error: quota of project x is used up",
        "HTTP 422: [1, 2",
    ]


def test_a_limit_that_names_a_time_is_waited_for(server: ChatServer, tmp_path: Path) -> None:
    """A lower bound only: a slow machine cannot break it."""
    limit = "Rate limit reached: Limit 3 / min. Please try again in 350ms."
    server.troubles["q"] = [f'body 429 {{"error": {{"message": "{limit}"}}}}']
    started_s = time.monotonic()
    assert ask(server, tmp_path, "q", backoff_s=0.001) == [""]
    assert time.monotonic() - started_s >= 0.35
    server.troubles["r"] = ['body 429 [{"error": {"code": 429, "message": "Please retry in 7h3m."}}]']
    assert ask(server, tmp_path, "r") == ["HTTP 429: Please retry in 7h3m. (Retry-After: 25380 s)"]


PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Pa"}]
KEPT = {
    "a content in parts": ({"content": [*PARTS, {"type": "text", "text": "ris"}]}, {}, "Paris"),
    "thoughts in parts": ({"content": [{"type": "reasoning", "text": "hm"}, {"text": "Paris"}]}, {}, "Paris"),
    "thoughts in a field": ({"content": "Paris", "reasoning_content": "hm", "reasoning": "hm"}, {}, "Paris"),
    "thoughts alone": ({"content": None, "reasoning_content": "It is Paris."}, {}, None),
    "odd usage": ({"content": "Paris"}, {"usage": {"prompt_tokens": None, "cost": "0.1"}}, "Paris"),
    "usage that is no object": ({"content": "Paris"}, {"usage": "3 tokens"}, "Paris"),
    "an empty error": ({"content": "Paris"}, {"error": None, "message": ""}, "Paris"),
}


@pytest.mark.parametrize(("message", "more", "said"), KEPT.values(), ids=KEPT)
def test_what_was_paid_is_kept_in_whatever_form_it_comes(
    server: ChatServer, tmp_path: Path, message: dict[str, Any], more: dict[str, Any], said: str | None
) -> None:
    body = {"choices": [{"message": message, "finish_reason": "stop"}]} | more
    server.troubles["q"] = [f"body 200 {json.dumps(body)}"]
    assert ask(server, tmp_path, "q") == [""]
    assert server.asked["q"] == 1
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["reply"]["choices"][0]["message"]["content"] == said


@contextmanager
def logging_proxy(server: ChatServer) -> Iterator[tuple[str, list[str]]]:
    """A proxy's address, and the requests that it passes on to the server, whatever host they name."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append(f"{self.path} {self.headers['Proxy-Authorization']}")
            server.deal_with(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_CONNECT(self) -> None:
            seen.append(f"CONNECT {self.path}")
            self.send_error(403)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Proxy) as address:
        yield address.removeprefix("http://"), seen


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_a_proxy_of_the_environment_is_used(server: ChatServer, tmp_path: Path, no_proxy: pytest.MonkeyPatch) -> None:
    with logging_proxy(server) as (proxy, seen):
        no_proxy.setenv("http_proxy", f"http://ann:secret@{proxy}")
        no_proxy.setenv("HTTPS_PROXY", proxy)
        assert ask(server, tmp_path, "q", url="http://annotator.test/v1/chat/completions") == [""]
        assert seen == ["http://annotator.test/v1/chat/completions Basic YW5uOnNlY3JldA=="]
        (reason,) = ask(server, tmp_path, "r", url="https://annotator.test/v1", retries=0)
        assert seen[1:] == ["CONNECT annotator.test:443"]
        assert "403" in reason
        assert ask(server, tmp_path, "here") == [""], "this machine itself needs none"
        no_proxy.setenv("NO_PROXY", "other.test,.annotator.test,annotator.test")
        (reason,) = ask(server, tmp_path, "s", url="http://annotator.test/v1", retries=0)
        assert "annotator.test" in reason
        assert len(seen) == 2


def test_a_proxys_password_is_in_no_reason(server: ChatServer, tmp_path: Path, no_proxy: pytest.MonkeyPatch) -> None:
    no_proxy.setenv("http_proxy", f"http://ann:secret@127.0.0.1:{free_ports(1)[0]}")
    (reason,) = ask(server, tmp_path, "q", url="http://annotator.test/v1", retries=0)
    assert "ClientProxyConnectionError" in reason
    assert "secret" not in reason


@pytest.mark.parametrize(
    ("url", "bypassed", "proxy"),
    [
        ("http://a.test/v1", "", "http://plain:1"),
        ("https://a.test/v1", "", "https://secure:2"),
        ("https://a.test/v1", "*", None),
        ("https://a.test:8443/v1", "a.test:8443", None),
        ("https://b.a.test/v1", "a.test", None),
        ("http://localhost:8000/v1", "", None),
        ("http://[::1]:8000/v1", "", None),
        ("http://10.0.0.7:8000/v1", "10.0.0.7", None),
    ],
)
def test_which_proxy(no_proxy: pytest.MonkeyPatch, url: str, bypassed: str, proxy: str | None) -> None:
    no_proxy.setenv("http_proxy", "plain:1")
    no_proxy.setenv("HTTPS_PROXY", "https://secure:2")
    no_proxy.setenv("no_proxy", bypassed)
    assert proxy_of(url) == proxy


def test_the_proxy_for_all_is_that_of_an_address_without_its_own(no_proxy: pytest.MonkeyPatch) -> None:
    no_proxy.setenv("ALL_PROXY", "socks5://ann:secret@any:3")
    no_proxy.setenv("https_proxy", "secure:2")
    assert proxy_of("https://a.test/v1") == "http://secure:2"
    with pytest.raises(
        ConfigError, match=r"names a socks5:// proxy for a\.test, and only .*; set HTTP_PROXY"
    ) as refused:
        proxy_of("http://a.test/v1")
    assert "secret" not in str(refused.value)
    no_proxy.setenv("ALL_PROXY", "any:3")
    assert proxy_of("http://a.test/v1") == "http://any:3"


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
    ("words", "seconds"),
    [
        ("Please try again in 20s.", 20.0),
        ("Please try again in 1m2.5s. Visit …", 62.5),
        ("Please try again in 6ms", 0.006),
        ("Rate limit: 3 per 1 minute. Please wait for 2 minutes and 5 seconds", 125.0),
        ("Please retry after 1 hour", 3600.0),
        ("Quota of 3 per 10 s is used up", None),
        ("Try again at 12:30", None),
        ("too many", None),
    ],
)
def test_a_time_in_a_servers_words(words: str, seconds: float | None) -> None:
    said = complaint(429, json.dumps({"error": {"message": words}}).encode())
    assert said is not None
    assert wait_asked_s({}, said, datetime(2025, 1, 1, tzinfo=UTC)) == pytest.approx(seconds)
    assert wait_asked_s({"retry-after-ms": "1500"}, said, datetime(2025, 1, 1, tzinfo=UTC)) == 1.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("1.5", 1.5),
        ("0", 0.0),
        ("17", 17.0),
        ("Wed, 01 Jan 2025 00:00:30 GMT", 30.0),
        ("Tue, 31 Dec 2024 00:00:00 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_holds_seconds_or_a_date(header, seconds):
    assert retry_after_s(header, datetime(2025, 1, 1, tzinfo=UTC)) == seconds
