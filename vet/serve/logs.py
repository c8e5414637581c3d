"""Logs of a server: one JSON object in a line, on stderr."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

LOG = logging.getLogger('vet.serve')
FACTS = 'facts'  # the attribute of a log record that holds more keys of the line
LONGEST = 512  # characters of a text from a request


class JsonLines(logging.Formatter):
    """A record as JSON. Control characters of a request are escaped, so that a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = dict(
            time=datetime.fromtimestamp(record.created, UTC).isoformat(timespec='milliseconds'),
            level=record.levelname.lower(),
            message=record.getMessage(),
        )
        line.update(getattr(record, FACTS, {}))
        if record.exc_info:
            line['traceback'] = ''.join(traceback.format_exception(*record.exc_info))
        return json.dumps(line)


def show_json(quiet: bool) -> None:
    """From now on, vet and uvicorn log JSON lines on stderr. quiet: only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ('vet', 'uvicorn'):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
        log.setLevel(logging.WARNING if quiet or name == 'uvicorn' else logging.INFO)


def log_request(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    if scope['path'] in ('/healthz', '/readyz', '/metrics') and status == 200:
        return
    client = scope.get('client') or ('', 0)
    facts = dict(
        request_id=request_id,
        method=scope['method'],
        path=scope['path'][:LONGEST],
        status=status,
        ms=round(1000 * seconds, 1),
        client=client[0],
        **scope['state'].get(FACTS, {}),
    )
    LOG.info('request', extra={FACTS: facts})


def log_failure(request_id: str, error: BaseException) -> None:
    """Logs a fault of vet with its traceback."""
    LOG.error('fault', exc_info=error, extra={FACTS: dict(request_id=request_id)})
