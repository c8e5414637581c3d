"""URLs of requests: fetched only from hosts that the server was started with, and only from public addresses.

Each redirect is checked too. The address of a host is checked on the open connection, before a byte is sent.
So a name server cannot give another address meanwhile.
"""

import asyncio
import ipaddress
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from vet.datasets.web import SCHEMES, DownloadError, read_url
from vet.serve.refusals import RefusedError

SECONDS = 10.0
THREADS = 8
NAT64 = ipaddress.ip_network('64:ff9b::/96')  # RFC 6052
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AllowedHosts:
    """The hosts of which requests may name URLs. None: no URL is fetched."""

    def __init__(self, hosts: Iterable[str] = ()):
        self._hosts = {host.strip().lower().rstrip('.') for host in hosts}
        self._threads = ThreadPoolExecutor(THREADS, 'vet-url')

    async def fetch(self, url: str, most_bytes: int) -> bytes:
        """The file at a URL. RefusedError if its host or its address is not allowed, or if it fails."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._fetch, url, most_bytes)

    def _fetch(self, url: str, most_bytes: int) -> bytes:
        if not self._hosts:
            raise RefusedError(
                422,
                'the server fetches no URL. Send the image itself, or start the server with --allow-urls.',
            )
        try:
            return read_url(url, most_bytes, SECONDS, guard=self)
        except (OSError, ValueError) as error:
            raise RefusedError(422, f'the image at {url!r} cannot be fetched: {error}.') from error

    def require_url(self, url: str) -> None:
        """DownloadError if a request or a redirect names a URL that is not allowed."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or (parts.hostname or '').rstrip('.') not in self._hosts:
            raise DownloadError(f'{url!r} is not on a host that --allow-urls names')
        if parts.username is not None or parts.password is not None:
            raise DownloadError('a URL with a user or a password is refused')

    def require_address(self, address: str) -> None:
        """DownloadError if a connection leads to an address that is not public."""
        found = _reached(ipaddress.ip_address(address.partition('%')[0]))
        if not found.is_global or found.is_multicast:
            raise DownloadError('its host has a private address, which is refused')


def _reached(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for (mapped, 6to4, NAT64). Else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address
