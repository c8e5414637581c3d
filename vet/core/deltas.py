"""Deltas that several tuners share. A delta is a small trainable module that a tuner places at a site."""

import math
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.core.attention import Rows
from vet.core.delta import Delta
from vet.core.drop_path import DropPath
from vet.core.output_first import TRANSPOSED
from vet.core.products import add_product
from vet.core.reweight import reweights_of
from vet.core.site import Site


class LowRankUpdate(Delta):
    """W + B A, for a class whose `factors` gives A (k, in) and B (out, k).

    A convolution's weight (out, in / groups, kH, kW) is taken as (out, in kH kW / groups).
    """

    reads_weight = False
    has_routes = True

    def adds_product(self) -> bool:
        return type(self).split is LowRankUpdate.split and not (self.training and self.dropout)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """weight (out, in, …), bias (out,) or None -> the same shapes"""
        A, B = self.factors()
        return weight + (B @ A).view_as(weight).to(weight.dtype), bias

    def splits(self, module: nn.Module) -> bool:
        """Whether B (A x) is exact for this module. B (A x) is cheaper than W + B A and its gradient."""
        return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + B A x: tokens x (…, in), y (…, out), or maps (B, in, H, W), (B, out, H', W').

        May write into y.
        """
        return add_product(module, F.dropout(x, self.dropout, self.training), y, *self.factors())


class LowRank(LowRankUpdate):
    """W + scale B A, on whole weights or on parts of their rows (the q, k or v of a fused projection).

    weight_shape: (out, in) of a Linear or (out, in / groups, kH, kW) of a convolution, taken as (out, in kH
        kW / groups).
    rows: the parts of `out`; each part has its own pair (A_i, B_i). A is (pairs x rank, in), B is (rows,
        rank).
    A starts uniform as in nn.Linear, B at zero. So the update starts at zero.
    """

    shares: type[nn.Module] | None = None  # a module that all deltas of a tuner use; made once
    # gathers(tuner, edits, batches, images): a tensor for each edit, from training images, for `begin`
    gathers: Callable[..., list[torch.Tensor]] | None = None
    reads_inputs = False  # whether `gathers` reads the inputs of a Linear that is called
    takes_dropout = True
    linear_in: tuple[str, ...] = ('B',)

    def __init__(
        self,
        weight_shape: torch.Size,
        rank: int,
        scale: float = 1.0,
        dropout: float = 0.0,
        rows: list[Rows] | None = None,
    ):
        super().__init__()
        self.out_features = weight_shape[0]
        in_features = math.prod(weight_shape[1:])
        self._rows = rows or [slice(0, self.out_features)]
        for i, part_rows in enumerate(self._rows):
            if isinstance(part_rows, torch.Tensor):  # a buffer, so that the numbers go to the weight's device
                self.register_buffer(f'rows_{i}', part_rows, persistent=False)
        self.sizes = [
            part_rows.stop - part_rows.start if isinstance(part_rows, slice) else len(part_rows)
            for part_rows in self._rows
        ]
        self.rank = rank
        self.scale = scale
        self.dropout = dropout
        self.make(in_features, sum(self.sizes))

    @property
    def rows(self) -> list[Rows]:
        """The parts, as slices or as row numbers on the device of the weight."""
        return [
            part_rows if isinstance(part_rows, slice) else self.get_buffer(f'rows_{i}')
            for i, part_rows in enumerate(self._rows)
        ]

    def make(self, in_features: int, num_rows: int) -> None:
        """Makes the parameters."""
        self.A = nn.Parameter(torch.empty(len(self._rows) * self.rank, in_features))
        self.B = nn.Parameter(torch.zeros(num_rows, self.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        """Before training: takes numbers from the frozen weight (out, in, …), or from the shared module."""

    def begin(self, weight: torch.Tensor, found: torch.Tensor) -> None:
        """Before step 0: takes numbers from the frozen weight (out, in, …) and from what `gathers` gave."""

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.A, self.full_B()

    def full_B(self) -> torch.Tensor:
        """scale B as (out, pairs x rank): block-diagonal over the parts. Rows of no part are zero."""
        return self.placed(self.scale * self.B)

    def placed(self, B: torch.Tensor) -> torch.Tensor:
        """(rows, rank) -> (out, pairs x rank)"""
        pairs = len(self._rows)
        if B.shape[0] == self.out_features and pairs == 1:
            return B
        full = B.new_zeros(self.out_features, pairs * self.rank)
        for pair, (rows, B_i) in enumerate(zip(self.rows, B.split(self.sizes))):
            full[rows, pair * self.rank : (pair + 1) * self.rank] = B_i
        return full

    def extra_repr(self) -> str:
        return f'{self.out_features} rows, rank={self.rank}, scale={self.scale:g}, pairs={len(self._rows)}'


class Bottleneck(Delta):
    """u(h) = scale (W2 act(W1 h + b1) + b2) along the channel axis, added to the flow.

    y + u(y), or y + u(x) in parallel. If y is a smaller map than x, u reads every s-th position of x. With
    `kept`, x is the tensor that a Keep before has kept.

    axis: -1 for tokens (B, N, C) and maps (B, H, W, C), -3 for maps (B, C, H, W).
    scale: a number, or 'learned' (one number) or 'channel' (one per channel), which start at 1.
    dropout: before W2. drop_path: the share of images whose u is dropped. Both in training alone.
    init: 'zero' (W1 as nn.Linear draws it, W2 = 0: the identity), 'houlsby' (normal of std 0.01, cut at two),
        'bert' (normal of std 0.02) or 'xavier'; biases start at zero. Parameters: width (C + C') + width +
        C', and the learned scale's.
    """

    by_token = True
    ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = dict(
        gelu=nn.GELU, relu=nn.ReLU, silu=nn.SiLU, tanh=nn.Tanh, none=nn.Identity
    )
    INITS: Mapping[str, Callable[[torch.Tensor], object]] = dict(
        zero=lambda weight: None,
        bert=partial(nn.init.normal_, std=0.02),
        xavier=nn.init.xavier_uniform_,
        houlsby=partial(nn.init.trunc_normal_, std=0.01, a=-0.02, b=0.02),
    )
    SCALES = ('learned', 'channel')

    def __init__(
        self,
        channels: int,
        width: int,
        axis: int = -1,
        *,
        out_channels: int | None = None,
        parallel: bool = False,
        activation: str = 'gelu',
        scale: float | str = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        init: str = 'zero',
        kept: 'Kept | None' = None,
    ):
        super().__init__()
        out_channels = out_channels or channels
        self.axis = axis
        self.parallel = parallel
        self.kept = kept
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, out_channels)
        self.act = self.ACTIVATIONS[activation]()
        self.drop = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)
        self.scale: float | str | nn.Parameter = scale
        if scale in self.SCALES:
            self.scale = nn.Parameter(torch.ones(out_channels if scale == 'channel' else 1))
        for layer in (self.down, self.up):
            self.INITS[init](layer.weight)
            nn.init.zeros_(layer.bias)
        if init == 'zero':
            nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """x is the input, y the output (None: x is edited itself) -> the edited y"""
        y = x if y is None else y
        if self.kept is not None:
            x = self.kept.pop(this_forward())
        if self.parallel and x.dim() == 3:
            # without the tokens that another tuner added to the input and removed from the output
            x = x[:, : y.shape[1]]
        h = (x if self.parallel else y).movedim(self.axis, -1)
        if self.parallel and h.dim() == 4:
            h = strided(h, y.movedim(self.axis, -1).shape)
        u = self.scale * self.drop_path(self.up(self.drop(self.act(self.down(h)))))
        return y + u.movedim(-1, self.axis).to(y.dtype)


Kept = dict[int, torch.Tensor]  # by forward; has entries only between a Keep and the delta that reads it


def this_forward() -> int:
    """A key of the running forward: the thread.

    Threads share the modules, but not what a forward keeps. A compiled graph is one forward, and cannot ask
    for its thread.
    """
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Sides(dict[tuple[int, int], torch.Tensor]):
    """{(forward, number): a tensor that flows beside the blocks}, from block to block.

    Gradient checkpointing runs a block again, and reads its tensor then. A copy or a pickle is empty.
    """

    def end(self) -> None:
        """Removes the tensors of this forward, unless a backward pass may read them."""
        if not torch.is_grad_enabled():
            forward = this_forward()
            for key in [key for key in list(self) if key[0] == forward]:
                self.pop(key, None)

    def __deepcopy__(self, memo: dict[int, object]) -> 'Sides':
        return Sides()

    def __reduce__(self) -> tuple[type['Sides'], tuple[()]]:
        return Sides, ()


class Keep(Delta):
    """x -> x. Keeps x for a delta that acts later in the same forward."""

    by_token = True

    def __init__(self, kept: Kept):
        super().__init__()
        self.kept = kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept[this_forward()] = x
        return x


class Carry(Delta):
    """y + the change that a delta within the block made to the residual, and put into `kept`."""

    def __init__(self, kept: Kept):
        super().__init__()
        self.kept = kept

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        change = self.kept.pop(this_forward(), None)
        if change is None:
            return y
        return y + (change[:, : y.shape[1]] if change.dim() == y.dim() else change.view_as(y))


def follows(shape: torch.Size, out_shape: torch.Size, axis: int) -> bool:
    """Whether the output has the positions of the input, or is a smaller map: shapes per image."""
    sizes, out_sizes = _positions(shape, axis), _positions(out_shape, axis)
    if len(sizes) != 2 or len(out_sizes) != 2:
        return sizes == out_sizes
    return all(out <= size for size, out in zip(sizes, out_sizes))


def _positions(shape: torch.Size, axis: int) -> list[int]:
    """The shape without the channel axis, which is counted from the end."""
    return [size for i, size in enumerate(shape, -len(shape)) if i != axis]


def strided(x_BHWC: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """x at as many positions as a map of `shape` (B, H', W', C') has: every s-th, as evenly as they fit."""
    return x_BHWC[:, _steps(x_BHWC.shape[1], shape[1]), _steps(x_BHWC.shape[2], shape[2])]


def _steps(size: int, wanted: int) -> slice:
    """A convolution of stride s without padding gives the middle positions; with padding, the first is 0."""
    if size == wanted:
        return slice(None)
    step = min((size - 1) // max(wanted - 1, 1), -(-size // wanted))
    start = (size - 1 - (wanted - 1) * step) // 2
    return slice(start, start + (wanted - 1) * step + 1, step)


class DropLast(Delta):
    """(B, N + count, C) -> (B, N, C): removes added tokens, which stand last."""

    by_token = True

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # if the last block gives only the class token, (B, 1, C), nothing is removed
        return y[:, : max(1, y.shape[1] - self.count)]


class Unbiased(Delta):
    """A bias of the scores (…, N, N) -> (…, N + P, N + P): zero where a query or a key is a prompt.

    Of a mask of bool: True, so that the query sees the key.
    """

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        return F.pad(bias, (0, self.length, 0, self.length), value=bias.dtype == torch.bool)


class InputLowRank(Delta):
    """W (I + B A) and bias + W shift: x becomes x + B A x + shift before a pointwise weight W (out, in).

    A class gives A (k, in) and B (in, k) in `factors`, and its (in,) or None in `shift`. With dropout, a
    class also gives `hidden` and `outer_shift`: x becomes x + B drop(A x + hidden) + outer_shift in training.
    """

    reads_weight = False
    turns_input = True

    def hidden(self) -> torch.Tensor | None:
        """The part of `shift` that B maps, (k,)."""
        return None

    def outer_shift(self) -> torch.Tensor | None:
        """The part of `shift` that B does not map, (in,)."""
        return self.shift()

    def shift(self) -> torch.Tensor | None:
        """(in,), or None if the weight has no bias that could hold the shift"""

    @staticmethod
    def fits(site: Site) -> bool:
        """Whether the site's weight sees one position at a time: a Linear, or an ungrouped 1 x 1
        convolution.
        """
        conv: Any = site.module
        kernel = tuple(site.weight.shape[2:])
        if not kernel:
            return site.weight.dim() == 2
        pads = conv.padding not in ((0,) * len(kernel), 'same', 'valid')
        if isinstance(conv, TRANSPOSED):  # which gives its bias alone between the strides
            pads = pads or max(*conv.stride, *(1 + pad for pad in conv.output_padding)) > 1
        return set(kernel) == {1} and conv.groups == 1 and not pads

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """weight (out, in, …), bias (out,) or None -> the same shapes"""
        A, B = self.factors()
        shift = self.shift()
        W = weight.flatten(1).to(A.dtype)  # a user's network in bf16 beside float32 factors
        new = weight + ((W @ B) @ A).view_as(weight).to(weight.dtype)
        return new, bias if shift is None or bias is None else bias + (W @ shift).to(bias.dtype)

    def splits(self, module: nn.Module) -> bool:
        """Whether x may change in place of W. No other delta may reweight the module."""
        return type(module) is nn.Linear and len(reweights_of(module)) == 1

    def turned(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x + B A x + shift: (…, in)"""
        A, B = (factor.to(x.dtype) for factor in self.factors())
        if self.dropout and self.training:
            h = F.dropout(F.linear(x, A, self.hidden()), self.dropout)
            return x + F.linear(h, B, self.outer_shift())
        return x + F.linear(F.linear(x, A), B, self.shift())
