"""Requests → paid replies from any OpenAI-compatible endpoint: many at once, retried with jitter, within a hard budget.

Before a request is sent its greatest cost is reserved; a reply frees what it did not use, a lost answer and a reply that
does not tell its tokens are counted at that cost. What can pass later (429, 5xx, timeouts, cut connections, bodies that
are not replies) is tried again after `Retry-After`, else after a jittered exponential wait. A refusal is a reply: it is
paid for and never asked again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai

from ip2p.dataset.llm.journal import Journal, Paid
from ip2p.dataset.llm.reply import JunkError, price, read_answer, refusal, refuses
from ip2p.errors import UserError
from ip2p.params import LlmParams
from ip2p.store import fingerprint

_CHARS_PER_TOKEN = 3.0
"""English prose has about 4 characters a token; 3 errs on the dear side."""
_LONGEST_WAIT = 60.0
_OPENAI, _OPENAI_KEY, _NO_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY", "none"
_LONGEST_WORDS = 200
"""Characters kept of what an endpoint says."""
_NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
"""What the transport below `openai` (httpx or its successor) raises before anything was sent."""
_MAYBE_CHARGED = {408, 504, 524}
"""A gateway gave up waiting: what lies behind it may have answered, and charged."""
_SPENT = "insufficient_quota"
"""The code of a 429 that no waiting mends: the account has no credit left."""


class EndpointError(UserError):
    """The endpoint cannot be used as the parameters say."""


class BudgetError(UserError):
    """The next request could cost more than the budget leaves."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question: what is sent beside the parameters' settings. `id` is a hash of both, so equal requests are paid once."""

    id: str
    body: dict[str, Any]
    tokens_in: int


@dataclass
class Client:
    """An endpoint, the journal of what it was paid for, and counts of what went wrong on the way."""

    section: LlmParams
    journal: Journal
    api: openai.AsyncOpenAI
    troubles: Counter[str] = field(default_factory=Counter)
    words: dict[str, str] = field(default_factory=dict)
    """What the endpoint said of a trouble when it came first."""
    reserved: float = 0.0
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    def greatest_cost(self, request: Request) -> float:
        """Upper estimate of a request's price, US dollars."""
        return price(self.section, request.tokens_in, self.section.max_tokens)

    async def ask_all(self, requests: list[Request], progress: Callable[[int], None], *, most_failed: float) -> list[Request]:
        """Ask what the journal does not hold; returns the requests for which the endpoint never gave a reply.

        Raises `BudgetError` once the budget is reached, after those under way have ended, and `EndpointError` once more
        than `most_failed` of the requests have failed.
        """
        waiting = iter([r for r in requests if r.id not in self.journal.replies])
        failed: list[Request] = []
        errors: list[Exception] = []
        workers = [self._worker(waiting, failed, most_failed, errors, progress) for _ in range(self.section.concurrency)]
        await asyncio.gather(*workers)
        if errors:
            raise errors[0]
        self.check_failed(failed, requests, most_failed)
        return failed

    def check_failed(self, failed: list[Request], requests: list[Request], most_failed: float) -> None:
        """Raises `EndpointError` if too many requests have no reply."""
        if len(failed) > most_failed:
            raise EndpointError(
                f"{self.section.where}: no reply to {len(failed)} of {len(requests)} requests ({self.told_troubles()}); "
                "what was paid is kept, run again to go on"
            )

    def trouble(self, what: str, said: object = "") -> None:
        """Count what went wrong, and keep what the endpoint said of it first."""
        self.troubles[what] += 1
        if said:
            self.words.setdefault(what, " ".join(str(said).split())[:_LONGEST_WORDS])

    def told_troubles(self) -> str:
        """What went wrong on the way, counted, with the endpoint's own words."""
        told = (f"{n} × {what}" + (f": {self.words[what]}" if what in self.words else "") for what, n in sorted(self.troubles.items()))
        return ", ".join(told) or "none"

    async def _worker(
        self,
        waiting: Iterator[Request],
        failed: list[Request],
        most_failed: float,
        errors: list[Exception],
        progress: Callable[[int], None],
    ) -> None:
        for request in waiting:
            if errors or len(failed) > most_failed:
                return
            try:
                if not await self._ask(request):
                    failed.append(request)
            except UserError as error:
                errors.append(error)
                return
            progress(len(self.journal.replies))

    async def _ask(self, request: Request) -> bool:
        cost = self.greatest_cost(request)
        for attempt in range(self.section.retries + 1):
            await self._reserve(cost)
            try:
                self.journal.ask(request.id, cost)
                self.journal.pay(await self._reply(request, cost))
                return True
            except (openai.APIError, JunkError) as error:
                wait = self._trouble(error, request, cost, attempt)
            except asyncio.CancelledError:
                self.journal.lose(request.id, cost)
                raise
            finally:
                self.reserved -= cost
                self.freed.set()
            if request.id in self.journal.replies:
                return True  # refused by the endpoint's filter: a reply, never asked again
            if attempt < self.section.retries:
                await asyncio.sleep(wait)
        return False

    async def _reserve(self, cost: float) -> None:
        """Set `cost` aside, once what others hold in reserve leaves room for it."""
        while self.journal.spent + self.journal.committed + self.reserved + cost > self.section.budget:
            if self.reserved <= cost * 1e-6:  # nothing is under way that could free some
                raise BudgetError(f"{self.section.where}.budget: ${self.section.budget:g} is reached ({self.journal.told_spending()})")
            self.freed.clear()
            await self.freed.wait()
        self.reserved += cost

    async def _reply(self, request: Request, most: float) -> Paid:
        completions = self.api.completions if "prompt" in request.body else self.api.chat.completions
        try:
            raw = await completions.with_raw_response.create(
                **payload(request, self.section), extra_headers={"Idempotency-Key": request.id}
            )
            answer = json.loads(raw.content)
        except (ValueError, RecursionError) as error:
            raise JunkError(str(error)) from error
        return read_answer(answer, request.id, self.section, most)

    def _trouble(self, error: openai.APIError | JunkError, request: Request, cost: float, attempt: int) -> float:
        """Count an error and say how long to wait, in seconds. Raises `EndpointError` for what no retry mends."""
        wait = backoff(self.section, attempt)
        if not isinstance(error, openai.APIStatusError):
            self.trouble(_name(error))
            if type(error.__cause__).__name__ in _NEVER_SENT:
                self.journal.free(request.id)
            else:
                self.journal.lose(request.id, cost)
            return wait
        if error.status_code in _MAYBE_CHARGED:
            self.journal.lose(request.id, cost)
        else:
            self.journal.free(request.id)
        self.trouble(f"HTTP {error.status_code}", _said(error))
        if error.status_code == 400 and refuses(error.body):
            self.journal.pay(refusal(request.id, self.section))
            return 0.0
        passing = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
        if not passing or error.code == _SPENT:
            raise EndpointError(_told(error, self.section, request)) from error
        return max(wait, retry_after(error))


