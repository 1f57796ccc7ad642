"""Requests → paid replies by the Batch API, at half the price within a day; a killed run finds its batches again.

A batch and its requests are in the journal before it is sent, and it carries a mark of them as metadata: a crash between
sending it and learning its id does not send it twice. Batches under way that hold a wanted request are waited for first,
whatever has become of the parameters since (cancelled, where requests go one by one now); only then is anything sent, within
what the budget leaves beside what batches under way may cost. Several batches are under way at once; where the endpoint says that too much
waits, one, and then smaller ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import openai

from ip2p.dataset.llm.client import BudgetError, Client, EndpointError, Request, address_of, payload
from ip2p.dataset.llm.journal import Sent
from ip2p.dataset.llm.reply import JunkError, read_answer, refusal, refuses
from ip2p.store import fingerprint

MOST_REQUESTS = 50_000
"""Requests a batch (OpenAI's limit)."""
FEWEST = 32
"""Requests a batch below which none is tried where the endpoint says that too much waits."""
MOST_BYTES = 190_000_000
"""Bytes a batch's file, a little below OpenAI's limit of 200 MB: requests that show pictures are large."""
_MARK = "ip2p"
_ENDED = {"completed", "expired", "cancelled", "failed"}
_CROWDED = "token_limit_exceeded"
"""The code of a batch that failed because too many tokens wait at the endpoint."""
T = TypeVar("T")


class FailedBatchError(EndpointError):
    """The endpoint took none of a batch's requests: it is as if it had not been sent."""


class CrowdedError(FailedBatchError):
    """More waits at the endpoint than it allows; `requests` is how many the batch had that was too much."""

    def __init__(self, told: str, requests: int) -> None:
        super().__init__(told)
        self.requests = requests


async def ask(client: Client, requests: list[Request], progress: Callable[[int], None]) -> None:
    """Ask what the journal does not hold, as the parameters say: by batch, or one by one. Raises as `ask_by_batch` and `Client.ask_all`."""
    requests = list({r.id: r for r in requests}.values())  # equal ones are paid once
    await _settle_ended(client, requests)
    most_failed = max(1.0, client.section.max_failed * len(requests))
    if client.section.batch:
        client.check_failed(await ask_by_batch(client, requests), requests, most_failed)
        return
    await _collect_wanted(client, requests, cancel=True)
    await client.ask_all(requests, progress, most_failed=most_failed)


async def _settle_ended(client: Client, requests: list[Request]) -> None:
    """Read batches that nobody wants now if they have ended, so that they are counted at what they cost and not at what they might."""
    wanted = _under_way(client, requests)
    for batch in [b for b in client.journal.batches.values() if b not in wanted and _is_here(client, b)]:
        with suppress(EndpointError):  # else they count as they did
            await _collect(client, batch, wait=False)


def _under_way(client: Client, requests: list[Request]) -> list[Sent]:
    """Batches not yet collected that hold one of the requests. Raises `EndpointError` if one is at another address."""
    wanted = {r.id for r in requests}
    found = [b for b in client.journal.batches.values() if wanted.intersection(b.requests)]
    if away := [b for b in found if not _is_here(client, b)]:
        held = len(wanted.intersection(away[0].requests))
        raise EndpointError(
            f"{client.section.where}.base_url: {held} of these requests are in a batch at {away[0].endpoint}; "
            "run with that address until it is collected, else they would be paid twice"
        )
    return found


def _is_here(client: Client, batch: Sent) -> bool:
    return batch.endpoint in ("", address_of(client.section))


async def _collect_wanted(client: Client, requests: list[Request], *, cancel: bool = False) -> None:
    """Collect the batches under way that hold one of the requests; one that failed is as if it had not been sent."""
    for batch in _under_way(client, requests):
        with suppress(FailedBatchError):
            await _collect(client, batch, cancel=cancel)


async def ask_by_batch(client: Client, requests: list[Request]) -> list[Request]:
    """Ask what the journal does not hold; returns the requests that got no reply. Raises `BudgetError` if not all are affordable."""
    at_once, most = client.section.batches, MOST_REQUESTS
    while True:
        try:
            await _in_batches(client, requests, at_once, most)
            break
        except CrowdedError as error:  # those beside it are waited for, then it is sent again
            client.trouble("batches were too many at once")
            if at_once == 1:
                most = min(most, error.requests) // 2
                if most < FEWEST:
                    raise
            at_once = 1
    return [r for r in requests if r.id not in client.journal.replies]


async def _in_batches(client: Client, requests: list[Request], at_once: int, most: int) -> None:
    """Wait for what is under way, then send what of the rest is affordable, so many batches at a time of at most so many requests."""
    await _collect_wanted(client, requests)
    pending = [r for r in requests if r.id not in client.journal.replies]
    affordable = _affordable(client, pending)
    sent: list[Sent] = []
    for some, data in _batches(client, affordable, most):
        if len(sent) == at_once:
            await _collect(client, sent.pop(0))
        sent.append(await _send(client, some, data))
    for batch in sent:
        await _collect(client, batch)
    if len(affordable) < len(pending):
        told = f"${client.section.budget:g} pays for {len(affordable)} of {len(pending)} requests"
        raise BudgetError(f"{client.section.where}.budget: {told} ({client.journal.told_spending()})")


def _affordable(client: Client, requests: list[Request]) -> list[Request]:
    left = client.section.budget - client.journal.spent - client.journal.committed
    for count, request in enumerate(requests):
        left -= client.greatest_cost(request)
        if left < 0:
            return requests[:count]
    return requests


def _batches(client: Client, requests: list[Request], most: int) -> Iterator[tuple[list[Request], bytes]]:
    """The requests in order, at most so many a batch, and the batch's file."""
    some: list[Request] = []
    data = bytearray()
    for request in requests:
        line = _line(client, request)
        if some and (len(some) == most or len(data) + len(line) > MOST_BYTES):
            yield some, bytes(data)
            some, data = [], bytearray()
        some.append(request)
        data += line
    if some:
        yield some, bytes(data)


def _line(client: Client, request: Request) -> bytes:
    """A request as a line of a batch's file."""
    line = {"custom_id": request.id, "method": "POST", "url": _url(request), "body": payload(request, client.section)}
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def _url(request: Request) -> str:
    return "/v1/completions" if "prompt" in request.body else "/v1/chat/completions"


async def _send(client: Client, requests: list[Request], data: bytes) -> Sent:
    """Send a batch, unless the endpoint already has it from a run of which no journal is left."""
    ids = tuple(r.id for r in requests)
    most = max(client.greatest_cost(r) for r in requests)
    batch = Sent(fingerprint("batch", ids, client.journal.ended), "", ids, most, address_of(client.section))
    known = await _find(client, batch)
    if known.id:
        return known
    file = await _answer(client.api.files.create(file=(f"{batch.mark}.jsonl", data), purpose="batch"))
    client.journal.send(batch)
    created = await _answer(
        client.api.batches.create(
            input_file_id=file.id,
            endpoint=_url(requests[0]),  # type: ignore[arg-type]
            completion_window="24h",
            metadata={_MARK: batch.mark},
        )
    )
    return _named(client, batch, created.id)


async def _collect(client: Client, batch: Sent, *, cancel: bool = False, wait: bool = True) -> None:
    """Wait for a batch, told to end if `cancel`, and keep its replies; without `wait` only if it has ended."""
    batch = batch if batch.id else await _find(client, batch)
    if not batch.id:
        client.journal.end(batch)  # a crash came before it was sent
        return
    api = client.api.with_options(max_retries=client.section.retries)
    try:
        if cancel:
            with suppress(EndpointError):  # it may have ended; what it did is read in any case
                await _answer(api.batches.cancel(batch.id))
        while (state := await _answer(api.batches.retrieve(batch.id))).status not in _ENDED:
            if not wait:
                return
            await asyncio.sleep(client.section.poll)
        for file in (state.output_file_id, state.error_file_id):
            if file:
                _read(client, (await _answer(api.files.content(file))).text, batch)
    except EndpointError as error:
        if not isinstance(error.__cause__, openai.NotFoundError):
            raise
        client.trouble("batch is gone from the endpoint")
        client.journal.lose(batch.id, batch.most * sum(r not in client.journal.replies for r in batch.requests))
        client.journal.end(batch)
        return
    client.journal.end(batch)
    if state.status != "completed":
        client.trouble(f"batch {state.status}")
    if state.status == "failed":
        if state.errors is not None and any(e.code == _CROWDED for e in state.errors.data or ()):
            told = f"more waits at the endpoint than it allows ({state.errors}); run again later"
            raise CrowdedError(f"{client.section.where}.batch: {told}", len(batch.requests))
        raise FailedBatchError(
            f"{client.section.where}.batch: {batch.id} failed ({state.errors}); nothing was charged: mend what it names and run again"
        )


async def _find(client: Client, batch: Sent) -> Sent:
    """The batch with the id under which the endpoint has it; without one if it has none."""
    pages = await _answer(client.api.with_options(max_retries=client.section.retries).batches.list(limit=100))
    async for listed in pages:
        if (listed.metadata or {}).get(_MARK) == batch.mark:
            return _named(client, batch, listed.id)
    return batch


def _named(client: Client, batch: Sent, id: str) -> Sent:
    named = replace(batch, id=id)
    client.journal.send(named)
    return named


async def _answer(asked: Awaitable[T]) -> T:
    """An answer of the endpoint. Raises `EndpointError` if it is none."""
    try:
        answer = await asked
    except (openai.APIError, ValueError) as error:
        raise EndpointError(f"the Batch API: {' '.join(str(error).split())[:200]}; run again to go on where it stopped") from error
    if isinstance(answer, str):
        raise EndpointError("the Batch API: the endpoint answered with a page; does it have one? Else unset `batch` in params.yaml")
    return answer


def _read(client: Client, text: str, batch: Sent) -> None:
    """Keep the replies of a batch's file; a line that is none is counted."""
    carried, section = set(batch.requests), client.section.model_copy(update={"batch": True})  # its price is a batch's
    for line in filter(None, text.split("\n")):  # not `splitlines`: a reply may hold other kinds of line end
        try:
            row = json.loads(line)
            id, response = row["custom_id"], row.get("response") or {}
            if id not in carried:
                continue
            status = response.get("status_code")
            if status == 200:
                try:
                    client.journal.pay(read_answer(response.get("body"), id, section, batch.most))
                except JunkError:  # charged all the same
                    client.trouble("batch line is not a reply")
                    if id in client.journal.awaited:
                        client.journal.lose(id, batch.most)
            elif status == 400 and refuses(response.get("body")):
                client.journal.pay(refusal(id, section))
            else:
                client.trouble(f"batch line HTTP {status}" if status else "batch line without an answer", _said(row))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            client.trouble("batch line is not a reply")


def _said(row: dict[str, Any]) -> object:
    """The endpoint's own words in a line that failed."""
    for told in (((row.get("response") or {}).get("body") or {}).get("error"), row.get("error")):
        if told:
            return told.get("message") or told if isinstance(told, dict) else told
    return ""
