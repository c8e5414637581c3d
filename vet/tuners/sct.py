"""SCT: tunes only the channels that are important for the task.   Zhao et al. 2023, arXiv:2309.08513"""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Counts, Places, Positive
from vet.core.delta import Delta
from vet.core.modes import in_eval
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

# B images, C channels, K salient ones


@TUNERS.register_module()
class SCT(Tuner):
    """y_S + s (W y_S + b) in place of y_S, the K salient channels S of a block's output. W is (K, K).

    `prepare` chooses S on the frozen network, and S is saved. Before `prepare`, S is the first K channels.
    For each class, a channel has a norm: the L2 norm of its values, over all patch tokens of the class's
    training images. The importance of a channel is the mean of these norms over the classes. S has the K
    channels of the largest importance.
    images: from how many training images S is chosen. vet takes the images as they are augmented. The paper
        takes all images, not augmented; VTAB-1k has 1000.
    scale: s, which the paper chooses for each task.
    W starts normal of std 0.02, cut at ±2, b at zero. So the start is near the identity, but is not the
    identity. The paper's module stands behind the residual sum of the attention or of the FFN. Here the
    module stands behind the block, which is the sum of the FFN. at='attn' tunes the attention's output before
    its sum instead.
    Parameters: K^2 + K per block; ViT-B/16, K = 96: 111,744 (the paper's 0.11 M).
    """

    identity_at_start = False

    def __init__(
        self,
        channels: Counts = 96,
        scale: Positive = 1.0,
        images: Annotated[int, Interval(ge=1, le=10**9)] = 1000,
        at: Places = 'block',
    ):
        super().__init__(at)
        if scale == 0 or images < 1:
            raise UserError(
                f'scale is {scale} and images is {images}; scale must not be 0, images must be at least 1.'
            )
        self.channels = channels
        self.scale = scale
        self.images = images

    def tune(self, site: Site) -> None:
        count = site.at_depth(self.channels, 'channels')
        if not count:
            return
        if not site.out_shape or count > site.out_shape[site.axis]:
            raise refuse(self, site, f'{count} channels or more')
        prefix = site.num_prefix_tokens if len(site.out_shape) == 2 else 0
        self.after(site, SalientChannels(count, site.out_shape[site.axis], site.axis, prefix, self.scale))

    def prepare(self, batches: Iterable) -> None:
        """Chooses the channels from batches of images (B, 3, H, W) and labels (B,).

        No update acts meanwhile.
        """
        assert self.backbone is not None, 'attach first'
        deltas: list[Any] = list(self.deltas.values())
        squares: list[dict[int, torch.Tensor]] = [{} for _ in deltas]
        seen = 0
        try:
            with torch.no_grad(), in_eval(self.backbone):
                for images, labels in batches:
                    for delta, by_class in zip(deltas, squares):
                        delta.watch = partial(_add_squares, by_class, labels)
                    self.backbone(images)
                    seen += len(images)
                    if seen >= self.images:
                        break
                for delta, by_class in zip(deltas, squares):
                    if by_class:
                        importance_C = torch.stack([square.sqrt() for square in by_class.values()]).mean(0)
                        delta.index.copy_(importance_C.topk(len(delta.index)).indices.sort().values)
                    if torch.distributed.is_initialized():  # each process has seen its own images
                        torch.distributed.broadcast(delta.index, 0)
        finally:
            for delta in deltas:
                delta.watch = None


class SalientChannels(Delta):
    """y (.., C, ..) -> y, with K changed channels. `index` holds the numbers of these channels."""

    bound_to_weight = ('linear.weight', 'linear.bias')

    def __init__(self, count: int, channels: int, axis: int, num_prefix_tokens: int, scale: float):
        super().__init__()
        self.channels = channels
        self.axis = axis
        self.num_prefix_tokens = num_prefix_tokens
        self.scale = scale
        self.linear = nn.Linear(count, count)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.index: torch.Tensor
        self.register_buffer('index', torch.arange(count))
        self.watch: partial | None = None  # during `prepare`: a function that sees y; then y does not change

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.watch is not None:
            self.watch(y.movedim(self.axis, -1)[:, self.num_prefix_tokens :])
            return y
        salient = y.index_select(self.axis, self.index).movedim(self.axis, -1)
        update = self.scale * self.linear(salient).movedim(-1, self.axis).to(y.dtype)
        return y.index_add(self.axis, self.index, update)


def _add_squares(by_class: dict[int, torch.Tensor], labels: torch.Tensor, y: torch.Tensor) -> None:
    """Adds, for each class, the sum of squares over the places of y (B, …, C), in float64."""
    squares_BC = y.double().square().flatten(1, -2).sum(1)
    for label in labels.unique().tolist():
        by_class[label] = by_class.get(label, 0) + squares_BC[labels == label].sum(0)
