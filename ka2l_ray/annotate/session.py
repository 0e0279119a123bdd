"""The client session that Ray Data's HTTP processor is given: it asks carefully, and keeps every reply as it arrives.

In: posts of the processor. Out: always a response of status 200 whose JSON says whether the reply was kept, or why not.
Refuses to know: Ray, tables, what a reply means beyond being a chat completion.

Why this is a session and not the processor's own settings (`ray.llm` 2.60, `stages/http_request_stage.py`): there, one row that
fails for good ends the whole stage with every row of its batch; 500 and malformed JSON are not retried; back-off waits row after
row in the loop that receives; `Retry-After` is not read; `qps` is a whole number per batch that does not count retries;
a batch's requests start only when awaited, one after the other; and its `headers` are exported as text with the pipeline's
description, so the key travels in this object as a `SecretStr` instead. `session_factory` is the hook it offers for all of these.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import aiohttp
from pydantic import SecretStr

from ka2l_ray.annotate.claims import Claimer
from ka2l_ray.annotate.endpoint import Completion, NoCompletion, content_hash, parse
from ka2l_ray.config import EndpointSection
from ka2l_ray.dataflow.storage import Folder

RETRIED = (408, 409, 425, 429)
"""Statuses that are tried again, beside every 5xx."""
LONGEST_WAIT_S = 600.0
"""Back-off grows to this; a question whose server asks for a longer wait is given up, until the run is started again."""
EXCERPT_CHARACTERS = 200
TAKEN_WAIT_S = 0.2
"""Between two looks at a question that another curve is asking."""


class TryAgainError(Exception):
    """A request that may succeed later; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RejectedError(Exception):
    """A request that would fail again."""


class KeptError(Exception):
    """The reply is there by now: another curve asked the same."""


class TakenError(Exception):
    """Another curve is asking the same at this moment."""


class Gate:
    """At most `concurrency` requests at once, at most `requests_per_s` started each second, none while the endpoint wants a pause."""

    def __init__(self, concurrency: int, requests_per_s: float | None) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._interval_s = 1 / requests_per_s if requests_per_s else 0.0
        self._free_s = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn and hold it while inside."""
        async with self._slots:
            while (wait_s := self._free_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            self._free_s = time.monotonic() + self._interval_s
            yield

    def pause(self, wait_s: float) -> None:
        """Let nobody in for a while."""
        self._free_s = max(self._free_s, time.monotonic() + wait_s)


class Asker:
    """Makes sessions that share one gate: calling it is the processor's `session_factory`. One per actor process.

    `asked_by` names the table whose round asks; it is kept with each reply, so that a reply is paid for once. `claims` keep curves that
    run side by side from asking the same at the same time.
    """

    def __init__(
        self,
        endpoint: EndpointSection,
        key: SecretStr | None,
        replies: Folder,
        asked_by: str,
        claims: Claimer | None = None,
    ) -> None:
        self.endpoint, self.replies, self.asked_by, self.claims = endpoint, replies, asked_by, claims
        self._key = key
        self._gate: Gate | None = None

    def __call__(self) -> "Session":
        self._gate = self._gate or Gate(self.endpoint.concurrency, self.endpoint.requests_per_s)
        return Session(self, self._gate)

    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}

    def redact(self, body: bytes) -> bytes:
        """A server may quote the key back, in an error as in an answer."""
        return body.replace(self._key.get_secret_value().encode(), b"***") if self._key else body


@dataclass(frozen=True)
class Outcome:
    """A response as the processor reads it: `failed` is empty once the reply is kept, else the reason."""

    failed: str
    status: int = 200

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    async def json(self) -> dict[str, str]:
        return {"failed": self.failed}


class Session:
    """Behaves as far as the processor needs it like an `aiohttp.ClientSession`, around a real one."""

    def __init__(self, asker: Asker, gate: Gate) -> None:
        self._asker, self._gate = asker, gate
        self._tasks: set[asyncio.Task[Outcome]] = set()

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=self._asker.endpoint.timeout_s)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))  # the gate limits
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    def post(self, url: str, headers: dict[str, str], data: str) -> "asyncio.Task[Outcome]":
        """Start at once: the processor awaits its requests one after the other."""
        task = asyncio.create_task(self._answer(url, headers, data))
        self._tasks.add(task)
        return task

    async def _answer(self, url: str, headers: dict[str, str], data: str) -> Outcome:
        """Ask until there is a valid reply or no sense in asking again; what waits for another curve's reply is no try."""
        endpoint, asked = self._asker.endpoint, json.loads(data)
        name = content_hash(asked)
        file = self._asker.replies / f"{name}.json"
        attempt, reason = 0, ""
        while attempt <= endpoint.retries:
            try:
                completion = await self._ask(url, headers, data, name, file)
            except KeptError:
                return Outcome("")
            except TakenError:
                await asyncio.sleep(TAKEN_WAIT_S)
                continue
            except TryAgainError as error:
                reason = str(error)
                if attempt < endpoint.retries:
                    backoff_s = min(endpoint.backoff_s * 2**attempt, LONGEST_WAIT_S)
                    await asyncio.sleep(backoff_s if error.wait_s is None else error.wait_s)
                attempt += 1
            except RejectedError as error:
                return await self._given_up(name, str(error))
            else:
                kept = {"asked_by": self._asker.asked_by, "request": asked, "reply": completion.model_dump()}
                await asyncio.to_thread(file.write_json, kept)
                return Outcome("")
        return await self._given_up(name, f"{reason} ({endpoint.retries + 1} tries)")

    async def _given_up(self, name: str, reason: str) -> Outcome:
        if self._asker.claims:
            await self._asker.claims.leave(name)
        return Outcome(reason)

    async def _ask(self, url: str, headers: dict[str, str], data: str, name: str, file: Folder) -> Completion:
        """One request, unless the reply is kept or being asked for by another. A redirect is not followed: it would carry the key to
        another address."""
        async with self._gate.turn():
            if await asyncio.to_thread(file.exists):
                raise KeptError
            if self._asker.claims and not await self._asker.claims.take(name):
                raise TakenError
            try:
                sent = headers | self._asker.authorization()
                async with self._http.post(url, data=data, headers=sent, allow_redirects=False) as response:
                    body = self._asker.redact(await response.read())
            except TimeoutError:
                raise TryAgainError(
                    f"no answer within annotate.endpoint.timeout_s = {self._asker.endpoint.timeout_s:g} s"
                ) from None
            except aiohttp.ClientError as error:
                raise TryAgainError(f"{type(error).__name__}: {error}") from None
            return self._read(response, body)

    def _read(self, response: aiohttp.ClientResponse, body: bytes) -> Completion:
        if 200 <= response.status < 300:
            try:
                return parse(body)
            except NoCompletion as error:
                raise TryAgainError(str(error)) from None
        reason = f"HTTP {response.status}: {' '.join(body.decode(errors='replace').split())[:EXCERPT_CHARACTERS]}"
        if response.status not in RETRIED and response.status < 500:
            raise RejectedError(reason)
        wait_s = retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC))
        if wait_s is None:
            raise TryAgainError(reason)
        if wait_s > LONGEST_WAIT_S:
            raise RejectedError(f"{reason} (Retry-After: {wait_s:.0f} s)")
        self._gate.pause(wait_s)
        raise TryAgainError(reason, wait_s)


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a `Retry-After` header, which holds seconds or a date; None where it holds neither."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max((parsedate_to_datetime(header) - now).total_seconds(), 0.0)
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return None


def reply(kept: dict[str, Any]) -> Completion:
    """The completion in a kept reply."""
    return Completion.model_validate(kept["reply"])