def key_of(section: LlmParams) -> str:
    """The key in the environment variable that `key_env` names, and from nowhere else; OpenAI's own goes to OpenAI alone.

    Raises `EndpointError` if the variable is not set, or holds what cannot be sent.
    """
    name = section.key_env or (None if section.base_url else _OPENAI_KEY)
    if name is None:
        return _NO_KEY
    key = os.environ.get(name, "").strip()  # a secret from a file often ends with a line end
    if not key:
        raise EndpointError(f"{section.where}.key_env: {name} is not set in the environment; set it, or give {section.where}.base_url")
    if not key.isascii() or not key.isprintable():
        raise EndpointError(f"{section.where}.key_env: {name} holds what no key has (a line end, a letter beyond ASCII); set it anew")
    return key


def address_of(section: LlmParams) -> str:
    """Where the endpoint is; `OPENAI_BASE_URL` in the environment changes nothing."""
    return section.base_url or _OPENAI


def open_api(section: LlmParams) -> openai.AsyncOpenAI:
    """The endpoint's client; it does not try again by itself."""
    return openai.AsyncOpenAI(api_key=key_of(section), base_url=address_of(section), timeout=section.timeout, max_retries=0)


def make_request(body: dict[str, Any], section: LlmParams, *, tokens_in: int | None = None, repeat: int = 0) -> Request:
    """A request; its tokens are estimated from the characters sent, on the dear side, if they are not given.

    Another `repeat` is another request for the same thing, paid again.
    """
    id = fingerprint("llm", settings(section), body, *([repeat] if repeat else []))
    if tokens_in is None:
        tokens_in = round(len(json.dumps(body, ensure_ascii=False)) / _CHARS_PER_TOKEN)
    return Request(id, body, tokens_in)


def payload(request: Request, section: LlmParams) -> dict[str, Any]:
    """The whole body of a request, live or in a batch."""
    return settings(section) | request.body


def backoff(section: LlmParams, attempt: int) -> float:
    """Seconds to wait after a failed attempt: doubling, jittered, at most a minute."""
    return random.uniform(0.5, 1.0) * min(_LONGEST_WAIT, float(section.backoff * 2.0**attempt))


def settings(section: LlmParams) -> dict[str, Any]:
    """The part of every request that the parameters decide."""
    optional = {"temperature": section.temperature, "top_p": section.top_p, "frequency_penalty": section.frequency_penalty}
    return {"model": section.model, section.max_tokens_field: section.max_tokens} | {k: v for k, v in optional.items() if v is not None}


def _name(error: openai.APIError | JunkError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "timed out"
    return "connection cut" if isinstance(error, openai.APIConnectionError) else "body is not a reply"


def retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the endpoint asks us to wait, at most a minute."""
    try:
        return min(_LONGEST_WAIT, float(error.response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0  # a date: the jittered wait does


def _told(error: openai.APIStatusError, section: LlmParams, request: Request) -> str:
    key = f"check the key in the environment variable that {section.where}.key_env names"
    remedy = {
        401: key,
        403: key,
        404: f"check {section.where}.model and base_url",
        429: "see to the account, then run again: what was paid is kept",
    }
    said = " ".join(_said(error).split())[:_LONGEST_WORDS]
    mend = remedy.get(error.status_code, f"asked was {_asked(request)}; mend the parameters it names, or leave that caption out")
    return f"{section.where}: {address_of(section)} answered {error.status_code} ({said}); {mend}"


def _said(error: openai.APIStatusError) -> str:
    """The endpoint's own words."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return str(said or error.message)


def _asked(request: Request) -> str:
    """The beginning of what a request asks, in quotes."""
    last = request.body.get("prompt") or request.body["messages"][-1]["content"]
    return repr((last if isinstance(last, str) else last[0]["text"])[:80])
