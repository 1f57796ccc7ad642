"""Requests → paid replies by the Batch API, at half the price within a day; a killed run finds its batch again.

A batch carries the fingerprint of its requests as metadata, so that a crash between sending it and writing that down does
not send it twice.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai

from ip2p.dataset.llm.client import BudgetError, Client, EndpointError, JunkError, Request, payload, read_answer
from ip2p.store import fingerprint

MOST_REQUESTS = 50_000
"""Requests a batch (OpenAI's limit)."""
_MARK = "ip2p"
_ENDED = {"completed", "expired", "cancelled", "failed"}


async def ask_by_batch(client: Client, requests: list[Request]) -> list[Request]:
    """Ask what the journal does not hold; returns the requests that got no reply. Raises `BudgetError` if not all are affordable."""
    pending = [r for r in requests if r.id not in client.journal.replies]
    affordable = _affordable(client, pending)
    for first in range(0, len(affordable), MOST_REQUESTS):
        await _ask(client, affordable[first : first + MOST_REQUESTS])
    if len(affordable) < len(pending):
        raise BudgetError(f"triplets.llm.budget: ${client.section.budget:g} pays for {len(affordable)} of {len(pending)} requests")
    return [r for r in pending if r.id not in client.journal.replies]


def _affordable(client: Client, requests: list[Request]) -> list[Request]:
    left = client.section.budget - client.journal.spent
    for count, request in enumerate(requests):
        left -= client.greatest_cost(request)
        if left < 0:
            return requests[:count]
    return requests


async def _ask(client: Client, requests: list[Request]) -> None:
    mark = fingerprint("batch", [r.id for r in requests])
    try:
        batch: Any = await _find(client, mark) or await _send(client, requests, mark)
        while batch.status not in _ENDED:
            await asyncio.sleep(client.section.poll)
            batch = await client.api.batches.retrieve(batch.id)
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                _read(client, (await client.api.files.content(file)).text, {r.id for r in requests})
    except openai.APIError as error:
        raise EndpointError(f"triplets.llm.batch: {' '.join(str(error).split())[:200]}; run again to go on where it stopped") from error
    if batch.status == "failed":
        raise EndpointError(f"triplets.llm.batch: {batch.id} failed: {batch.errors}; nothing was charged")


async def _find(client: Client, mark: str) -> Any:
    """The batch that already carries these requests, unless it failed."""
    if mark in client.journal.batches:
        return await client.api.batches.retrieve(client.journal.batches[mark])
    async for batch in client.api.batches.list():
        if (batch.metadata or {}).get(_MARK) == mark and batch.status != "failed":
            client.journal.send(mark, batch.id)
            return batch
    return None


async def _send(client: Client, requests: list[Request], mark: str) -> Any:
    url = "/v1/completions" if requests[0].format == "completion" else "/v1/chat/completions"
    lines = [{"custom_id": r.id, "method": "POST", "url": url, "body": payload(r, client.section)} for r in requests]
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    file = await client.api.files.create(file=(f"{mark}.jsonl", data), purpose="batch")
    batch = await client.api.batches.create(
        input_file_id=file.id,
        endpoint=url,  # type: ignore[arg-type]
        completion_window="24h",
        metadata={_MARK: mark},
    )
    client.journal.send(mark, batch.id)
    return batch


def _read(client: Client, text: str, wanted: set[str]) -> None:
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if row["custom_id"] in wanted:
                client.journal.pay(read_answer((row["response"] or {}).get("body"), row["custom_id"], client.section))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, JunkError):
            client.troubles["batch line is not a reply"] += 1
