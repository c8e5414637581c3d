"""Refusals: the answers of the server to requests that it does not fulfil. Each has a status of HTTP."""

from collections.abc import Mapping
from typing import Any

from vet.errors import UserError


class RefusedError(Exception):
    """The server does not fulfil a request. The text says why, and what to do."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None):
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:  # Ray carries refusals between processes
        return type(self), (self.status, str(self), self.headers)


def busy(text: str, seconds: float) -> RefusedError:
    """Too many requests: the client shall try again after some seconds."""
    wait = max(1, round(seconds))
    return RefusedError(429, f'{text} Try again in {wait} s.', {'Retry-After': str(wait)})


def refused(error: BaseException) -> RefusedError:
    """The answer for an error. A UserError is a mistake of the client. Other errors are faults of vet."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, UserError):
        return RefusedError(422, str(error))
    return RefusedError(500, 'the server has a fault. Its log names the error by the X-Request-ID.')
