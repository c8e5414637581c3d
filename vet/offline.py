"""Downloads where there is no network: what the cache has, at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub


def answers(url: str) -> bool:
    """Whether a hub can be reached: one look, of four seconds at most."""
    try:
        huggingface_hub.get_session().head(url, timeout=4)
    except Exception:  # httpx's or requests' errors, by the version of huggingface_hub
        return False
    return True


@contextmanager
def cache_alone_without_network() -> Iterator[None]:
    """The hub's client retries for most of a minute; where one look finds no hub, it reads its cache
    and asks nobody.
    """
    settings = huggingface_hub.constants
    before = settings.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = before or not answers(settings.ENDPOINT)
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before
