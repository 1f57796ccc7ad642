"""Texts → which of them the endpoint's moderation model flags; verdicts are kept in the journal."""

from __future__ import annotations

import asyncio

import openai

from ip2p.dataset.llm.client import Client, EndpointError, backoff, retry_after
from ip2p.store import fingerprint

_AT_ONCE = 32


async def moderate(client: Client, texts: list[str]) -> set[str]:
    """The flagged ones of `texts`; nothing is asked if no moderation model is named."""
    model = client.section.moderation
    if model is None:
        return set()
    keys = {text: fingerprint("moderation", model, text) for text in texts}
    fresh = [t for t in dict.fromkeys(texts) if keys[t] not in client.journal.flags]
    slots = asyncio.Semaphore(client.section.concurrency)

    async def ask(some: list[str]) -> None:
        async with slots:
            for text, flag in zip(some, await _flags(client, model, some), strict=True):
                client.journal.flag(keys[text], flag)

    await asyncio.gather(*(ask(fresh[i : i + _AT_ONCE]) for i in range(0, len(fresh), _AT_ONCE)))
    return {t for t in texts if client.journal.flags[keys[t]]}


async def _flags(client: Client, model: str, texts: list[str]) -> list[bool]:
    for attempt in range(client.section.retries + 1):
        wait, said = backoff(client.section, attempt), ""
        try:
            answer = await client.api.moderations.create(model=model, input=texts)
            if len(answer.results) == len(texts):
                return [bool(r.flagged) for r in answer.results]
        except (openai.APIError, ValueError, AttributeError, TypeError) as error:  # the last two: something else than verdicts
            if isinstance(error, openai.APIStatusError):
                if error.status_code in (400, 401, 403, 404):
                    told = f"{model} cannot be asked ({error.status_code}); mend or unset it"
                    raise EndpointError(f"{client.section.where}.moderation: {told}") from error
                wait = max(wait, retry_after(error))
            said = getattr(error, "message", "")
        client.trouble("moderation tried again", said)
        await asyncio.sleep(wait)
    told = f"no answer from {model} after {client.section.retries} retries ({client.told_troubles()}); run again to go on"
    raise EndpointError(f"{client.section.where}.moderation: {told}")
