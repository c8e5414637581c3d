"""A client of HTTP/1.1 that asks as fast as a server answers, from many connections at once."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """A request as bytes. seconds: that the sender waits in the middle of the bytes."""

    data: bytes
    seconds: float = 0.0
    check: Callable[[int, bytes], str | None] = lambda status, body: None if status == 200 else f'{status}'


@dataclass
class Found:
    """What a load gave: the seconds of each request, and what was wrong, by its words."""

    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def form(model: str, image: bytes, path: str = '/v1/predict') -> bytes:
    """A request with one image in a form."""
    line = b'\r\nContent-Disposition: form-data; name='
    body = (
        b'--cut' + line + b'"model"\r\n\r\n' + model.encode() + b'\r\n'
        b'--cut' + line + b'"images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + image
        + b'\r\n--cut--\r\n'
    )  # fmt: skip
    return post(path, body, 'multipart/form-data; boundary=cut')


def post(path: str, body: bytes, kind: str) -> bytes:
    head = f'POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n'
    return head.encode() + f'Content-Length: {len(body)}\r\n\r\n'.encode() + body


async def closed_loop(port: int, requests: Iterable[Asked], clients: int) -> Found:
    """Each client sends a request as soon as its request before was answered."""
    found = Found()
    left = iter(requests)
    began = time.perf_counter()
    await asyncio.gather(*(_client(port, left, found) for _ in range(clients)))
    found.seconds = time.perf_counter() - began
    return found


async def open_loop(port: int, requests: Iterable[Asked], rate: float, seed: int = 0) -> Found:
    """Requests come at random moments, `rate` in a second on average, whether the server keeps up or not."""
    found = Found()
    draw = random.Random(seed)
    waiting = []
    began = time.perf_counter()
    for asked in requests:
        await asyncio.sleep(draw.expovariate(rate))
        waiting.append(asyncio.create_task(_client(port, iter([asked]), found)))
    await asyncio.gather(*waiting)
    found.seconds = time.perf_counter() - began
    return found


async def _client(port: int, left: Iterator[Asked], found: Found) -> None:
    connection = None
    for asked in left:
        began = time.perf_counter()
        try:
            connection = connection or await asyncio.open_connection('127.0.0.1', port)
            status, body, stays = await asyncio.wait_for(_answer(connection, asked), 120)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            found.wrong.append(f'no answer: {type(error).__name__}')
            status = 0
            body = b''
            stays = False
        else:
            if wrong := asked.check(status, body):
                found.wrong.append(wrong)
        found.times.append(time.perf_counter() - began)
        found.statuses[status] = found.statuses.get(status, 0) + 1
        if not stays and connection:
            connection[1].close()
            connection = None
    if connection:
        connection[1].close()


async def _answer(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], asked: Asked
) -> tuple[int, bytes, bool]:
    """The status and the body of an answer, and whether the connection stays open."""
    reader, writer = connection
    sending = asyncio.create_task(_send(writer, asked))
    try:
        head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').lower()
        length = int(head.partition('content-length:')[2].partition('\r')[0])
        body = await reader.readexactly(length)
    finally:
        stays = sending.done() and sending.exception() is None
        sending.cancel()
    return int(head.split()[1]), body, stays and 'connection: close' not in head


async def _send(writer: asyncio.StreamWriter, asked: Asked) -> None:
    middle = len(asked.data) // 2 if asked.seconds else len(asked.data)
    try:
        writer.write(asked.data[:middle])
        await writer.drain()
        if asked.seconds:
            await asyncio.sleep(asked.seconds)
            writer.write(asked.data[middle:])
            await writer.drain()
    except OSError:  # the server has answered, and does not read the rest
        pass


def answers_of(body: bytes) -> list[dict]:
    return json.loads(body)['answers']
