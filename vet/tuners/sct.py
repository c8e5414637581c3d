"""SCT: tunes only the channels that are important for the task.   Zhao et al. 2023, arXiv:2309.08513"""

from collections.abc import Iterable
from functools import partial
from typing import Annotated

import torch
from torch import nn

from vet.allowed import Counts, Images, OneOf, Places, Positive
from vet.core.attention import Rows
from vet.core.delta import Delta
from vet.core.deltas import Carry, Kept, this_forward
from vet.core.first_images import first_images
from vet.core.modes import in_eval
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS

# B images, C channels, K salient ones


MODES = ('attn', 'mlp', 'qkv', 'output')


@TUNERS.register_module()
class SCT(Tuner):
    """h_S + s (W h_S + b) in place of h_S, the K salient channels S of a tensor h. W is (K, K).

    mode: the tensor h. 'attn': the sum of a block's input and its attention, from which the FFN and the
        block's output are computed. 'mlp': the output of the FFN, before its sum. 'qkv': the queries, and
        apart from them the values, each with its own S, W and b. 'output': the output of the module that `at`
        names, such as a whole block.
    `prepare` chooses S on the frozen network, and S is saved. Before `prepare`, S is the first K channels.
    For each class, a channel has a norm: the L2 norm of its values, over all patch tokens of the class's
    training images. The importance of a channel is the mean of these norms over the classes. S has the K
    channels of the largest importance. The values are those of h; in the mode 'mlp', those of the block's
    output.
    channels: K; one value, a list by depth (0 skips a block), or a dict from module path patterns to values.
    images: the number of training images that choose S. vet takes the images as they are augmented. The paper
        takes all images, not augmented; VTAB-1k has 1000.
    scale: s. The paper chooses s for each task. The released code does not use its s, which is s = 1.
    at: blocks; for 'output', any modules.
    W starts normal of std 0.02, cut at ±2, b at zero. So the start is near the identity, but is not the
    identity.
    Against the released code: sct_attn (its default) is 'attn', sct_mlp is 'mlp' and sct_qkv is 'qkv', in
    output, gradients (largest difference 1e-15 of 3), start and choice of channels. Up to format 2 of model
    folders, vet's SCT was 'output'.
    Parameters: K^2 + K per block, twice for 'qkv'; ViT-B/16, K = 96: 111,744 (the paper's 0.11 M).
    """

    identity_at_start = False

    def __init__(
        self,
        channels: Counts = 96,
        mode: Annotated[str, OneOf(MODES)] = 'attn',
        scale: Positive = 1.0,
        images: Images = 1000,
        at: Places = 'block',
    ):
        super().__init__(at)
        if mode not in MODES:
            raise UnknownNameError('mode of SCT', mode, MODES)
        if scale == 0 or images < 1:
            raise UserError(
                f'scale is {scale} and images is {images}; scale must not be 0, images must be at least 1.'
            )
        self.channels = channels
        self.mode = mode
        self.scale = scale
        self.images = images

    def shared(self, sites: list[Site]) -> None:
        self.watched: list[
            tuple[Watch, SalientChannels]
        ] = []  # who sees the values, whose channels are chosen

    def tune(self, site: Site) -> None:
        count = site.at_depth(self.channels, 'channels')
        if not count:
            return
        if not site.out_shape or count > site.out_shape[site.axis]:
            raise refuse(self, site, f'{count} channels or more')
        prefix = site.num_prefix_tokens if len(site.out_shape) == 2 else 0
        if self.mode == 'qkv':
            qkv, rows = self._qkv(site)
            for part in 'qv':
                among = torch.arange(len(qkv.weight))[rows[part]]
                salient = SalientChannels(count, len(qkv.weight), -1, prefix, self.scale, among)
                self.after(qkv, salient)
                self.watched.append((salient, salient))
            return
        salient = SalientChannels(count, site.out_shape[site.axis], site.axis, prefix, self.scale)
        watch: Watch = salient
        if self.mode == 'attn':
            kept: Kept = {}
            salient.kept = kept
            self.before(self._norm(site), salient)
            self.after(site, Carry(kept))
        elif self.mode == 'mlp':
            watch = Watch(site.axis, prefix)
            self.after(self._ffn(site), salient)
            self.after(site, watch)
        else:
            self.after(site, salient)
        self.watched.append((watch, salient))

    def _qkv(self, block: Site) -> tuple[Site, dict[str, Rows]]:
        """The projection of a block to queries, keys and values, and the rows of each."""
        assert self.backbone is not None
        sites = self.backbone.sites
        names = [name for name in sites.roles().get('attn.qkv', ()) if name.startswith(f'{block.name}.')]
        found = sites.find(names)[0] if len(names) == 1 else None
        rows = self.rows_of_parts(found) if found else {}
        if found is None or not {'q', 'v'} <= rows.keys() or found.windows_per_image != 1:
            raise refuse(
                self,
                block,
                f'a block with one fused qkv over the whole image in the mode {self.mode!r}{OTHER}',
            )
        return found, rows

    def _ffn(self, block: Site) -> Site:
        """The one FFN of a block, which keeps the block's shape."""
        assert self.backbone is not None
        site = self.backbone.sites.ffn_of(block)
        if site is None or site.out_shape != block.out_shape or site.axis != block.axis:
            raise refuse(self, block, f'a block with one FFN of its shape in the mode {self.mode!r}{OTHER}')
        return site

    def _norm(self, block: Site) -> Site:
        """The norm before the FFN of a block."""
        assert self.backbone is not None
        norm = self.backbone.sites.norm_before(self._ffn(block).name)
        if norm is None or norm.in_shape != block.out_shape:
            raise refuse(self, block, f"a block with a norm before its FFN in the mode 'attn'{OTHER}")
        return norm

    def prepare(self, batches: Iterable) -> None:
        """Chooses the channels from batches of images (B, 3, H, W) and labels (B,).

        No update acts meanwhile.
        """
        assert self.backbone is not None, 'attach first'
        squares: list[dict[int, torch.Tensor]] = [{} for _ in self.watched]
        try:
            with torch.no_grad(), in_eval(self.backbone):
                for _, salient in self.watched:
                    salient.rests = True
                for images, labels in first_images(batches, self.images):
                    for (watch, _), by_class in zip(self.watched, squares):
                        watch.watch = partial(_add_squares, by_class, labels)
                    self.backbone(images)
                for (_, salient), by_class in zip(self.watched, squares):
                    if by_class:
                        importance_C = torch.stack([square.sqrt() for square in by_class.values()]).mean(0)
                        salient.choose(importance_C)
                    if torch.distributed.is_initialized():  # each process has seen its own images
                        torch.distributed.broadcast(salient.index, 0)
        finally:
            for watch, salient in self.watched:
                watch.watch = None
                salient.rests = False


