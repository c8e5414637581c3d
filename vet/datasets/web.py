"""Downloads over http and https, each with a limit of bytes and of seconds."""

import http.client
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
    getproxies,
)

from rich.progress import wrap_file

from vet.log import console, shows_bars

SCHEMES = ('http', 'https')
ANSWER_SECONDS = 10  # for each answer of the server: for the connection, and for each part of the data
CHUNK = 2**20


class DownloadError(OSError):
    """A URL gave no file. The message says why."""


class Guard(Protocol):
    """Says which URLs and addresses may be reached. For URLs of strangers."""

    def require_url(self, url: str) -> None:
        """DownloadError for a URL, or a redirect to it, that is not allowed."""

    def require_address(self, address: str) -> None:
        """DownloadError for an IP address that is not allowed. Called before a byte is sent."""


def read_url(url: str, limit_bytes: int, limit_seconds: float, guard: Guard | None = None) -> bytes:
    """The server's answer for an http(s) URL.

    guard: refuses URLs and addresses. With a guard, proxies of the environment are not used.
    OSError if the answer has more than `limit_bytes`, or is not complete in time.
    """
    with _answer(url, limit_seconds, guard) as answer:
        data = answer.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise DownloadError(f'it has more than {limit_bytes} bytes')
        if answer.length:
            raise DownloadError(f'the server stopped {answer.length:,} bytes before the end')
    return data


def fetch_file(url: str, path: Path, limit_seconds: float) -> None:
    """Downloads an http(s) URL to `path`, with a progress bar. The file appears when it is complete.

    OSError if the file is not complete in time.
    """
    partial = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with _answer(url, limit_seconds) as answer, partial.open('wb') as file:
            with wrap_file(
                answer, answer.length or 0, description=path.name, console=console, disable=not shows_bars()
            ) as whole:
                _copy(whole, file)
            if answer.length:
                raise DownloadError(
                    f'the server stopped {answer.length:,} bytes before the end of {path.name}'
                )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: BinaryIO, file: BinaryIO) -> None:
    while data := source.read(CHUNK):
        file.write(data)


@contextmanager
def _answer(url: str, limit_seconds: float, guard: Guard | None = None) -> Iterator[Any]:
    """The answer of the server. After `limit_seconds` its sockets are shut, and an OSError says so."""
    sockets: list[socket.socket] = []
    over = threading.Event()

    def cut_off() -> None:
        over.set()
        for each in sockets:
            _shut(each)

    timer = threading.Timer(limit_seconds, cut_off)
    timer.daemon = True
    timer.start()
    request = Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={'User-Agent': 'vet'})
    try:
        if guard is not None:
            guard.require_url(url)
        with opener(sockets, guard).open(request, timeout=ANSWER_SECONDS) as answer:
            yield answer
    except (OSError, http.client.HTTPException) as error:
        if not over.is_set():
            note = _proxy_note(url) if guard is None else ''
            raise DownloadError(f'{_reason(error)}{note}') from error
    finally:
        timer.cancel()
        for each in sockets:
            each.close()
    if over.is_set():
        raise DownloadError(f'the server took more than {limit_seconds:g} s')


def opener(sockets: list[socket.socket], guard: Guard | None = None) -> OpenerDirector:
    """Opens only http and https URLs, through the proxies of the environment. With a guard: without proxies.

    Puts a copy of each socket in `sockets`.
    """
    proxies = {scheme: proxy for scheme, proxy in getproxies().items() if scheme in SCHEMES and not guard}
    director = OpenerDirector()
    for handler in (
        ProxyHandler(proxies),
        _Http(sockets, guard),
        _Https(sockets, guard),
        HTTPDefaultErrorHandler(),
        Redirects(guard),
        HTTPErrorProcessor(),
        UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


class Redirects(HTTPRedirectHandler):
    """Follows a server to another http(s) address. Refuses a step from https to http, or to a file."""

    max_redirections = 5

    def __init__(self, guard: Guard | None = None):
        self._guard = guard

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in SCHEMES or (before, after) == ('https', 'http'):
            raise DownloadError(
                f'the server redirects to {newurl!r}, which is refused: only http(s), and not from https to '
                'http'
            )
        if self._guard is not None:
            self._guard.require_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Watched(http.client.HTTPConnection):
    """Puts a copy of its socket in `sockets`. Another thread can shut the copy while this thread reads."""

    sockets: list[socket.socket]
    guard: Guard | None = None

    def connect(self) -> None:
        super().connect()
        if self.guard is not None:
            self.guard.require_address(self.sock.getpeername()[0])
        self.sockets.append(self.sock.dup())


class _WatchedTLS(http.client.HTTPSConnection, _Watched):
    """The same with TLS. Its connect calls the connect of _Watched before the handshake."""


class _Watching:
    """A handler of urllib. Its connections put copies of their sockets in `sockets`."""

    def __init__(self, sockets: list[socket.socket], guard: Guard | None = None):
        super().__init__()
        self._made = partial(_made, sockets, guard)


class _Http(_Watching, HTTPHandler):
    def http_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._made, _Watched), req)  # type: ignore[arg-type]  # a function makes it


class _Https(_Watching, HTTPSHandler):
    def https_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._made, _WatchedTLS), req)  # type: ignore[arg-type]  # a function makes it


def _made(
    sockets: list[socket.socket], guard: Guard | None, kind: type[_Watched], *args: Any, **options: Any
) -> _Watched:
    connection = kind(*args, **options)
    connection.sockets = sockets
    connection.guard = guard
    return connection


def _reason(error: BaseException) -> BaseException:
    """The cause of an error of urllib."""
    reason = getattr(error, 'reason', None)
    return reason if isinstance(reason, BaseException) else error


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the socket is closed already
        pass


def _proxy_note(url: str) -> str:
    return (
        ' (through the proxy that the environment sets)'
        if urlsplit(url).scheme.lower() in getproxies()
        else ''
    )
