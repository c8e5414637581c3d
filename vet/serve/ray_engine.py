"""RayEngine: an engine whose networks compute on a Ray cluster, in replicas of Ray Serve.

The process of the server reads requests and writes answers. Ray Serve does the rest. Ray Serve sends images
of one backbone to replicas that have this backbone (multiplexing). Ray Serve gathers images to batches, and
starts and ends replicas with the load (autoscaling). Models of one backbone share batches, as in LocalEngine.
Needs the extra `ray`.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vet.core.objective import Answer
from vet.errors import UserError, error_text
from vet.ray_cluster import join_cluster, needs_ray
from vet.serve.engine import Answered, LocalEngine, Question
from vet.serve.lane import Job, Lane
from vet.serve.limits import Limits
from vet.serve.metrics import Metrics
from vet.serve.models import Models
from vet.serve.opened import backbone_of
from vet.serve.refusals import RefusedError, busy, refused
from vet.serve.sources import Mark, Sources, is_onnx_file, mark_of, parted

with needs_ray('Ray Serve'):
    import ray
    from ray import serve
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError

NAME = 'vet'  # of the application on the cluster
BACKBONES = 8  # that Ray counts as present in a replica


class Replica(LocalEngine):
    """The engine of one process of the cluster. Its methods raise only RefusedError, which Ray can carry.

    prepare: called first; it imports a user's plugins. The other arguments are those of Models.
    """

    def __init__(
        self,
        prepare: Callable[[], None],
        given: Sequence[str],
        memory: int,
        limits: Limits,
        device: str | None,
        backbone: str | None,
    ):
        prepare()
        metrics = Metrics()
        super().__init__(Models(Sources(given), memory, limits, metrics, device, backbone), limits, metrics)
        batching: Any = self._batched  # Ray's decorator adds methods that its types do not show
        batching.set_max_batch_size(limits.batch)
        batching.set_batch_wait_timeout_s(limits.wait)

    async def ask(self, method: str, *args: object) -> Any:
        """Calls a method of the engine."""
        await self._present(serve.get_multiplexed_model_id())
        try:
            return await getattr(super(), method)(*args)
        except (UserError, RefusedError) as error:
            raise refused(error) from None

    @serve.multiplexed(max_num_models_per_replica=BACKBONES)
    async def _present(self, key: str) -> str:
        """Tells Ray that this replica has a backbone. `Models` loads the backbone, and lets it go."""
        return key

    async def _answers(self, lane: Lane, jobs: Sequence[Job]) -> list[Answer]:
        answers = []
        for answer in await asyncio.gather(*(self._batched((lane, job)) for job in jobs)):
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers

    @serve.batch
    async def _batched(self, waiting: list[tuple[Lane, Job]]) -> list[Answer | Exception]:
        """The answers for a batch. Ray makes batches of one backbone, but a changed folder has a new lane."""
        found: dict[Job, Answer | Exception] = {}
        for lane in {lane for lane, _ in waiting}:
            jobs = [job for other, job in waiting if other is lane]
            found |= zip(jobs, await lane.call(lambda: lane.compute(jobs)))  # noqa: B023 - awaited here
        return [found[job] for _, job in waiting]


class RayEngine:
    """An engine of replicas on the cluster of join_cluster.

    sources: all machines must find the folders under the same path.
    memory: of the models of one replica, in bytes. replicas: the most replicas. None: one for each GPU of the
        cluster, or one for each machine of a cluster without GPUs.
    resources: of a replica, as ray.remote takes them. Without num_gpus, a replica gets one GPU, if there are
        GPUs.
    prepare, limits, device, backbone: as for Replica.
    UserError if the replicas cannot start.
    """

    def __init__(
        self,
        sources: Sources,
        memory: int,
        limits: Limits,
        metrics: Metrics,
        device: str | None = None,
        backbone: str | None = None,
        replicas: int | None = None,
        resources: Mapping[str, object] | None = None,
        prepare: Callable[[], None] = lambda: None,
    ):
        self._served = sources
        self._metrics = metrics
        self._states: dict[str, str] = {}
        gpus = join_cluster(device)
        most = replicas or gpus or sum(node['Alive'] for node in ray.nodes())
        deployed = serve.deployment(
            ray_actor_options=dict(num_gpus=min(gpus, 1)) | dict(resources or {}),
            max_ongoing_requests=limits.queue,
            max_queued_requests=limits.queue,
            autoscaling_config=dict(min_replicas=1, max_replicas=most, target_ongoing_requests=limits.batch),
        )
        given = [_whole(each) for each in sources.given]
        serve.start(proxy_location='Disabled', logging_config=dict(log_level='WARNING'))
        try:
            application = deployed(Replica).bind(prepare, given, memory, limits, device, backbone)
            self._replicas = serve.run(application, name=NAME, route_prefix=None)
        except (RayError, RuntimeError) as error:
            raise UserError(
                f'no replica could start on the Ray cluster ({error_text(error)}). `ray status` shows the '
                'resources of the cluster, and --resources sets the resources of a replica.'
            ) from error

    def names(self) -> list[str]:
        return self._served.names()

    def state(self, name: str) -> str:
        """The state of the model at its last request."""
        return self._states.get(name, 'not loaded')

    async def describe(self, name: str) -> dict[str, Any]:
        return await self._ask(name, 'describe', name)

    async def example(self, name: str) -> list[Answer]:
        return await self._ask(name, 'example', name)

    async def predict(self, question: Question, images: Sequence[bytes]) -> Answered:
        found: Answered = await self._ask(question.model, 'predict', question, images)
        self._metrics.images.labels(found.model).inc(len(images))
        return found

    async def explain(self, question: Question, image: bytes, method: str, label: str | None) -> bytes:
        return await self._ask(question.model, 'explain', question, image, method, label)

    def close(self) -> None:
        serve.delete(NAME)

    async def _ask(self, name: str, method: str, *args: object) -> Any:
        folder = self._served.folder(name)
        try:
            key = _key(name, folder, mark_of(folder))
        except OSError:  # while a folder is replaced, it is not there for a moment
            key = _key(name, folder, ())
        try:
            found = await self._replicas.options(multiplexed_model_id=key).ask.remote(method, *args)
        except BackPressureError as error:
            raise busy('too many requests wait for the cluster.', 1) from error
        except RayTaskError as error:
            if not isinstance(error.cause, RefusedError):
                raise
            if error.cause.status == 503:
                self._states[name] = 'failed'
            raise error.cause from None
        self._states[name] = 'loaded'
        return found


@lru_cache(4096)
def _key(name: str, folder: Path, mark: Mark) -> str:
    """The key of the models that share batches: those of one backbone.

    The folder is read once for each `mark` of the folder.
    """
    try:
        need = None if is_onnx_file(folder) else backbone_of(folder)
    except (UserError, OSError):  # a replica tells what is wrong with the folder
        need = None
    return hashlib.sha256((need.key if need else name).encode()).hexdigest()


def _whole(given: str) -> str:
    """A model as given, with the whole path of a folder. A replica may have another working folder."""
    name, folder = parted(given)
    if not Path(folder).exists():
        return given
    return f'{name}={Path(folder).resolve()}' if name else str(Path(folder).resolve())
