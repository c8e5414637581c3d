"""PACE: updates with multiplicative noise, and a loss that keeps two noisy passes alike.

Ni, Zhang, Koniusz 2024, arXiv:2409.17137

B images, C output channels. x: (B, …, in). W: (out, in), b: (out,), the frozen layer.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn

from vet.allowed import Counts, OneOf, Places
from vet.core.delta import Delta
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UnknownNameError
from vet.registry import TUNERS

FORMS = ('mul', 'add')
Strength = Annotated[float, Interval(ge=0, le=1e3)]


class Noisy(Delta):
    """W x + b + z * (dW x + db) in training, z ~ N(1, sigma^2) for each image and channel; z = 1 in use."""

    def __init__(self, weight_shape: torch.Size, rank: int, sigma: float):
        super().__init__()
        out, inside = weight_shape
        self.sigma = sigma
        self.A, self.B = nn.Parameter(torch.empty(rank, inside)), nn.Parameter(torch.zeros(out, rank))
        self.b: nn.Parameter | None = nn.Parameter(torch.zeros(out))
        nn.init.xavier_uniform_(self.A)

    def update(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """dW = B A and db: LoRAadd of the released code."""
        assert self.b is not None
        return (self.B @ self.A).to(weight.dtype), self.b

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        change, shift = self.update(weight, bias)
        shift = shift.to(weight.dtype)
        return weight + change, shift if bias is None else bias + shift

    def splits(self, module: nn.Module) -> bool:
        """True in training, because the noise belongs to outputs, and no weight can hold it."""
        return self.training and self.sigma > 0 and type(module) is nn.Linear

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, nn.Linear)
        change, shift = self.update(module.weight, module.bias)
        added = F.linear(x, change.to(x.dtype), shift.to(x.dtype))
        noise_BC = torch.randn(len(added), added.shape[-1], device=added.device) * self.sigma + 1
        return y + added * noise_BC.view(len(added), *[1] * (added.dim() - 2), -1).to(added.dtype)


class NoisyProduct(Noisy):
    """dW = W * (B A), * by element, and db = W P p + b * d: LoRAmul and VPTadd of the paper.

    P: (in, r), zero at the start. p: (r, 1). d: (out,), zero at the start; only if the layer has a bias.
    """

    def __init__(self, weight_shape: torch.Size, rank: int, sigma: float, has_bias: bool):
        super().__init__(weight_shape, rank, sigma)
        self.P, self.p = nn.Parameter(torch.zeros(weight_shape[1], rank)), nn.Parameter(torch.empty(rank, 1))
        nn.init.xavier_uniform_(self.p)
        if not has_bias:
            self.b = None

    def update(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        shift = (weight @ (self.P @ self.p).to(weight.dtype)).squeeze(1)
        if bias is not None and self.b is not None:
            shift = shift + bias * self.b
        return weight * (self.B @ self.A).to(weight.dtype), shift


@TUNERS.register_module()
class PACE(Tuner):
    """An update with noise, and weight |f - f'|^2 in the loss: f and f' are outputs of two noisy passes.

    rank: the rank of B A. One value, a list by depth (0 skips a block), or a dict of path patterns.
    sigma: the noise in the first noisy block. sigma falls linearly with depth, to sigma / blocks after the
        last. The released recipes take 1.2 and 1.5.
    weight: the weight lambda of the second term. Each batch passes twice in a step, also if the weight is 0.
    quiet: how many blocks at the beginning get no noise. The released code: 1 for ViT-B, 0 for Swin-B.
    form: 'mul', the paper's LoRAmul with VPTadd; or 'add', LoRA with a trained bias.
    at: weights of Linear layers that are called.
    Parameters per site: mul: rank (out + 2 in) + rank, + out if the layer has a bias; add: rank (out + in) +
        out.
    Against the released code: both updates, the noise, and the loss. The head gets no noise here. Stochastic
    depth draws for each pass apart here, and once for both passes there.
    """

    needs = 'Linear layers that are called'

    def __init__(
        self,
        rank: Counts = 10,
        sigma: Strength = 1.0,
        weight: Strength = 1.0,
        quiet: Annotated[int, Interval(ge=0, le=1000)] = 1,
        form: Annotated[str, OneOf(FORMS)] = 'mul',
        at: Places = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'),
    ):
        if form not in FORMS:
            raise UnknownNameError('form of PACE', form, FORMS)
        super().__init__(at)
        self.rank = rank
        self.sigma = sigma
        self.weight = weight
        self.quiet = quiet
        self.form = form

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        if not site.called or type(site.module) is not nn.Linear:
            raise refuse(self, site, 'a Linear that is called')
        if not rank:
            return
        shape = site.weight.shape
        sigma = self.sigma_at(site.depth, site.num_blocks)
        if self.form == 'mul':
            self.reweight(site, NoisyProduct(shape, rank, sigma, site.module.bias is not None))
        else:
            self.reweight(site, Noisy(shape, rank, sigma))

    def sigma_at(self, depth: int, blocks: int) -> float:
        """sigma, (n - 1) / n sigma, … for the blocks after the quiet blocks. The head is the last of n."""
        noisy = blocks + 1 - self.quiet
        return self.sigma * (noisy - (depth - self.quiet)) / noisy if self.quiet <= depth < blocks else 0.0

    def consistency(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.weight * (first - second).square().flatten(1).sum(1)
