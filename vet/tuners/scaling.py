"""Tuners that scale the inputs and outputs of frozen layers: IA3, SSF and RLRR. All merge."""

from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Places
from vet.core.attention import Rows
from vet.core.delta import Delta
from vet.core.norms import is_norm
from vet.core.peft_names import Targets
from vet.core.ranks import require_matrix
from vet.core.scales import Scale, ScaleInput, scaled_channels
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS

# the last names of the paths of projections
FUSED = ('qkv', 'in_proj')
QUERIES = ('q', 'q_proj', 'wq', 'query', 'to_query')
KEYS_OR_VALUES = ('k', 'k_proj', 'wk', 'key', 'to_key', 'v', 'v_proj', 'wv', 'value', 'kv')


class ScaleRows(Delta):
    """gamma W and gamma b on the output channels `rows`. gamma starts at 1."""

    reads_weight = False
    rows: torch.Tensor

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.register_buffer('rows', rows, persistent=False)
        self.gamma = nn.Parameter(torch.ones(len(rows)))

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gamma = self.whole(len(weight)).to(weight.dtype)
        return gamma.view(-1, *[1] * (weight.dim() - 1)) * weight, None if bias is None else gamma * bias

    def whole(self, out: int) -> torch.Tensor:
        """gamma (out,), with 1 for the other rows."""
        return self.gamma.new_ones(out).index_put((self.rows,), self.gamma)

    def splits(self, module: nn.Module) -> bool:
        """Whether the channels of the output are at the axis that `split` needs."""
        return type(module) in (nn.Linear, nn.Conv2d)

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """gamma y: tokens (…, out) or maps (B, out, H, W)."""
        assert isinstance(module.weight, torch.Tensor)
        return scaled_channels(module, y, self.whole(len(module.weight)))


class Rescale(nn.Module):
    """W + (s_left s_right') * W and b + f. Each part of a fused projection has its own s_right.

    part: (out,), the number of the s_right of each row.
    """

    part: torch.Tensor

    def __init__(self, weight_shape: torch.Size, part: torch.Tensor, shift: bool):
        super().__init__()
        self.register_buffer('part', part, persistent=False)
        parts = int(part.max()) + 1
        self.left, self.right = (
            nn.Parameter(torch.empty(weight_shape[0], 1)),
            nn.Parameter(torch.empty(parts, weight_shape[1])),
        )
        self.f = nn.Parameter(torch.zeros(weight_shape[0])) if shift else None
        nn.init.kaiming_uniform_(self.left)
        nn.init.kaiming_uniform_(self.right)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale = self.left * self.right[self.part]  # (out, in)
        scaled = weight + scale.view(*scale.shape, *[1] * (weight.dim() - 2)).to(weight.dtype) * weight
        return scaled, bias if self.f is None or bias is None else bias + self.f.to(bias.dtype)


@TUNERS.register_module()
class IA3(Tuner):
    """softmax(Q (l_k * K)') (l_v * V) and W2 (l_ff * act(W1 x)): scales of keys, values and hidden features.

    Liu et al. 2022, arXiv:2205.05638, sec. 3.3

    The scales start at 1.
    at: the weights. Of a fused projection (qkv), IA3 scales the rows of keys and values, which a forward
        finds as for LoRA's parts. IA3 scales all rows of a projection named k or v. Of any other weight, such
        as mlp.fc2 or a convolution, IA3 scales the input channels.
    Against the released code: the authors' T-Few in output, gradients and start, on q, k and v that are
        fused.
    ViT-B/16: 55,296 parameters, that is 12 blocks of 2 C + 4 C.
    """

    def __init__(self, at: Places = ('attn.qkv', 'mlp.fc2'), **peft: Unpack[Targets]):
        super().__init__(at)

    def tune(self, site: Site) -> None:
        require_matrix(self, site)
        shape = site.weight.shape
        leaf = site.name.rpartition('.')[2]
        if leaf in FUSED:
            parts = self.rows_of_parts(site)
            self._scale_parts(site, parts if {'k', 'v'} <= set(parts) else {})
        elif leaf in KEYS_OR_VALUES:
            self.reweight(site, ScaleRows(torch.arange(shape[0])))
        elif self.backbone and site.name in self.backbone.sites.roles().get('attn.qkv', ()):
            self._scale_parts(site, self.rows_of_parts(site))
        elif leaf not in QUERIES:
            self.reweight(site, ScaleInput(shape, getattr(site.module, 'groups', 1)))

    def _scale_parts(self, site: Site, parts: dict[str, Rows]) -> None:
        if not parts:
            raise refuse(self, site, 'a projection each of whose rows makes a query, a key or a value')
        numbers = torch.arange(len(site.weight))
        rows = [numbers[parts[part]] for part in 'kv' if part in parts]
        if rows:
            self.reweight(site, ScaleRows(torch.cat(rows)))


