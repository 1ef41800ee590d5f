"""HTTP with a model server: one JSON request at a time, tried again while that may help, and errors told apart.

What comes of a request is one of three things. It is answered (JSON). It is `Refused`: the server lives and will not
answer this request (a 4xx, or something that stays wrong however often it is tried), which is that request's failure
alone. Or nothing can be asked any more, and an error is raised: `RunError` when the server is not there or has died,
`InputError` when it does not take the key.

Tried again are 408, 425, 429, every 5xx, broken connections, time-outs and answers that are not JSON, after
`base * 2**tries` seconds with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015),
or after what Retry-After says (RFC 9110, 10.2.3). The jitter comes from a generator that the request itself seeds, so
threads do not change it.
"""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from ...errors import InputError, RunError
from ...seeds import derive_seed

AGAIN = frozenset({408, 425, 429})
CONNECT_SECONDS = 10.0
SHOWN = 500  # characters of a server's message

# The request went nowhere, or the server went away over it.
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


@dataclass(frozen=True)
class Retry:
    """How often a request is tried at most, and how long is waited in between, in seconds.

    A server that asks for a longer wait than `longest` is not waited for.
    """

    tries: int = 5
    base: float = 0.5
    longest: float = 60.0


@dataclass(frozen=True)
class Refused:
    """Why the server, which lives, does not answer one request. `status` is 0 where no HTTP answer came."""

    status: int
    message: str


@dataclass(frozen=True)
class Key:
    """An API key and the name of the environment variable that it was read from. It is shown nowhere."""

    variable: str
    value: str

    def __repr__(self) -> str:
        return f"Key(${self.variable})"


@dataclass(frozen=True)
class _Again:
    """Why a try failed that may be repeated. `wait`: what Retry-After asked for; `broken`: the connection broke."""

    refused: Refused
    wait: float | None = None
    broken: bool = False


