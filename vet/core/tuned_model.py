"""TunedModel: several tuned classifiers that share the weights of one frozen backbone, for inference.

Each classifier has its own modules around the same tensors, so that no classifier can disturb another. To
switch means to call another classifier. A further set of modules has the deltas of all classifiers that can
mix. Each delta acts on the images of its classifier.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import torch
from torch import nn

from vet.core.backbone import Backbone, merged_error
from vet.core.caches import written_buffers
from vet.core.edits import FlowEdit
from vet.core.maps import MapHead
from vet.core.mixed import CannotMix, mixed, put, rows_by_name, take_off
from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.multitask import SeveralTasks
from vet.core.reweight import Reweight
from vet.errors import UserError


class TunedModel(SeveralTasks):
    """Normalised images (B, 3, H, W) and the names of their tuners -> logits.

    Logits (B, K) of one tuner, or a list of B logits (K_i,) for several tuners.
    tasks: {name: its classifier}, each on a copy `with_same_weights` of `backbone`. `backbone` stays
        untouched. UserError if a model is merged into `backbone`.
    A batch of several tuners is one forward of the backbone, if the edits of all act on each image by itself.
    Such edits are low-rank updates of Linear layers and convolutions, adapters, and additions to the
    features. Other tuners form weights or add tokens (thawed values, prompts). Each such tuner gets a
    separate forward. Threads may share the model. Each thread then names its tuner in the call, because `use`
    acts on all threads. `disabled` acts on its own thread.
    """

    def __init__(self, backbone: Backbone, tasks: Mapping[str, ImageClassifier]):
        super().__init__()
        if backbone.is_merged:
            raise merged_error('the untouched backbone of several tuners')
        self.backbone = backbone
        self._models = nn.ModuleList()
        self._tasks: dict[str, ImageClassifier] = {}
        self._active: str | None = None
        self._mixed = with_same_weights(backbone)
        self._placed: dict[str, list[Reweight | FlowEdit]] = {}  # the edits of each task that mixes
        for name, model in tasks.items():
            self.add(name, model)
        self.eval()

    @property
    def mixing(self) -> list[str]:
        """The tasks whose images share a forward."""
        return list(self._placed)

    def add(self, name: str, model: ImageClassifier) -> None:
        """Adds a task. No other thread may call this model meanwhile."""
        if model.backbone is self.backbone or (
            model.backbone.identity['sha256'] != self.backbone.identity['sha256']
        ):
            raise UserError(
                f'the classifier {name!r} is on the backbone itself, which must stay untouched, or on '
                'other weights; attach its tuners to a copy: with_same_weights(backbone).'
            )
        self._tasks[name] = model.eval()
        self._models.append(model)
        placed = _placed(self._mixed, name, model)
        if placed is not None:
            self._placed[name] = placed

    def remove(self, name: str) -> None:
        """Removes a task, and its edits. No other thread may call this model meanwhile."""
        self.for_task(name)
        del self._tasks[name]
        self._models = nn.ModuleList(self._tasks.values())
        take_off(self._placed.pop(name, []))
        self._active = None if self._active == name else self._active

    @property
    def active(self) -> str | None:
        """The tuner of calls that name none, as `use` chose it. None within `disabled`."""
        return None if self._is_disabled() else self._active

    def use(self, task: str) -> None:
        """Makes a tuner the active tuner. No weight is touched."""
        self.for_task(task)
        self._active = task

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within this context, a call that names no tuner gives the frozen backbone's features (B, C)."""
        token = _DISABLED.set((*_DISABLED.get(), self))
        try:
            yield
        finally:
            _DISABLED.reset(token)

    def _is_disabled(self) -> bool:
        return any(model is self for model in _DISABLED.get())

    @torch.no_grad()
    def forward(
        self, images: torch.Tensor, task: str | Sequence[str] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """task: one name, or one name per image. None: the active tuner."""
        if task is None and self._is_disabled():
            return self.backbone(images)
        if task is None or isinstance(task, str):
            return self.for_task(task or self._active)(images)
        if len(task) != len(images):
            raise UserError(
                f'{len(task)} tasks for {len(images)} images; give one for each image, or one for all.'
            )
        models = {name: self.for_task(name) for name in dict.fromkeys(task)}
        rows = rows_by_name(task)
        together = [name for name in rows if name in self._placed]
        features: dict[str, torch.Tensor] = {}
        if len(together) > 1:
            with suppress(CannotMix):  # images of another size may have other windows than the dry run's
                features = _forward(self._mixed, images, {name: rows[name] for name in together})
        logits: list[torch.Tensor] = [torch.empty(0)] * len(images)
        for name, model in models.items():
            of_task = rows[name]
            own_logits = model.outputs_of(features[name]) if name in features else model(images[of_task])
            for i, row in zip(of_task, own_logits):
                logits[i] = row
        return logits


def with_same_weights(backbone: Backbone) -> Backbone:
    """A copy with its own modules, and with the parameters and buffers of `backbone`.

    Buffers into which a forward writes are copied too.
    """
    same = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
    for buffer in written_buffers(backbone):
        same.pop(id(buffer), None)
    return copy.deepcopy(backbone, same)


_DISABLED: ContextVar[tuple[TunedModel, ...]] = ContextVar('_DISABLED', default=())


def _placed(shared: Backbone, name: str, model: ImageClassifier) -> list[Reweight | FlowEdit] | None:
    """Puts a classifier's edits onto `shared`, for the rows of this classifier. Returns the edits.

    If the edits cannot mix: returns None, and puts no edit.
    """
    if isinstance(model.head, MapHead):  # the features are pooled
        return None
    if model.is_merged:  # merged edits are in the weights, and cannot be put elsewhere
        return None
    try:
        placed = put(name, model.edits, model.backbone.network, shared.sites)
    except CannotMix:
        return None
    device = next(shared.parameters()).device
    images = torch.zeros(2, 3, *shared.preprocessing.size, device=device)
    try:
        with torch.no_grad(), in_eval(shared), in_eval(model):
            _forward(shared, images, {'': [0], name: [1]})
    except CannotMix:
        take_off(placed)
        return None
    return placed


def _forward(
    backbone: Backbone, images: torch.Tensor, rows: Mapping[str, list[int]]
) -> dict[str, torch.Tensor]:
    """One forward over the images of several tuners. Returns {name: its features (b, C)}."""
    with mixed(rows) as (order, slices):
        features = backbone(images[order])
    return {name: features[rows_of_set] for name, rows_of_set in slices.items()}
