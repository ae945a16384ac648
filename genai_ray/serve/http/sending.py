"""Answers on their way: in pieces, each of which a client must take in time, and counted until the last one has gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["UNTIL_SENT", "UntilSent"]

UNTIL_SENT = "genai_ray.until_sent"
"""Name, in a request's scope, of an ``ExitStack`` that is closed when its answer has been sent, or its client is gone."""

PIECE_BYTES = 256 * 1024
PIECE_WITHIN_S = 30.0
"""Most seconds for a piece: a client that takes less than 8 KiB a second would keep what was computed for it for ever."""

_log = logging.getLogger(__name__)


class _TooSlowError(Exception):
    """A client that does not read its answer."""


class UntilSent:
    """An ASGI application around another one.

    Args:
        app: The other one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Args:
            scope: As ASGI has it.
            receive: As ASGI has it.
            send: As ASGI has it.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def patiently(message: Message) -> None:
            try:
                async with asyncio.timeout(PIECE_WITHIN_S):
                    await send(message)
            except TimeoutError as exc:
                raise _TooSlowError from exc

        async def in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                await patiently(message)
                return
            view = memoryview(body)
            for start in range(0, len(view), PIECE_BYTES):
                await patiently({**message, "body": view[start : start + PIECE_BYTES], "more_body": True})
            # The server waits before a message until it is rid of the last one: this one says that all of them have gone.
            await patiently({**message, "body": b""})

        with contextlib.ExitStack() as stack:
            scope[UNTIL_SENT] = stack
            try:
                await self._app(scope, receive, in_pieces)
            except _TooSlowError:  # what is left of the answer is dropped, and the server closes the connection
                _log.warning("a client took less than %d bytes of its answer in %g s", PIECE_BYTES, PIECE_WITHIN_S)
