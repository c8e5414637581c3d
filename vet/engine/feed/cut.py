"""Cut: the place in a network before which no tuner edits anything. The tensor at this place can be kept and
reused.

The cut is the input of a block, or of a module after the blocks. If no edit lies within the network, the cut
is the network's output. vet asks for no name and no kind of network. The cut is the latest place from which
the network gives, bit for bit, the same as from images.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch
from torch import nn

from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.reweight import forward_replaced, reweights_of
from vet.errors import UserError
from vet.torch_private import hooks_after, hooks_before, map_tensors


class NoCutError(UserError):
    """The network has no cut. The message says why."""


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward at the cut
    pass


@dataclass
class _Call:
    """The first call of a module: its begin, its end and its output (for a batch: of the first image).

    times: the number of calls.
    """

    began: int
    ended: int = 0
    output: object = None
    times: int = 1


@dataclass
class Cut:
    """The input of the module `place` of `network` is kept. If `place` is the network, its output is kept.

    skipped: the modules that are called before the place, with an output that stands for their own.
    """

    network: nn.Module
    name: str  # of the place
    place: nn.Module
    skipped: dict[nn.Module, object]
    image_shape: torch.Size
    needs_images: bool  # whether an edit after the network needs the images, such as a side network
    shape: torch.Size = field(init=False)  # of the kept tensor, per image
    # of the kept tensor, with the batch: class tokens keep the strides that they have among other tokens
    strides: tuple[int, ...] = field(init=False)
    dtype: torch.dtype = field(init=False)

    def reach(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> the tensor at the cut (B, …). The rest of the network does not run."""

        def stop(module: nn.Module, args: tuple, output: object = None) -> None:
            raise _Reached(args[0] if output is None else output)

        if self.place is self.network:
            hook = self.network.register_forward_hook(stop, prepend=True)
        else:
            hook = self.place.register_forward_pre_hook(stop, prepend=True)
        with hook:
            try:
                self.network(images)
            except _Reached as reached:
                return reached.args[0]
        raise RuntimeError(f'{self.name!r} is not called')

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """The same as `reach`. Also notes the shape, strides and dtype of the kept tensor."""
        kept = self.reach(images)
        self.shape = kept.shape[1:]
        self.strides = kept.stride()
        self.dtype = kept.dtype
        return kept

    @contextmanager
    def resumed(self, kept: torch.Tensor) -> Iterator[None]:
        """Within this context, the network continues from `kept`, the tensor at the cut (as float32).

        The call of the network must have the same number of images.
        """
        kept = kept.to(self.dtype)
        # other strides may mean other kernels, which round differently
        if self.strides[0] == max(self.strides):
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
        """A tensor that stands for a batch's images if these are not needed."""
        return torch.zeros((), device=device).expand(batch, *self.image_shape)

    def _holds(self, images: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether the network gives the same from the cut as from images."""
        try:
            kept = self.look(images)
            with self.resumed(kept):
                given = self.network(images if self.needs_images else self.blank(len(images), images.device))
        except (RuntimeError, AssertionError, ValueError, AttributeError, TypeError, IndexError):
            return False
        return len(kept) == len(images) and torch.equal(given, expected)


class Resumed(nn.Module):
    """The classifier from the cut on: images (B, 3, H, W), the tensor at the cut (B, …) -> logits (B, K)"""

    def __init__(self, model: ImageClassifier, cut: Cut):
        super().__init__()
        self.model = model
        self.cut = cut

    def forward(self, images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        with self.cut.resumed(kept):
            return self.model(images)


@torch.no_grad()
def find_cut(model: ImageClassifier, image_shape: torch.Size) -> Cut:
    """The latest cut of the tuned model, for images of a shape.

    NoCutError if there is no cut behind a block.
    """
    network = model.backbone.network
    blocks = model.backbone.sites.blocks
    modules = dict(network.named_modules())
    edited = _edited(model)  # before the trace, because the trace hooks every module
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
    """The modules whose input, weight or output a tuner changes.

    A change of the network's output does not count.
    """
    trained = {id(parameter) for parameter in model.trainable().values()}
    edited = []
    for name, module in model.backbone.network.named_modules():
        parameters = {id(parameter) for parameter in module.parameters(recurse=False)}
        is_hooked = hooks_before(module) or (name and hooks_after(module))
        if is_hooked or reweights_of(module) or parameters & trained:
            edited.append(name)
    return edited


def _trace(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[nn.Module, _Call]]:
    """The network's output, and the calls of its modules."""
    calls: dict[nn.Module, _Call] = {}
    clock = count(1)

    def begin(module: nn.Module, args: tuple) -> None:
        if module in calls:
            calls[module].times += 1
        else:
            calls[module] = _Call(next(clock))

    def end(module: nn.Module, args: tuple, output: object) -> None:
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
    """The call of the module `name`, or of the nearest module around it that is called."""
    while modules[name] not in calls:
        name = name.rpartition('.')[0]
    return calls[modules[name]]


def _before(calls: dict[nn.Module, _Call], moment: int) -> dict[nn.Module, object]:
    """The outermost modules whose only call ended before a moment, and their outputs."""
    outputs: dict[nn.Module, object] = {}
    end = 0
    for module, call in sorted(calls.items(), key=lambda item: item[1].began):
        if call.times == 1 and end < call.began and call.ended < moment:
            outputs[module] = call.output
            end = call.ended
    return outputs


def _for_batch(output: object, batch: int, *args: object, **kwargs: object) -> object:
    """The output of one image, repeated for a batch.

    A value that is the same for any batch is not changed.
    """
    return map_tensors(lambda t: t.expand(batch, *t.shape[1:]) if t.shape[:1] == (1,) else t, output)
