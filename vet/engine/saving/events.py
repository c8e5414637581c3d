"""TensorBoard's event file. This process writes it, because another thread would hide errors of the disk."""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Events:
    """Writes scalars to a new file in `folder`.

    Records of older files for step `first_step` and later steps are void.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}'
        self._file = open(path, 'xb')
        self._records = RecordWriter(self._file)
        self._write(Event(file_version='brain.Event:2'))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
