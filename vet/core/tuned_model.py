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

from vet.core.backbone import Backbone
from vet.core.caches import written_buffers
from vet.core.delta import Delta, declared
from vet.core.edits import Hook
from vet.core.maps import MapHead
from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.multitask import SeveralTasks
from vet.core.reweight import Reweight, all_split
from vet.errors import UserError


class TunedModel(SeveralTasks):
    """Normalised images (B, 3, H, W) and the names of their tuners -> logits.

    Logits (B, K) of one tuner, or a list of B logits (K_i,) for several tuners.
    tasks: {name: its classifier}, each on a copy `with_same_weights` of `backbone`. `backbone` stays
        untouched.
    A batch of several tuners is one forward of the backbone, if the edits of all act on each image by itself.
    Such edits are low-rank updates of Linear layers and convolutions, adapters, and additions to the
    features. Other tuners form weights or add tokens (thawed values, prompts). They get one forward per
    tuner. Threads may share the model. Each thread then names its tuner in the call, because `use` acts on
    all threads. `disabled` acts on its own thread.
    """

    def __init__(self, backbone: Backbone, tasks: Mapping[str, ImageClassifier]):
        super().__init__()
        for name, model in tasks.items():
            if model.backbone is backbone or model.backbone.identity['sha256'] != backbone.identity['sha256']:
                raise UserError(
                    f'the classifier {name!r} is on the backbone itself, which must stay untouched, or on '
                    'other weights; attach its tuners to a copy: with_same_weights(backbone).'
                )
        self.backbone, self._models = backbone, nn.ModuleList(tasks.values())
        self._tasks = dict(tasks)
        self._active: str | None = None
        self._mixed = with_same_weights(backbone)
        self.mixing = [name for name, model in tasks.items() if _mixes(self._mixed, name, model)]
        self.eval()

    @property
    def active(self) -> str | None:
        """The tuner of calls that name none, as `use` chose it. None within `disabled`."""
        return None if self._is_disabled() else self._active

    def use(self, task: str) -> None:
        """Makes a tuner the active one. No weight is touched."""
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
        rows: dict[str, list[int]] = {name: [] for name in models}
        for i, name in enumerate(task):
            rows[name].append(i)
        together = [name for name in rows if name in self.mixing]
        features: dict[str, torch.Tensor] = {}
        if len(together) > 1:
            with suppress(_CannotMix):  # images of another size may have other windows than the dry run's
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
# of a mixed forward: the number of images, and {tuner: the slice of its images}
_ROWS: ContextVar[tuple[int, dict[str, slice]]] = ContextVar('_ROWS')


class _CannotMix(Exception):
    """An edit does not act on each image by itself."""


class _OnOwn(Delta):
    """A delta that acts only on the rows of its tuner in a mixed batch. windows: rows of an image at its
    module.
    """

    def __init__(self, name: str, delta: nn.Module, windows: int):
        super().__init__()
        self.name = name
        self.delta = delta
        self.windows = windows

    def rows(self, x: torch.Tensor, y: torch.Tensor | None = None) -> slice:
        images, own = _ROWS.get()
        if len(x) != images * self.windows or (y is not None and len(y) != len(x)):
            raise _CannotMix
        rows = own.get(self.name, slice(0, 0))
        return slice(rows.start * self.windows, rows.stop * self.windows)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """For hooks: delta(x) or delta(x, y), on the rows of its tuner"""
        whole, rows = x if y is None else y, self.rows(x, y)
        if rows.start == rows.stop:
            return whole
        part = self.delta(x[rows]) if y is None else self.delta(x[rows], y[rows])
        if part.shape != whole[rows].shape:
            raise _CannotMix
        return torch.cat([whole[: rows.start], part.to(whole.dtype), whole[rows.stop :]])

    def splits(self, module: nn.Module) -> bool:
        return True

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Writes into y. y is the module's fresh output, which nobody else holds."""
        rows = self.rows(x)
        if rows.start < rows.stop:
            part = declared(self.delta).split(module, x[rows], y[rows])
            if part.data_ptr() != y[rows].data_ptr():
                y[rows] = part
        return y


def _mixes(mixed: Backbone, name: str, model: ImageClassifier) -> bool:
    """Puts a classifier's edits onto `mixed`, for the rows of this classifier.

    If the edits cannot mix: returns False, and puts no edit.
    """
    if isinstance(model.head, MapHead):  # the features are pooled
        return False
    if model.is_merged:  # merged edits are in the weights, and cannot be put elsewhere
        return False
    paths = {id(module): path for path, module in model.backbone.network.named_modules()}
    put: list[Reweight | Hook] = []
    device = next(mixed.parameters()).device
    try:
        for edit in model.edits:
            put.append(_put(mixed, name, edit, paths))
        with torch.no_grad(), in_eval(mixed), in_eval(model):
            _forward(mixed, torch.zeros(2, 3, *mixed.preprocessing.size, device=device), {'': [0], name: [1]})
    except _CannotMix:
        while put:
            put.pop().undo()
        return False
    return True


def _put(mixed: Backbone, name: str, edit: object, paths: Mapping[int, str]) -> Reweight | Hook:
    if not isinstance(edit, (Reweight, Hook)) or (isinstance(edit, Reweight) and not all_split(edit.host)):
        raise _CannotMix
    if isinstance(edit, Hook) and edit.argument:  # the rows of all images share the argument
        raise _CannotMix
    path = paths[id(edit.host if isinstance(edit, Reweight) else edit.module)]
    module, own = mixed.network.get_submodule(path), _OnOwn(name, edit.delta, mixed.sites.calls[path].batch)
    if isinstance(edit, Hook):
        return Hook.before(module, own) if edit.is_before else Hook.after(module, own, edit.place)
    made = Reweight(module, edit.weight_name, edit.bias_name, own)
    made.apply()
    return made


def _forward(mixed: Backbone, images: torch.Tensor, rows: Mapping[str, list[int]]) -> dict[str, torch.Tensor]:
    """One forward over the images of several tuners. The images of a tuner are neighbours.

    Returns {name: its features (b, C)}.
    """
    order = [i for own in rows.values() for i in own]
    slices, start = {}, 0
    for name, own in rows.items():
        slices[name] = slice(start, start + len(own))
        start += len(own)
    token = _ROWS.set((len(order), slices))
    try:
        features = mixed(images[order])
    finally:
        _ROWS.reset(token)
    return {name: features[rows] for name, rows in slices.items()}
