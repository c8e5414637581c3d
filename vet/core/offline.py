"""Downloads where there is no network: what the cache has, at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub


@contextmanager
def cache_alone_without_network() -> Iterator[None]:
    """The hub's client retries for most of a minute; where one look finds no hub, it reads its cache and asks nobody."""
    settings = huggingface_hub.constants
    offline = settings.HF_HUB_OFFLINE
    try:
        huggingface_hub.get_session().head(settings.ENDPOINT, timeout=4)
    except Exception:       # httpx's or requests' errors, by the version of huggingface_hub
        settings.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = offline
