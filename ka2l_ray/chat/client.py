"""Asks a chat endpoint carefully, and keeps every reply before it counts.

In: requests by content hash. Out: one file per valid reply in the folder of replies; of the other requests, why not.
Refuses to know: Ray, tables, what a reply means beyond being a chat completion.

`aiohttp` sends the requests and `tenacity` decides when to send one again. OpenAI's own client is not used, because it
follows redirects with the key, does not retry a reply that is not valid JSON, and waits by a schedule of its own. Ray
Data's HTTP processor is not used, because there one row that fails for good ends the stage with every row of its batch.
"""

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

from ka2l_ray.chat.claims import Claimer
from ka2l_ray.chat.endpoint import ChatRequest, Completion, NoCompletionError, parse, without
from ka2l_ray.chat.server_errors import Complaint, complaint, refused_part, wait_asked_s
from ka2l_ray.config import ConfigError, EndpointSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.storage import Folder

RETRIED = (408, 409, 425, 429)
"""Statuses that are tried again, besides every 5xx."""
LONGEST_WAIT_S = 600.0
"""Back-off grows up to this. A question whose server asks for a longer wait is given up until the run is started
again."""
CLAIM_POLL_S = 0.2
"""Between two checks of a question that another curve is asking."""
WAKE_S = 1.0
"""The event loop wakes at least this often, because it sees the interrupt of a task that Ray cancels only then."""


