"""Computes results before a caller asks for them, in threads, and keeps the order."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
R = TypeVar('R')


def ahead(
    function: Callable[[T], R], items: Iterable[T], workers: int, most: int
) -> Generator[R, None, None]:
    """function(item) for each item, in order.

    `workers` threads compute up to `most` results before the caller asks for them. With 0 workers, each
    result is computed when the caller asks. An error of `function` or of `items` comes at its place.
    """
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix='vet-ahead')
    source = iter(items)
    waiting: deque[Future[R]] = deque()
    try:
        waiting.extend(pool.submit(function, item) for item in itertools.islice(source, most))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
