"""Kinds of LowRank that start from the frozen weight or from training images: OLoRA, CorDA, LoRA-GA and EVA.

W (out, in), A (r, in), B (out, r), x (in,) an input of the layer. Several parts of rows are stacked, as in
LowRank. OLoRA, CorDA and LoRA-GA compute W + scale (B A - B0 A0), as PiSSA does, so that the output of the
start is the frozen output.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

from vet.core.contrast import refuse_infinite, weight_gradients
from vet.core.deltas import LowRank
from vet.core.first_images import first_images
from vet.core.low_rank import PiSSA
from vet.core.modes import in_eval
from vet.core.reweight import Reweight
from vet.core.tuner import Tuner
from vet.errors import UserError

GAMMA = 16.0  # of LoRA-GA, the default of the authors' code
DAMPING = 0.01  # of CorDA's covariance, the default of the authors' code


class OLoRA(PiSSA):
    """B0 A0 is the first r columns of Q times the first r rows of R, with W = Q R.

    Büyükakyüz 2024, arXiv:2406.01775
    """

    linear_in = ('B', 'B0')

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        require(self, min(*self.sizes, weight[0].numel()))
        parts = [torch.linalg.qr(weight.flatten(1)[rows].float()) for rows in self.rows]
        start_at(self, [R[: self.rank] for _, R in parts], [Q[:, : self.rank] for Q, _ in parts])


class CorDA(PiSSA):
    """scale B0 A0 is the best rank-r part of W C, times C^-1: C = mean of x x' over the training images.

    Yang et al. 2024, arXiv:2406.05223, in the instruction-previewed mode. With W C = U S V': A0 = sqrt(S /
    scale) V' C^-1, B0 = U sqrt(S / scale), the first r of each. As in the authors' code, the inputs of an
    image are divided by their largest value, and C's diagonal gets DAMPING of its mean. The code doubles the
    damping while C^-1 is inexact in float32. Here C^-1 is of float64.
    """

    linear_in = ('B', 'B0')
    reads_inputs = True

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        require(self, min(*self.sizes, weight[0].numel()))
        start_at(self, [self.A], [self.B])  # until `begin`: the usual start, in which B is zero

    @staticmethod
    def gathers(
        tuner: Tuner, edits: Sequence[Reweight], batches: Iterable, images: int
    ) -> list[torch.Tensor]:
        def products(x_BNC: torch.Tensor) -> torch.Tensor:
            largest_B11 = x_BNC.amax((1, 2), keepdim=True).abs()
            x_BNC = x_BNC / largest_B11.where(largest_B11 > 0, 1)  # an image of zeros stays zero
            return x_BNC.flatten(0, 1).T @ x_BNC.flatten(0, 1)

        return input_means(tuner, edits, batches, images, products)

    def begin(self, weight: torch.Tensor, found: torch.Tensor) -> None:
        if not found.any():  # a layer whose inputs are all zero keeps the usual start
            return
        C = found + torch.diag(DAMPING * found.diagonal().mean().expand(len(found)))
        W = weight.flatten(1).double()
        parts = [torch.linalg.svd(W[rows] @ C, full_matrices=False) for rows in self.rows]
        roots = [(S[: self.rank] / self.scale).sqrt() for _, S, _ in parts]
        inverse = torch.linalg.inv(C)
        start_at(
            self,
            [root[:, None] * (V[: self.rank] @ inverse) for root, (_, _, V) in zip(roots, parts)],
            [U[:, : self.rank] * root for root, (U, _, _) in zip(roots, parts)],
        )


class LoRAGA(PiSSA):
    """A0 and B0 are singular vectors of the loss's gradient U S V' of W, so step 1 is near full tuning's.

    Wang, Yu, Li 2024, arXiv:2407.05000: A0 = out^(1/4) / sqrt(GAMMA) V'[1..r], B0 = out^(1/4) / sqrt(GAMMA)
    U[r+1..2r]. The loss is the contrastive loss of the features, because the head is not trained yet.
    """

    linear_in = ('B', 'B0')

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        require(self, min(*self.sizes, weight[0].numel()) // 2)
        start_at(self, [self.A], [self.B])

    gathers = staticmethod(weight_gradients)

    def begin(self, weight: torch.Tensor, found: torch.Tensor) -> None:
        parts = [torch.linalg.svd(found.flatten(1)[rows], full_matrices=False) for rows in self.rows]
        lengths = [size**0.25 / GAMMA**0.5 for size in self.sizes]
        r = self.rank
        start_at(
            self,
            [length * V[:r] for length, (_, _, V) in zip(lengths, parts)],
            [length * U[:, r : 2 * r] for length, (U, _, _) in zip(lengths, parts)],
        )


class EVA(LowRank):
    """A starts as the first r principal components of the layer's inputs x, and B at zero.

    Paischer et al. 2024, arXiv:2410.07170. The largest entry of a component is positive.
    """

    linear_in = ('B',)
    reads_inputs = True

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        require(self, weight[0].numel())

    @staticmethod
    def gathers(
        tuner: Tuner, edits: Sequence[Reweight], batches: Iterable, images: int
    ) -> list[torch.Tensor]:
        def moments(x_BNC: torch.Tensor) -> torch.Tensor:
            ones = x_BNC.new_ones(*x_BNC.shape[:2], 1)
            x_NC = torch.cat([x_BNC, ones], 2).flatten(0, 1)
            return x_NC.T @ x_NC

        return input_means(tuner, edits, batches, images, moments)

    def begin(self, weight: torch.Tensor, found: torch.Tensor) -> None:
        second = found[:-1, :-1]
        first = found[:-1, -1]
        count = found[-1, -1]
        _, vectors = torch.linalg.eigh(second - torch.outer(first, first) / count)
        A = vectors.T.flip(0)[: self.rank]
        signs = A.gather(1, A.abs().argmax(1, keepdim=True)).sign()
        self.A.data.copy_((A * signs).repeat(len(self.rows), 1))


def require(delta: LowRank, most: int) -> None:
    """UserError for a rank above `most`."""
    if delta.rank > most:
        raise UserError(
            f'rank is {delta.rank}, but {type(delta).__name__} has {most} directions to start from; '
            'give a smaller rank.'
        )


def start_at(delta: LowRank, As: Sequence[torch.Tensor], Bs: Sequence[torch.Tensor]) -> None:
    """A and B become these, one (r, in) and one (rows, r) for each part. A0 and B0 become A and B."""
    with torch.no_grad():
        delta.A.copy_(torch.cat(list(As)))
        delta.B.copy_(torch.cat(list(Bs)))
    delta.register_buffer('A0', delta.A.detach().clone())
    delta.register_buffer('B0', delta.B.detach().clone())


def input_means(
    tuner: Tuner,
    edits: Sequence[Reweight],
    batches: Iterable,
    images: int,
    sums: Callable[[torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """The mean over the images of what `sums` gives for the inputs x_BNC of each layer, in float64.

    [] if there is no batch. The update of each layer is still zero. A row B of a layer inside a window is one
    window of an image.
    batches: images (B, 3, H, W) and labels; read until `images` images were seen.
    """
    assert tuner.backbone is not None, 'attach first'
    totals: dict[int, torch.Tensor] = {}
    counts: dict[int, int] = {}

    def see(number: int, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x_BNC = args[0].detach().float().reshape(len(args[0]), -1, args[0].shape[-1])
        totals[number] = totals.get(number, 0) + sums(x_BNC).double()
        counts[number] = counts.get(number, 0) + len(x_BNC)

    hooks = [edit.host.register_forward_pre_hook(partial(see, number)) for number, edit in enumerate(edits)]
    try:
        with torch.no_grad(), in_eval(tuner.backbone):
            for views, _ in first_images(batches, images):
                tuner.backbone(views)
    finally:
        for hook in hooks:
            hook.remove()
    if torch.distributed.is_initialized():  # each process has seen its own images
        for number, total in totals.items():
            torch.distributed.all_reduce(total)
            count = torch.tensor(counts[number], device=total.device)
            torch.distributed.all_reduce(count)
            counts[number] = int(count)
    means = [totals[number] / counts[number] for number in sorted(totals)]
    return refuse_infinite(means, tuner, 'the inputs of a layer')
