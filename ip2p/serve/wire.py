"""uvicorn's HTTP/1.1 with an end to its patience: for clients that connect and say nothing, and for those that take no answer.

Whoever stops reading a long answer would hold it in memory, and a place among the edits, for as long as the connection stands.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 30.0
"""Seconds within which a client has to send a request's headers, and to take something of an answer that waits for it."""


class PatientProtocol(H11Protocol):
    """Ends connections that stand still."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        super().connection_made(transport)
        self._unsent, self._answered = 0, self.cycle
        self._watch = self.loop.call_later(PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch no longer."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        unsent, cycle = self.transport.get_write_buffer_size(), self.cycle
        unread = 0 < self._unsent == unsent  # whoever takes something changes it: what is written next is written only then
        silent = (cycle is None or cycle.response_complete) and cycle is self._answered and not unsent
        if unread or silent:
            self.transport.abort()
            return
        self._unsent, self._answered = unsent, cycle
        self._watch = self.loop.call_later(PATIENCE, self._look)


def configured(app: Any, **options: Any) -> Any:
    """uvicorn's configuration of the app."""
    import uvicorn

    return uvicorn.Config(
        app,
        http=PatientProtocol,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anybody on this machine could name any address
        h11_max_incomplete_event_size=16_384,
        **options,
    )
