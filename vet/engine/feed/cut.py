"""Cut: the place in a network before which no tuner edits anything, so that what reaches it can be kept and
gone on from.

It is the input of a block, or of what follows the blocks, or the network's own output where no edit lies
within it. No name and
no kind of network is asked for: the latest place from which the network gives, bit for bit, what it gives
from images is the cut.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn

from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.reweight import forward_replaced, reweights_of
from vet.errors import UserError
from vet.torch_private import hooks_after, hooks_before, map_tensors


class NoCutError(UserError):
    """Why nothing of a network can be kept."""


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward at the cut
    pass


@dataclass
class _Call:
    """When the first call of a module began and ended, what it gave (of a batch, the first image's),
    and how many there were.
    """

    began: int
    ended: int = 0
    output: Any = None
    times: int = 1


@dataclass
class Cut:
    """What reaches `place` is kept: the input of a module of `network`, or, where it is the network, its own
    output.

    skipped: the modules that are called before it, and what stands for their output.
    """

    network: nn.Module
    name: str  # of the place
    place: nn.Module
    skipped: dict[nn.Module, Any]
    image_shape: torch.Size
    needs_images: bool  # for an edit after the network, such as a side network
    shape: torch.Size = field(init=False)  # of what is kept, per image
    strides: tuple[int, ...] = field(
        init=False
    )  # with the batch's: class tokens are, where they lie among others
    dtype: torch.dtype = field(init=False)

    def reach(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> what reaches the cut (B, …); the rest of the network does not run."""

        def stop(module: nn.Module, args: tuple, output: Any = None) -> None:
            raise _Reached(args[0] if output is None else output)

        hooked: Any = (
            self.network.register_forward_hook
            if self.place is self.network
            else self.place.register_forward_pre_hook
        )
        with hooked(stop, prepend=True):
            try:
                self.network(images)
            except _Reached as reached:
                return reached.args[0]
        raise RuntimeError(f'{self.name!r} is not called')

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """As reach, and learns what the kept tensors are like."""
        kept = self.reach(images)
        self.shape, self.strides, self.dtype = kept.shape[1:], kept.stride(), kept.dtype
        return kept

    @contextmanager
    def resumed(self, kept: torch.Tensor) -> Iterator[None]:
        """Within, a call of the network with as many images goes on from what reached the cut, kept as
        float32.
        """
        kept = kept.to(self.dtype)
        if self.strides[0] == max(self.strides):  # kernels go by them, and round otherwise where they differ
            kept = torch.empty_strided(kept.shape, self.strides, dtype=kept.dtype, device=kept.device).copy_(
                kept
            )
        with ExitStack() as stack:
            for module, output in self.skipped.items():
                stack.enter_context(forward_replaced(module, partial(_for_batch, output, len(kept))))
            if self.place is self.network:
                stack.enter_context(forward_replaced(self.network, lambda *_: kept))
            else:
                stack.enter_context(
                    self.place.register_forward_pre_hook(lambda _, args: (kept, *args[1:]), prepend=True)
                )
            yield

    def blank(self, batch: int, device: torch.device) -> torch.Tensor:
        """What stands for a batch's images where they are not needed."""
        return torch.zeros((), device=device).expand(batch, *self.image_shape)

    def _holds(self, images: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether the network gives from the cut what it gives from images."""
        try:
            kept = self.look(images)
            with self.resumed(kept):
                given = self.network(images if self.needs_images else self.blank(len(images), images.device))
        except (RuntimeError, AssertionError, ValueError, AttributeError, TypeError, IndexError):
            return False
        return len(kept) == len(images) and torch.equal(given, expected)


class Resumed(nn.Module):
    """The classifier from the cut on: images (B, 3, H, W), what reached the cut (B, …) -> logits (B, K)"""

    def __init__(self, model: ImageClassifier, cut: Cut):
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        with self.cut.resumed(kept):
            return self.model(images)


@torch.no_grad()
def find_cut(model: ImageClassifier, image_shape: torch.Size) -> Cut:
    """The latest cut of the model as it is tuned, for images of a shape. NoCutError where there is
    none, or no block before it.
    """
    network, blocks = model.backbone.network, model.backbone.sites.blocks
    modules = dict(network.named_modules())
    edited = _edited(model)  # before the trace, which hooks every module
    noise = torch.randn(3, *image_shape, generator=torch.Generator().manual_seed(0)).to(
        next(network.parameters()).device
    )
    with in_eval(model):
        expected, calls = _trace(network, noise)
        began = {name: _caller(modules, name, calls).began for name in modules}

        def may_be_cut(name: str) -> bool:
            inside = name.startswith(tuple(f'{block}.' for block in blocks))
            return (
                modules[name] in calls
                and calls[modules[name]].times == 1
                and not inside
                and began[name] <= min(began[edit] for edit in edited)
                and any(calls[modules[block]].ended < began[name] for block in blocks)
            )

        places = sorted(filter(may_be_cut, modules), key=began.__getitem__, reverse=True) if edited else ['']
        for name in places:
            cut = Cut(
                network,
                name,
                modules[name],
                _before(calls, began[name]),
                image_shape,
                bool(hooks_after(network)),
            )
            if cut._holds(noise, expected):
                return cut
    if places:
        raise NoCutError(
            'between the blocks of the network, no single tensor is all that the rest of it reads'
        )
    raise NoCutError(
        f'a tuner edits {min(edited, key=began.__getitem__) or "the network"!r}, and no block lies before it'
    )


def _edited(model: ImageClassifier) -> list[str]:
    """The modules whose input, weight or output a tuner changes; not the network where it is its output
    alone.
    """
    trained = {id(parameter) for parameter in model.trainable().values()}
    return [
        name
        for name, module in model.backbone.network.named_modules()
        if hooks_before(module)
        or (name and hooks_after(module))
        or reweights_of(module)
        or any(id(parameter) in trained for parameter in module.parameters(recurse=False))
    ]


def _trace(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[nn.Module, _Call]]:
    """What the network gives, and its modules' calls."""
    calls: dict[nn.Module, _Call] = {}
    clock = count(1)

    def begin(module: nn.Module, args: tuple) -> None:
        if module in calls:
            calls[module].times += 1
        else:
            calls[module] = _Call(next(clock))

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        calls[module].ended = next(clock)
        calls[module].output = map_tensors(
            lambda t: t[:1].clone() if t.shape[:1] == (len(images),) else t, output
        )

    with ExitStack() as stack:
        for module in network.modules():
            stack.enter_context(module.register_forward_pre_hook(begin))
            stack.enter_context(module.register_forward_hook(end))
        return network(images), calls


def _caller(modules: dict[str, nn.Module], name: str, calls: dict[nn.Module, _Call]) -> _Call:
    """The call of the module of that name, or of the nearest around it that is called."""
    while modules[name] not in calls:
        name = name.rpartition('.')[0]
    return calls[modules[name]]


def _before(calls: dict[nn.Module, _Call], moment: int) -> dict[nn.Module, Any]:
    """The outermost modules whose one call ended before a moment, and their outputs."""
    found, end = {}, 0
    for module, call in sorted(calls.items(), key=lambda item: item[1].began):
        if call.times == 1 and end < call.began and call.ended < moment:
            found[module], end = call.output, call.ended
    return found


def _for_batch(output: Any, batch: int, *args: Any, **kwargs: Any) -> Any:
    """The output of one image, for each of a batch. What is the same for any batch goes as it is."""
    return map_tensors(lambda t: t.expand(batch, *t.shape[1:]) if t.shape[:1] == (1,) else t, output)
