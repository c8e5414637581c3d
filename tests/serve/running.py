"""A server in a thread of this process, with a client of HTTP."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx

from vet.serve.app import build_app
from vet.serve.engine import LocalEngine
from vet.serve.limits import Limits
from vet.serve.metrics import Metrics
from vet.serve.models import Models
from vet.serve.server import Server, address, listen
from vet.serve.sources import Sources
from vet.serve.urls import AllowedHosts


@contextmanager
def running(*models, memory=2**30, hosts=(), limits=None, **options) -> Iterator[httpx.Client]:
    """A client of a server of `models`. The client has the server as `engine`, and its models as `models`."""
    limits = replace(Limits(), **(limits or {}))
    metrics = Metrics()
    held = Models(Sources(map(str, models)), memory, limits, metrics, 'cpu')
    engine = LocalEngine(held, limits, metrics)
    with running_engine(engine, limits, metrics, hosts=AllowedHosts(hosts), **options) as client:
        client.models = held
        yield client


@contextmanager
def running_engine(engine, limits, metrics=None, **options) -> Iterator[httpx.Client]:
    """A client of a server of an engine."""
    app = build_app(engine, limits, metrics or Metrics(), **options)
    server = Server(app, limits)
    with listen('127.0.0.1', 0) as listening:
        thread = threading.Thread(target=server.serve_on, args=[listening], daemon=True)
        thread.start()
        with httpx.Client(base_url=address(listening), timeout=60) as client:
            client.engine, client.server = engine, server
            try:
                yield client
            finally:
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()


def predict(client, model, *images, **fields):
    """The answers of a model for encoded images."""
    answer = ask(client, model, *images, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()['answers']


def ask(client, model, *images, **fields):
    files = [('images', (f'{i}.png', image)) for i, image in enumerate(images)]
    return client.post('/v1/predict', data=dict(model=model, **fields), files=files)


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
