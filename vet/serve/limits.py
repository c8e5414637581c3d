"""The limits of a server: how much one request may ask for, and how much may wait."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request. bodies: bytes of all requests at once. pixels and images: of a request.

    queue: images that wait or compute. seconds: until a request has its answer, or is refused.
    connections: at once. batch: images in one forward. wait: seconds in which an image waits for others.
    """

    body: int = 32 * MIB
    bodies: int = 256 * MIB
    pixels: int = 50_000_000
    images: int = 64
    queue: int = 256
    seconds: float = 30.0
    connections: int = 1024
    batch: int = 32
    wait: float = 0.005
