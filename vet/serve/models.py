"""Models: which models are in memory. A model is loaded when a request first asks for it.

The models that were not asked for longest leave the memory if `memory` does not suffice. A model whose folder
has changed is loaded again. A request gets a whole model, as the folder was at one moment.
"""

import asyncio
import gc
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vet.errors import UserError
from vet.hub.model_folder import load_backbone
from vet.log import warn
from vet.pipelines import Classifier
from vet.serve.lane import Lane
from vet.serve.limits import Limits
from vet.serve.metrics import Metrics
from vet.serve.onnx_file import OpenedFile
from vet.serve.opened import Need, Opened, backbone_of, bytes_of
from vet.serve.refusals import RefusedError
from vet.serve.sources import Mark, Sources, is_onnx_file, mark_of

TRIES = 5  # to load a folder that changes meanwhile


@dataclass
class _Shared:
    """A lane in memory, and the bytes of its backbone. names: of the models in memory that use the lane."""

    lane: Lane
    bytes: int
    names: set[str] = field(default_factory=set)


class Models:
    """memory: the most bytes that models take, with their backbones.

    device: where networks compute. backbone: where the weights of the backbone are, if they have moved.
    """

    def __init__(
        self,
        sources: Sources,
        memory: int,
        limits: Limits,
        metrics: Metrics,
        device: str | None = None,
        backbone: str | None = None,
    ):
        self.sources = sources
        self._memory = memory
        self._limits = limits
        self._metrics = metrics
        self._device = device
        self._backbone = backbone
        self._opened: OrderedDict[str, tuple[Opened, int]] = OrderedDict()  # the last used last
        self._lanes: dict[str, _Shared] = {}
        self._failed: dict[str, tuple[Mark, str]] = {}
        self._loading = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, 'vet-load')

    def loaded(self, name: str) -> Opened | None:
        """A model, if it is in memory."""
        found = self._opened.get(name)
        return found[0] if found else None

    def lane(self, opened: Opened) -> Lane:
        return self._lanes[opened.lane].lane

    def failed(self, name: str) -> bool:
        """Whether the folder could not be loaded when it was last tried."""
        return name in self._failed

    async def get(self, name: str) -> tuple[Opened, Lane]:
        """A model and its worker. RefusedError if there is no such model, or if it cannot be loaded."""
        folder = self.sources.folder(name)
        mark = self._mark(name, folder)
        if not self._is_fresh(name, mark):
            async with self._loading:
                mark = self._mark(name, folder)
                if not self._is_fresh(name, mark):
                    await self._load_folder(name, folder, mark)
        self._opened.move_to_end(name)
        opened, _ = self._opened[name]
        return opened, self.lane(opened)

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _mark(self, name: str, folder: Path) -> Mark:
        try:
            return mark_of(folder)
        except OSError as error:
            if name in self._opened:  # while a folder is replaced, it is not there for a moment
                return self._opened[name][0].mark
            raise RefusedError(404, f'the folder of the model {name!r} is gone.') from error

    def _is_fresh(self, name: str, mark: Mark) -> bool:
        """Whether the model in memory is the model of the folder. Raises the error of a folder that could
        not be loaded, and has not changed since. Then the old model answers, if it is in memory.
        """
        if name in self._opened and self._opened[name][0].mark == mark:
            return True
        if name in self._failed and self._failed[name][0] == mark:
            if name in self._opened:
                return True
            raise RefusedError(503, self._failed[name][1])
        return False

    async def _load_folder(self, name: str, folder: Path, mark: Mark) -> None:
        loop = asyncio.get_running_loop()
        try:
            for _ in range(TRIES):
                opened = await loop.run_in_executor(self._thread, self._open, name, folder, mark)
                if (now := mark_of(folder)) == mark:
                    break
                mark = now
            _, shared, size = opened
            self._require_room(size + shared.bytes)
        except (UserError, OSError) as error:
            self._metrics.loads.labels('failed').inc()
            text = f'the model {name!r} cannot be loaded: {error}'
            warn(text)
            self._failed[name] = mark, text
            if name not in self._opened:
                raise RefusedError(503, text) from error
            return
        self._metrics.loads.labels('loaded').inc()
        self._failed.pop(name, None)
        self._keep(name, *opened)

    def _require_room(self, needed: int) -> None:
        if needed > self._memory:
            raise UserError(
                f'with its backbone, the model needs {needed / 2**20:,.1f} MiB; the server may use '
                f'{self._memory / 2**20:,.1f} MiB. Start the server with a larger --memory.'
            )

    def _open(self, name: str, folder: Path, mark: Mark) -> tuple[Opened, _Shared, int]:
        """Opens a folder or a file, in the thread of loads. Returns the model, its lane, and its bytes."""
        if is_onnx_file(folder):
            alone = _Shared(Lane(None, self._limits, self._metrics), 0)
            file = OpenedFile(name, folder, mark)
            return file, alone, file.bytes
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of older folders; `vet predict` shows them
            need = backbone_of(folder)
            shared = self._shared(need) if need else None
            base = shared.lane.backbone if shared else None
            classifier = Classifier(str(folder), self._device, base or self._backbone)
        if need is None or shared is None:
            key = f'{name} alone'
            shared = _Shared(Lane(None, self._limits, self._metrics), 0)
        else:
            key = need.key
        opened = Opened(name, folder, mark, classifier, key)
        return opened, shared, bytes_of(classifier.model, base)

    def _shared(self, need: Need) -> _Shared | None:
        """The lane of a backbone. None if the folder's images have another size than the backbone's."""
        if need.key in self._lanes:
            return self._lanes[need.key]
        backbone = load_backbone(need.identity, self._backbone)
        if need.size not in (None, backbone.preprocessing.size):
            return None
        return _Shared(Lane(backbone, self._limits, self._metrics), bytes_of(backbone, None))

    def _keep(self, name: str, opened: Opened, shared: _Shared, size: int) -> None:
        """Keeps a new model, and lets the models go that were not asked for longest."""
        if name in self._opened:
            self.let_go(name)
        self._lanes.setdefault(opened.lane, shared).names.add(name)
        self._opened[name] = opened, size
        while self._used() > self._memory:
            self.let_go(next(iter(self._opened)))
        self._metrics.loaded.set(len(self._opened))
        self._metrics.memory.set(self._used())

    def _used(self) -> int:
        return sum(size for _, size in self._opened.values()) + sum(
            shared.bytes for shared in self._lanes.values()
        )

    def let_go(self, name: str) -> None:
        """A model leaves the memory, if it is there. Images that wait for it still get their answers."""
        if name not in self._opened:
            return
        opened, _ = self._opened.pop(name)
        shared = self._lanes[opened.lane]
        shared.names.discard(name)
        shared.lane.forget(opened)
        if not shared.names:
            del self._lanes[opened.lane]
        del opened
        gc.collect()  # networks refer to themselves in circles
