"""The record of a run: log.jsonl (one JSON object per line), TensorBoard events, and curves.png, drawn from
the log.
"""

import io
import json
import os
import sys
from pathlib import Path

import torch

from vet.engine.saving.trackers import Trackers
from vet.errors import DataError, TrainingError
from vet.files import JsonObject, read_bytes, write_file, writing

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # mypy takes the name for a module

LOG = 'log.jsonl'


class Log:
    """Appends records to `folder/log.jsonl`, to TensorBoard and to the trackers.

    cut_at: a resumed run cuts the log back to this length.
    """

    def __init__(self, folder: Path, step: int, cut_at: int, trackers: Trackers | None = None):
        from vet.engine.saving.events import Events  # TensorBoard takes time to import

        self._path = folder / LOG
        self._trackers = trackers
        with writing(self._path):
            self._file = open(self._path, 'ab')
            # for a checkpoint from another folder, the log is not here
            self._file.truncate(min(cut_at, self._file.tell()))
            self._events = Events(folder / 'tensorboard', step + 1)

    def write(self, step: int, **values: object) -> None:
        with writing(self._path):
            self._file.write((json.dumps(dict(step=step, **values)) + '\n').encode())
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != 'epoch':
                    self._events.add_scalar(name, value, step)
        self.track(step, **values)

    def track(self, step: int, **values: object) -> None:
        """Sends numbers to the trackers alone."""
        if self._trackers:
            self._trackers.log(step, values)

    def flush(self) -> int:
        """Waits until all records are on the disk. Returns the log's length in bytes."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()
            return self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> 'Log':
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._trackers:
            self._trackers.finish()
        try:
            with writing(self._path):
                self._file.close()
                self._events.close()
        except TrainingError:
            if error is None:  # otherwise the user must hear of `error`
                raise


def read_log(folder: Path) -> list[JsonObject]:
    """The records of a run, in order. DataError for a damaged line."""
    path = folder / LOG
    records: list[JsonObject] = []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get('step')) is not int:
            raise DataError(
                f'{str(path)!r} is damaged: line {number} is no record. Take the line out; the weights of '
                'the run do not depend on the log.'
            )
        records.append(record)
    return records


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far, in MiB: on the GPU as torch counts it, or by this process. 0 on
    Windows.
    """
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return 0.0
    unit = 2**20 if sys.platform == 'darwin' else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def draw_curves(folder: Path, target: Path) -> None:
    """Loss and accuracy of training and validation over steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_log(folder)
    figure = Figure(figsize=(9, 3.5))
    figure.subplots_adjust(0.08, 0.14, 0.98, 0.96, wspace=0.22)  # a layout that measures texts takes longer
    for axes, quantity in zip(figure.subplots(1, 2), ('loss', 'accuracy')):
        for name in sorted(
            {key for record in records for key in record if key.rpartition('_')[2] == quantity}
        ):
            points = [
                (record['step'], record[name])
                for record in records
                if isinstance(record.get(name), int | float)
            ]
            axes.plot(*zip(*points), marker='o' if len(points) < 40 else None, markersize=3, label=name)
        axes.set(xlabel='step', ylabel=quantity)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data)
    write_file(target, data.getvalue())
