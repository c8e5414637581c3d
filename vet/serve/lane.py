"""Lane: the worker of one backbone. It computes the images of all models on the backbone, in batches.

A lane has one thread for its networks. Images wait in a queue. While a batch is computed, the next batch
gathers. Images of several models are one forward of the backbone, if the tuners of the models can mix.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from vet.core.backbone import Backbone
from vet.core.objective import Answer
from vet.core.tuned_model import TunedModel
from vet.pipelines import Options, Seen, told
from vet.serve.limits import Limits
from vet.serve.metrics import Metrics
from vet.serve.opened import Opened

TOGETHER = 32  # models whose edits are on the mixed network at once
Result = TypeVar('Result')


@dataclass(eq=False)
class Job:
    """An image that waits for its answer."""

    opened: Opened
    seen: Seen
    options: Options
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Lane:
    """The worker of the models that share `backbone`. backbone None: the worker of one model alone."""

    def __init__(self, backbone: Backbone | None, limits: Limits, metrics: Metrics):
        self.backbone = backbone
        self._limits = limits
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, 'vet-network')
        self._mixed = TunedModel(backbone, {}) if backbone else None
        self._put: OrderedDict[str, Opened] = OrderedDict()  # of the mixed network, the last used last
        self._runner: asyncio.Task[None] | None = None

    async def answers(self, jobs: Sequence[Job]) -> list[Answer]:
        """Waits for the answers of images."""
        self._waiting.extend(jobs)
        self._came.set()
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        try:
            return [await job.answer for job in jobs]
        finally:
            for job in jobs:  # after a timeout, an image that still waits is not computed
                job.answer.cancel()

    async def call(self, function: Callable[[], Result]) -> Result:
        """Calls a function in the thread of the networks, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def forget(self, opened: Opened) -> None:
        """Lets go of a model that left the memory, after the batch of now."""
        self._thread.submit(self._take_out, f'{id(opened)}')

    async def _run(self) -> None:
        while self._waiting:
            batch = await self._gathered()
            began = time.perf_counter()
            found = await self.call(partial(self.compute, batch))
            self._metrics.batch_images.observe(len(batch))
            self._metrics.batch_seconds.observe(time.perf_counter() - began)
            for job, answer in zip(batch, found):
                _settle(job, answer)
        self._runner = None  # a lane without images is free to leave the memory

    async def _gathered(self) -> list[Job]:
        """The next images. Waits a little for a full batch. Empty if all clients have left."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.wait
        while len(self._waiting) < self._limits.batch and (left := end - loop.time()) > 0:
            self._came.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), left)
        batch: list[Job] = []
        while self._waiting and len(batch) < self._limits.batch:
            job = self._waiting.popleft()
            if not job.answer.done():
                batch.append(job)
        return batch

    def compute(self, batch: list[Job]) -> list[Answer | Exception]:
        """The answer or the error for each image, in the thread of the networks."""
        groups: dict[tuple, list[Job]] = {}
        for job in batch:
            task, view, _ = job.seen
            mixes = self._mixed is not None and job.opened.mixes(task)
            groups.setdefault((0 if mixes else id(job.opened), task, view.shape), []).append(job)
        found: dict[Job, Answer | Exception] = {}
        for jobs in groups.values():
            try:
                found.update(zip(jobs, self._together(jobs)))
            except Exception as error:  # the other groups still get their answers
                found.update(dict.fromkeys(jobs, error))
        return [found[job] for job in batch]

    def _together(self, jobs: list[Job]) -> list[Answer]:
        """The answers for images of one shape: of one model as `pipeline` gives them, or of several."""
        opened = jobs[0].opened
        if all(job.opened is opened for job in jobs):
            return opened.answers([job.seen for job in jobs], [job.options for job in jobs])
        return self._of_several(jobs)

    def _of_several(self, jobs: list[Job]) -> list[Answer]:
        """One forward for the images of several models."""
        assert self._mixed is not None
        names = [self._name_in_mixed(job.opened) for job in jobs]
        device = next(self._mixed.parameters()).device
        found: list[Answer] = []
        with torch.inference_mode():
            outputs = self._mixed(torch.stack([job.seen[1] for job in jobs]).to(device), names)
            for job, rows in zip(jobs, outputs):
                found += told(job.opened.objective(None), rows[None], [job.options])
        while len(self._put) > max(TOGETHER, len(set(names))):
            self._take_out(next(iter(self._put)))
        return found

    def _name_in_mixed(self, opened: Opened) -> str:
        """The name of a model in the mixed network. Puts the model there if it is not there."""
        assert self._mixed is not None
        name = f'{id(opened)}'
        if name not in self._put:
            self._mixed.add(name, opened.for_task(None))
        self._put[name] = opened  # keeps the model alive, so that no other model gets the same id
        self._put.move_to_end(name)
        return name

    def _take_out(self, name: str) -> None:
        assert self._mixed is not None
        if self._put.pop(name, None) is not None:
            self._mixed.remove(name)


def _settle(job: Job, answer: Answer | Exception) -> None:
    if job.answer.done():  # the client has left
        return
    if isinstance(answer, Exception):
        job.answer.set_exception(answer)
        job.answer.exception()  # read, so that asyncio does not warn of a client who leaves now
    else:
        job.answer.set_result(answer)
