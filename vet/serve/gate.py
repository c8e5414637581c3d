"""The gate: each request passes the gate before the routes see the request.

The gate gives a request its id, checks the token, reads the body within limits of bytes and of time, and
turns errors into answers. It logs and counts each request. A slow or huge request costs no thread.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Sequence
from fnmatch import fnmatchcase
from hmac import compare_digest
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vet.serve.limits import Limits
from vet.serve.logs import log_failure, log_request
from vet.serve.metrics import Metrics
from vet.serve.refusals import RefusedError, busy, refused

REQUEST_ID = re.compile(r'[\w.-]{1,64}')
OPEN = ('/', '/healthz', '/readyz', '/v2/health/live', '/v2/health/ready', '/docs', '/openapi.json')
OPEN_FOLDERS = ('/page/', '/docs-files/')  # files that say nothing about models
HEADERS = {  # of every answer
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'X-Frame-Options': 'DENY',
    'Cache-Control': 'no-store',
}


class Gate:
    """ASGI middleware around the routes.

    token: without the token, a request gets 401. None: no token is needed.
    names: of the server, one of which stands in the header Host of a request. '*' stands for any letters.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, token: str | None, names: Sequence[str]
    ):
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._token = token
        self._names = [name.lower() for name in names]
        self._bodies = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            if scope['type'] == 'lifespan':
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get('x-request-id', '')
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault('state', {})['request_id'] = request_id
        began = time.perf_counter()
        answered = [0]

        async def named_send(message: Message) -> None:
            if message['type'] == 'http.response.start':
                answered[0] = message['status']
                answer_headers = MutableHeaders(scope=message)
                answer_headers['X-Request-ID'] = request_id
                for name, value in HEADERS.items():
                    answer_headers.setdefault(name, value)
            await send(message)

        try:
            await self._let_in(scope, headers, receive, named_send, answered)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get('route'), 'path', 'other')
            status = answered[0] or 499  # the client has left
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            log_request(scope, request_id, status, seconds)

    async def _let_in(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send, answered: list[int]
    ) -> None:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.seconds):
                self._require_name(headers)
                self._require_token(scope, headers)
                await self._read(headers, receive, body)
                await self._app(scope, _replayed(bytes(body), receive), send)
            return
        except TimeoutError:
            error = RefusedError(
                503,
                f'the answer takes more than {self._limits.seconds:g} s. Send fewer images, or try again '
                'later.',
                {'Retry-After': '1'},
            )
        except _LeftError:
            return
        except Exception as raised:
            error = refused(raised)
            if error.status == 500:
                log_failure(scope['state']['request_id'], raised)
        finally:
            self._bodies -= len(body)
        if not answered[0]:
            if error.status in (401, 408, 411, 413, 429):  # the rest of the body is not read
                error.headers['Connection'] = 'close'
            answer = JSONResponse({'error': str(error)}, error.status, error.headers)
            await answer(scope, receive, send)

    def _require_name(self, headers: Headers) -> None:
        given = headers.get('host', '')
        try:
            name = urlsplit(f'//{given}').hostname or ''
        except ValueError:  # a broken address of IPv6
            name = ''
        if not any(fnmatchcase(name, each) for each in self._names):
            raise RefusedError(
                400,
                f'the request calls this server {given[:64]!r}; allowed: {", ".join(self._names)}. '
                '`vet serve --allow-host NAME` allows more.',
            )

    def _require_token(self, scope: Scope, headers: Headers) -> None:
        path = scope['path']
        if self._token is None or path in OPEN or path.startswith(OPEN_FOLDERS):
            return
        if scope['method'] == 'OPTIONS':  # a browser asks what is allowed, without the token
            return
        given = headers.get('authorization', '')
        if not compare_digest(given.encode(), f'Bearer {self._token}'.encode()):
            raise RefusedError(
                401,
                'a token is needed: send the header "Authorization: Bearer TOKEN".',
                {'WWW-Authenticate': 'Bearer'},
            )

    async def _read(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        """Reads the body. RefusedError if the body is too large or too slow."""
        length = headers.get('content-length', '')
        if length.isdigit() and int(length) > self._limits.body:
            raise self._too_large()
        if headers.get('content-encoding', 'identity') != 'identity':
            raise RefusedError(415, 'compressed bodies are refused. Send the body as it is.')
        try:
            async with asyncio.timeout(self._limits.seconds / 2):
                while True:
                    message = await receive()
                    if message['type'] == 'http.disconnect':
                        raise _LeftError
                    chunk = message.get('body', b'')
                    if len(body) + len(chunk) > self._limits.body:
                        raise self._too_large()
                    if self._bodies + len(chunk) > self._limits.bodies:
                        raise busy('the bodies of other requests fill the memory of the server.', 1)
                    body += chunk
                    self._bodies += len(chunk)
                    if not message.get('more_body', False):
                        return
        except TimeoutError:
            raise RefusedError(
                408, f'the body did not arrive within {self._limits.seconds / 2:g} s. Send it again.'
            ) from None

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f'the body is too large; allowed: {self._limits.body:,} bytes.')


class _LeftError(Exception):
    """The client has closed the connection."""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already."""
    parts: list[dict[str, Any]] = [dict(type='http.request', body=body, more_body=False)]

    async def again() -> Message:
        return parts.pop() if parts else await receive()

    return again