class Client:
    """Speaks JSON with the server at `url`. It may be used by many threads at once.

    timeout: seconds until an answer must be there; connections: how many are kept open; sleep and now are told time
    by (tests pass their own); transport: httpx's, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        key: Key | None = None,
        timeout: float = 600.0,
        retry: Retry | None = None,
        seed: int = 0,
        connections: int = 16,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._base = base_url(url)
        self._key = key
        self._timeout = timeout
        self._retry = retry or Retry()
        self._seed = seed
        self._sleep, self._now = sleep, now
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key.value}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
        )

    @property
    def url(self) -> str:
        """The server's address for people: without `/v1`, a name or a password."""
        return _shown(self._base)

    def get(self, path: str) -> Any | None:
        """The JSON at `path`; None where the server has nothing there, or no JSON. It is asked once.

        Raises `RunError` when the server is not there, or not ready (HTTP 5xx), `InputError` when it takes no key.
        """
        try:
            response = self._http.get(self._base + path)
        except _BROKEN as error:
            raise self._gone(error) from error
        except httpx.TimeoutException as error:
            raise self._gone(f"no answer to GET {path} within {self._timeout:g} s") from error
        except httpx.HTTPError as error:
            raise self._gone(error) from error
        self._check_key(response)
        if response.status_code >= 500:
            raise RunError(
                f"the server at {self.url} is not ready: GET {path} says HTTP {response.status_code}: "
                f"{_message(response)}",
                hint="Wait until it has loaded its model, or look into its log.",
            )
        if not response.is_success:
            return None
        try:
            return response.json()
        except ValueError:
            return None

    def post(self, path: str, body: dict[str, Any], *, again: bool = True) -> dict[str, Any] | Refused:
        """The JSON object that answers `body`, or why there is none. With `again=False` it is tried once.

        Raises `RunError` when the server is not there any more, `InputError` when it does not take the key.
        """
        content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        jitter = random.Random(derive_seed(self._seed, path, content.decode()))
        tries = self._retry.tries if again else 1
        tried = 0
        while True:
            outcome = self._try(path, content)
            if not isinstance(outcome, _Again):
                return outcome
            tried += 1
            wait = outcome.wait
            if wait is None:
                wait = jitter.uniform(0, min(self._retry.longest, self._retry.base * 2**tried))
            if tried >= tries or wait > self._retry.longest:
                return self._give_up(outcome, tried, wait if wait > self._retry.longest else None)
            self._sleep(wait)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _try(self, path: str, content: bytes) -> dict[str, Any] | Refused | _Again:
        try:
            response = self._http.post(self._base + path, content=content, headers={"Content-Type": "application/json"})
        except _BROKEN as error:
            return _Again(Refused(0, _told(error)), broken=True)
        except httpx.TimeoutException:
            return _Again(Refused(0, f"no answer within {self._timeout:g} s"))
        except httpx.HTTPError as error:
            return _Again(Refused(0, _told(error)), broken=True)
        self._check_key(response)
        if response.status_code in AGAIN or response.status_code >= 500:
            return _Again(self._refused(response), wait=self._asked_wait(response))
        if not response.is_success:
            return self._refused(response)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            return _Again(Refused(response.status_code, f"not a JSON object: {_cut(response.text)!r}"))
        return answer

    def _give_up(self, outcome: _Again, tried: int, asked: float | None) -> Refused:
        """The request's refusal after its last try; raises when the server itself is gone."""
        if outcome.broken:
            raise self._gone(f"{outcome.refused.message} ({_times(tried)} tried)")
        if outcome.refused.status not in AGAIN:
            self._check_alive(outcome.refused)
        more = f"; it asks for a wait of {asked:g} s" if asked is not None else ""
        return Refused(outcome.refused.status, f"{outcome.refused.message} ({_times(tried)} tried{more})")

    def _check_alive(self, refused: Refused) -> None:
        """Raise `RunError` unless the server still answers: vLLM and llama.cpp say 503 when their engine is dead."""
        for path in ("/health", "/v1/models"):
            try:
                response = self._http.get(self._base + path, timeout=min(self._timeout, CONNECT_SECONDS))
            except httpx.HTTPError as error:
                raise self._gone(error) from error
            if response.status_code >= 500:
                raise self._gone(f"{refused.message}; GET {path} says HTTP {response.status_code}")
            if response.is_success:
                return

    def _check_key(self, response: httpx.Response) -> None:
        if response.status_code not in (401, 403):
            return
        said = f"HTTP {response.status_code}: {_message(response)}"
        if self._key is None:
            raise InputError(
                f"the server at {self.url} asks for an API key ({said})",
                hint="Put the key into an environment variable, and name the variable with `api_key_env`.",
            )
        raise InputError(
            f"the server at {self.url} does not take the API key in ${self._key.variable} ({said})",
            hint=f"Set ${self._key.variable} to a key of this server, or name another variable with `api_key_env`.",
        )

    def _asked_wait(self, response: httpx.Response) -> float | None:
        """What Retry-After says, in seconds from now; None where it says nothing that can be read."""
        value = response.headers.get("Retry-After", "").strip()
        if value.isdigit():
            return float(value)
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - self._now()).total_seconds())

    @staticmethod
    def _refused(response: httpx.Response) -> Refused:
        return Refused(response.status_code, f"HTTP {response.status_code}: {_message(response)}")

    def _gone(self, why: object) -> RunError:
        text = _told(why) if isinstance(why, Exception) else str(why)
        return RunError(
            f"no model server answers at {self.url}: {text}",
            hint="Start it (`vllm serve MODEL`, `llama-server -m FILE`, `ollama serve`), or check the address.",
        )


def base_url(url: str) -> str:
    """`url` without a trailing `/` or `/v1`. Raises `InputError` for what is no HTTP address."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise InputError(f"{url!r} is no address: {error}", expected="http://HOST:PORT") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(
            f"{_shown(str(parsed))!r} is no address of a server",
            expected="http://HOST:PORT or https://HOST",
            hint=f"Write http://{url.strip()}" if "://" not in url else None,
        )
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/").removesuffix("/v1").rstrip("/")


def _shown(url: str) -> str:
    try:
        return str(httpx.URL(url).copy_with(userinfo=b""))
    except httpx.InvalidURL:
        return url


def _told(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN]}..."


def _message(response: httpx.Response) -> str:
    """The server's own words: OpenAI's `error.message`, FastAPI's `detail`, Ollama's `error`, else the body."""
    try:
        body = response.json()
    except ValueError:
        return _cut(response.text) or response.reason_phrase
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message", error.get("detail", error))
    return _cut(error if isinstance(error, str) else json.dumps(error))
