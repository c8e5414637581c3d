"""Runs the application of a server until a signal ends it. Requests that have begun get their answers."""

import asyncio
import gc
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from vet.errors import UserError
from vet.serve.limits import Limits

HEAD_BYTES = 64 * 1024  # of the first line and the headers of a request


class Server(uvicorn.Server):
    """A server on one socket. At SIGTERM and Ctrl-C, the server takes no new request, and then ends."""

    def __init__(self, app: ASGIApp, limits: Limits):
        class Protocol(_PatientProtocol):
            seconds = limits.seconds / 2

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws='none',
                lifespan='on',
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                limit_concurrency=limits.connections,
                h11_max_incomplete_event_size=HEAD_BYTES,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=int(limits.seconds) + 5,
            )
        )

    @property
    def is_ready(self) -> bool:
        return not self.should_exit

    def serve_on(self, listening: socket.socket) -> None:
        """Serves until a signal comes, and all requests that have begun are answered."""
        gc.collect()
        gc.freeze()  # torch and its friends never go; a collection need not look at them
        self.run(sockets=[listening])


class _PatientProtocol(H11Protocol):
    """HTTP on one connection. A client who does not finish the head of a request in time is cut off."""

    seconds = 15.0
    _timer: asyncio.TimerHandle | None = None

    # uvicorn's class declares the same narrower type
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. UserError if the address cannot be used."""
    try:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(
            f'the server cannot listen on {host}:{port} ({error}). Give another --host or --port.'
        ) from error


def address(listening: socket.socket) -> str:
    """The http address of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
