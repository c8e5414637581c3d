"""Downloads without a network: reads the hub's cache at once, and leaves a silent server."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

NETWORK_TIMEOUT_SECONDS = 10


def answers(url: str) -> bool:
    """Whether a hub can be reached. Asks once, and waits four seconds at most."""
    import huggingface_hub  # here, because readers of data need no hub

    try:
        huggingface_hub.get_session().head(url, timeout=4)
    except Exception:  # errors of httpx or requests, depending on the version of huggingface_hub
        return False
    return True


@contextmanager
def silence_bounded(seconds: float = NETWORK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Within this context, a library that sets no limit waits at most so long for each answer of a server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def cache_alone_without_network() -> Iterator[None]:
    """Within this context, if the hub cannot be reached, its client only reads its cache.

    Otherwise the client would try again for most of a minute.
    """
    import huggingface_hub.constants

    settings = huggingface_hub.constants
    before = settings.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = before or not answers(settings.ENDPOINT)
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before