@TUNERS.register_module()
class SSF(Tuner):
    """gamma * y + beta after every operation: the stem, the norms, the weights of the blocks.

    Lian et al. 2022, arXiv:2210.08823

    gamma ~ N(1, std), beta ~ N(0, std), as in the paper.
    std: the standard deviation at the start. With std=0, SSF starts as the identity.
    If a module has no bias, such as a convolution before a batch norm, SSF adds no beta. So the merged
    network has the same keys. A norm that is a scale and a shift alone (ResMLP's Affine) trains itself.
    Against the released code: output, gradients and start on a ViT, and output and gradients on a Swin
        (largest difference 4e-16 of 2). On a Swin, the code leaves out the scale behind the norms of the
        mergings, because the code compares a list with a text. vet has these scales. By reading, on ConvNeXt
        the code also scales behind the downsampling convolutions, and scales before the last norm, not
        behind this norm.
    ViT-B/16: 205,824 parameters, that is 2 C of the stem, 12 blocks of 2 x 11 C, 2 C of the last norm.
    """

    may_miss = ('norm',)
    candidates = ({},)
    learning_rates = (1e-3, 3e-2)

    def __init__(
        self, std: Annotated[float, Interval(ge=0, le=10)] = 0.02, at: Places = ('stem', 'norm', 'weight')
    ):
        super().__init__(at)
        self.std = std
        self.identity_at_start = std == 0

    def tune(self, site: Site) -> None:
        if is_norm(site.module) and not site.has_weight:
            self.thaw(site)
        else:
            self.reweight(site, Scale(len(site.weight), site.bias is not None, self.std))


@TUNERS.register_module()
class RLRR(Tuner):
    """W + (s_left s_right') * W and b + f at every weight of the blocks, and SSF at the stem and the norms.

    Dong et al. 2024, arXiv:2403.19067

    s_left (out) and s_right (in) start as in the authors' code, so the start is not the identity. f starts at
    zero. A weight without a bias has no f. If the rows of a fused projection can be told apart, q, k and v
    have their own s_right.
    Against the released code: output, gradients and start.
    ViT-B/16: 288,768 parameters; the published 0.33M add the mean head of VTAB-1k's
    19 tasks.
    """

    identity_at_start = False
    may_miss = ('norm',)

    def __init__(self, at: Places = ('stem', 'norm', 'weight')):
        super().__init__(at)

    def tune(self, site: Site) -> None:
        if is_norm(site.module) and not site.has_weight:
            return self.thaw(site)
        shape = site.weight.shape
        shift = site.bias is not None
        if len(shape) < 2 or site.depth < 0:
            self.reweight(site, Scale(shape[0], shift, std=0.02))
        else:
            part = torch.zeros(shape[0], dtype=torch.long)
            rows = self.rows_of_parts(site) if shape[0] == 3 * shape[1] else {}
            for i, name in enumerate(rows):
                part[rows[name]] = i
            self.reweight(site, Rescale(shape, part, shift))