class TryAgainError(Exception):
    """A request that may succeed later; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RejectedError(Exception):
    """A request that would fail again."""


class Gate:
    """At most `concurrency` requests at once and `requests_per_s` started per second; none while the endpoint wants a
    pause."""

    def __init__(self, concurrency: int, requests_per_s: float | None) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._interval_s = 1 / requests_per_s if requests_per_s else 0.0
        self._free_s = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it while inside."""
        async with self._slots:
            while (wait_s := self._free_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            self._free_s = time.monotonic() + self._interval_s
            yield

    def pause(self, wait_s: float) -> None:
        """Let no request start for `wait_s` seconds."""
        self._free_s = max(self._free_s, time.monotonic() + wait_s)


class ChatClient:
    """Asks one endpoint within its limits.

    `asked_by` names the table whose round asks; it is kept with each reply, so that a reply is paid for once. `claims`
    keep curves that run at the same time from asking the same question.
    """

    def __init__(
        self,
        endpoint: EndpointSection,
        key: SecretStr | None,
        replies: Folder,
        asked_by: str,
        claims: Claimer | None = None,
    ) -> None:
        self._endpoint, self._key, self._replies = endpoint, key, replies
        self._asked_by, self._claims = asked_by, claims
        self._gate = Gate(endpoint.concurrency, endpoint.requests_per_s)
        self._proxy = proxy_of(endpoint.url)
        self._refused: set[str] = set()
        self._backoff = wait_exponential(multiplier=endpoint.backoff_s, max=LONGEST_WAIT_S)

    async def ask(self, requests: Mapping[str, ChatRequest]) -> dict[str, str]:
        """Ask until each request, by content hash, has a valid reply or it makes no sense to ask again. Returns the
        reasons of those without one."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout_s),
            connector=aiohttp.TCPConnector(limit=0),  # the gate limits
        ) as http:
            waking = asyncio.create_task(_wake_often())
            try:
                reasons = await asyncio.gather(*(self._failure(http, *request) for request in requests.items()))
            finally:
                waking.cancel()
        return {name: reason for name, reason in zip(requests, reasons, strict=True) if reason}

    async def _failure(self, http: aiohttp.ClientSession, name: str, request: ChatRequest) -> str:
        """Why there is no reply to a request; empty once it is kept."""
        tries = self._endpoint.retries + 1
        retrying = AsyncRetrying(
            stop=stop_after_attempt(tries),
            wait=self._wait_s,
            retry=retry_if_exception_type((TryAgainError, NoCompletionError)),
            reraise=True,
        )
        try:
            await retrying(self._keep_reply, http, name, request)
        except (TryAgainError, NoCompletionError, RejectedError) as error:
            if self._claims:
                await self._claims.leave(name)
            return str(error) if isinstance(error, RejectedError) else f"{error} ({tries} tries)"
        return ""

    def _wait_s(self, state: RetryCallState) -> float:
        """What the server asked for, else the back-off, which doubles with each try."""
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.wait_s if isinstance(error, TryAgainError) else None
        return self._backoff(state) if asked_s is None else asked_s

    async def _keep_reply(self, http: aiohttp.ClientSession, name: str, request: ChatRequest) -> None:
        """Ask once and keep the reply, unless it is kept already; waiting for another curve's reply is not a try."""
        file = self._replies / f"{name}.json"
        while True:
            async with self._gate.turn():
                if await asyncio.to_thread(file.exists):
                    return
                if self._claims is None or await self._claims.take(name):
                    completion = await self._post(http, request)
                    break
            await asyncio.sleep(CLAIM_POLL_S)
        await asyncio.to_thread(
            file.write_json, {"asked_by": self._asked_by, "request": request, "reply": completion.model_dump()}
        )

    async def _post(self, http: aiohttp.ClientSession, request: ChatRequest) -> Completion:
        """One request, sent again at once without each part that the server does not take; later requests leave those
        out from the beginning."""
        while True:
            sent = without(request, self._refused)
            response, body = await self._send(http, sent)
            complained = complaint(response.status, body)
            if complained is None:
                return parse(body)
            part = refused_part(complained, sent)
            if part is None:
                raise self._failed(response, complained)
            if part not in self._refused:
                self._refused.add(part)
                log.warning("the endpoint refuses `%s`, so it is asked in another form: %s", part, complained)

    async def _send(self, http: aiohttp.ClientSession, sent: ChatRequest) -> tuple[aiohttp.ClientResponse, bytes]:
        """The response to a request. A redirect is not followed: it would carry the key to another address."""
        endpoint, key = self._endpoint, self._key.get_secret_value() if self._key else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            async with http.post(
                endpoint.url, json=sent, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                body = await response.read()
        except TimeoutError:
            raise TryAgainError(f"no answer within annotate.endpoint.timeout_s = {endpoint.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise TryAgainError(f"{type(error).__name__}: {error}") from None
        if key:  # a server may quote the key, in an error as in an answer
            body = body.replace(key.encode(), b"***")
        return response, body

    def _failed(self, response: aiohttp.ClientResponse, complained: Complaint) -> TryAgainError | RejectedError:
        """Whether to ask again after an error, and when."""
        reason = str(complained)
        if complained.status not in RETRIED and complained.status < 500:
            return RejectedError(reason)
        wait_s = wait_asked_s(response.headers, complained, datetime.now(UTC))
        if wait_s is not None and wait_s > LONGEST_WAIT_S:
            return RejectedError(f"{reason} (Retry-After: {wait_s:.0f} s)")
        self._gate.pause(wait_s or 0.0)
        return TryAgainError(reason, wait_s)


async def _wake_often() -> None:
    while True:
        await asyncio.sleep(WAKE_S)


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address (`HTTP_PROXY`, `HTTPS_PROXY`, else `ALL_PROXY`; `NO_PROXY`;
    also in lower case); none for this machine itself. aiohttp's own way would also read `~/.netrc`, and fail where that
    has a password for the host besides the key. Raises `ConfigError` for a proxy that does not speak HTTP."""
    address = urlsplit(url)
    named = getproxies().get(address.scheme) or getproxies().get("all")
    if not named or _is_this_machine(address.hostname or "") or proxy_bypass(address.netloc):
        return None
    proxy = named if "://" in named else f"http://{named}"
    if (kind := urlsplit(proxy).scheme) not in ("http", "https"):
        raise ConfigError(
            f"the environment names a {kind}:// proxy for {address.hostname}, and only http:// and https:// proxies "
            f"can be used; set {address.scheme.upper()}_PROXY to one, or name the host in NO_PROXY"
        )
    return proxy


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
