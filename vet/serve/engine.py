"""Engine: the work of a server with images.

The routes know only the engine, and not where the engine computes.
"""

import asyncio
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from vet.core.objective import Answer, refuse_counts, refuse_share
from vet.engine.fast.door import give_back_freed_memory
from vet.errors import UnknownNameError
from vet.explain.heat import METHODS
from vet.explain.overlay import drawn_over
from vet.pipelines import Options, Seen
from vet.serve.images import opened_image
from vet.serve.lane import Job, Lane
from vet.serve.limits import Limits
from vet.serve.metrics import Metrics
from vet.serve.models import Models
from vet.serve.opened import Opened
from vet.serve.refusals import busy

IDLE = 1.0  # seconds without images, after which freed memory goes back to the system
NETWORK_SECONDS = 0.05  # for an image, before the first was measured


@dataclass(frozen=True)
class Question:
    """The question of a request about each of its images. task: of a model of several tasks."""

    model: str
    options: Options = Options()
    task: str | None = None


@dataclass(frozen=True)
class Answered:
    """The answers for the images of a request. version: of the model that has answered."""

    model: str
    version: str
    answers: list[Answer]


class Engine(Protocol):
    """Answers questions about encoded images."""

    def names(self) -> list[str]:
        """The names of the served models."""

    def state(self, name: str) -> str:
        """'loaded', 'failed' or 'not loaded'."""

    async def describe(self, name: str) -> dict[str, Any]:
        """The objective, the labels and the versions of a model."""

    async def example(self, name: str) -> list[Answer]:
        """Answers for made-up outputs of a model: their keys and types are those of real answers.

        Empty for a model of several tasks.
        """

    async def predict(self, question: Question, images: Sequence[bytes]) -> Answered:
        """The answers for encoded images. UserError or RefusedError if there are none."""

    async def explain(self, question: Question, image: bytes, method: str, label: str | None) -> bytes:
        """A PNG file that shows where the network looks."""

    def close(self) -> None:
        """Ends the threads. No request may wait."""


class LocalEngine:
    """An engine in this process. Threads decode images. A thread of each backbone computes batches."""

    def __init__(self, models: Models, limits: Limits, metrics: Metrics):
        self._models = models
        self._limits = limits
        self._metrics = metrics
        self._decoders = ThreadPoolExecutor(max(2, os.cpu_count() or 1), 'vet-decode')
        self._waiting = 0
        self._seconds = NETWORK_SECONDS  # for an image, as a moving mean
        self._idle: asyncio.TimerHandle | None = None

    def names(self) -> list[str]:
        return self._models.sources.names()

    def state(self, name: str) -> str:
        if self._models.loaded(name):
            return 'loaded'
        return 'failed' if self._models.failed(name) else 'not loaded'

    async def describe(self, name: str) -> dict[str, Any]:
        opened, _ = await self._models.get(name)
        return opened.describe()

    async def example(self, name: str) -> list[Answer]:
        opened, _ = await self._models.get(name)
        return opened.example()

    async def predict(self, question: Question, images: Sequence[bytes]) -> Answered:
        with self._queued(len(images)):
            opened, lane = await self._models.get(question.model)
            _require_fit(opened, question)
            seen = await self._seen(opened, question.task, images)
            began = asyncio.get_running_loop().time()
            answers = await self._answers(lane, [Job(opened, each, question.options) for each in seen])
            took = asyncio.get_running_loop().time() - began
            self._seconds += 0.05 * (took / max(self._waiting, len(images)) - self._seconds)
        self._metrics.images.labels(opened.name).inc(len(images))
        return Answered(opened.name, opened.version, answers)

    async def explain(self, question: Question, image: bytes, method: str, label: str | None) -> bytes:
        if method not in METHODS:
            raise UnknownNameError('method', method, METHODS)
        with self._queued(1):
            opened, lane = await self._models.get(question.model)
            classifier = opened.for_task(question.task)
            names = classifier.objective.names
            if label is not None and (label not in names or len(names) != classifier.objective.num_outputs):
                raise UnknownNameError('label', label, names)
            outputs = None if label is None else [names.index(label)]
            [seen] = await self._seen(opened, question.task, [image])
            return await lane.call(lambda: _explained(opened, seen, method, outputs))

    def close(self) -> None:
        if self._idle:
            self._idle.cancel()
        self._decoders.shutdown(wait=False)
        self._models.close()

    async def _answers(self, lane: Lane, jobs: Sequence[Job]) -> list[Answer]:
        """The answers for images. The lane gathers them to batches."""
        return await lane.answers(jobs)

    @contextmanager
    def _queued(self, images: int) -> Iterator[None]:
        """Counts images while they wait. RefusedError if too many images wait."""
        if self._waiting and self._waiting + images > self._limits.queue:
            raise busy(
                f'{self._waiting} images wait; the server lets {self._limits.queue} wait.',
                self._waiting * self._seconds,
            )
        if self._idle:
            self._idle.cancel()
        self._waiting += images
        self._metrics.waiting.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= images
            self._metrics.waiting.set(self._waiting)
            if not self._waiting:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(IDLE, self._decoders.submit, give_back_freed_memory)

    async def _seen(self, opened: Opened, task: str | None, images: Sequence[bytes]) -> list[Seen]:
        """The images as the network takes them. The decoding threads make them."""
        loop = asyncio.get_running_loop()

        def see(number: int) -> Seen:
            image = opened_image(images[number], number, self._limits.pixels)
            return opened.seen(image, task, number)

        opened.objective(task)  # the error of a missing task comes before the work
        return await asyncio.gather(
            *(loop.run_in_executor(self._decoders, see, number) for number in range(len(images)))
        )


def _require_fit(opened: Opened, question: Question) -> None:
    """UserError if the model cannot answer the question."""
    objective = opened.objective(question.task)
    if question.options.topk is not None:
        refuse_counts(topk=question.options.topk)
    if question.options.threshold is not None:
        refuse_share('threshold', question.options.threshold)
        objective.refuse_threshold()


def _explained(opened: Opened, seen: Seen, method: str, outputs: list[int] | None) -> bytes:
    task, view, _ = seen
    classifier = opened.for_task(task)
    device = next(classifier.parameters()).device
    heat = METHODS[method](classifier, view[None].to(device), outputs)
    data = io.BytesIO()
    drawn_over(view, heat[0], opened.classifier.view(task)).save(data, 'PNG')
    return data.getvalue()