OTHER = " (mode='output' acts behind any module)"


class Watch(Delta):
    """y -> y. Shows the patches of y during `prepare`."""

    def __init__(self, axis: int, num_prefix_tokens: int):
        super().__init__()
        self.axis = axis
        self.num_prefix_tokens = num_prefix_tokens
        self.watch: partial | None = None  # during `prepare`: a function that sees y

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        y = x if y is None else y
        if self.watch is not None:
            self.watch(y.movedim(self.axis, -1)[:, self.num_prefix_tokens :])
        return y


class SalientChannels(Watch):
    """y (.., C, ..) -> y, with K changed channels. `index` holds the numbers of these channels.

    among: the numbers to choose from. None: all.
    kept: gets the change, for Carry.
    """

    bound_to_weight = ('linear.weight', 'linear.bias')

    def __init__(
        self,
        count: int,
        channels: int,
        axis: int,
        num_prefix_tokens: int,
        scale: float,
        among: torch.Tensor | None = None,
    ):
        super().__init__(axis, num_prefix_tokens)
        self.among = torch.arange(channels) if among is None else among
        self.channels = channels
        self.scale = scale
        self.linear = nn.Linear(count, count)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.index: torch.Tensor
        self.register_buffer('index', self.among[:count].clone())
        self.rests = False  # during `prepare`, y does not change
        self.kept: Kept | None = None

    def choose(self, importance_C: torch.Tensor) -> None:
        among = self.among.to(importance_C.device)
        best = importance_C[among].topk(len(self.index)).indices
        self.index.copy_(among[best].sort().values)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        y = super().forward(x, y)
        if self.rests:
            return y
        salient = y.index_select(self.axis, self.index).movedim(self.axis, -1)
        update = self.scale * self.linear(salient).movedim(-1, self.axis).to(y.dtype)
        if self.kept is None:
            return y.index_add(self.axis, self.index, update)
        change = torch.zeros_like(y).index_add(self.axis, self.index, update)
        self.kept[this_forward()] = change
        return y + change


def _add_squares(by_class: dict[int, torch.Tensor], labels: torch.Tensor, y: torch.Tensor) -> None:
    """Adds, for each class, the sum of squares over the places of y (B, …, C), in float64."""
    squares_BC = y.double().square().flatten(1, -2).sum(1)
    for label in labels.unique().tolist():
        by_class[label] = by_class.get(label, 0) + squares_BC[labels == label].sum(0)
