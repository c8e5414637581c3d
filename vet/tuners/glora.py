"""GLoRA: one update that scales and shifts a weight and its bias.   Chavan et al. 2023, arXiv:2306.07967"""

import math
from typing import Annotated, Unpack

import torch
from torch import nn

from vet.allowed import Counts, OneOf, Places
from vet.core.delta import Delta
from vet.core.peft_names import OfGLoRA
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UnknownNameError
from vet.registry import TUNERS

WEIGHT_FORMS = ('lora', 'vector', 'constant', 'none')
PROMPT_FORMS = ('lora', 'vector', 'none')
BIAS_FORMS = ('vector', 'constant', 'none')


class Term(nn.Module):
    """A tensor (rows, columns), zero at the start.

    form: 'lora': Xd Xu of a rank, with Xu Xavier-uniform. 'vector': a column. 'constant': one number. 'none':
    zero, without parameters. A vector or a number is the same in all columns.
    """

    def __init__(self, rows: int, columns: int, form: str, rank: int):
        super().__init__()
        if form == 'lora':
            self.Xd, self.Xu = nn.Parameter(torch.zeros(rows, rank)), nn.Parameter(torch.empty(rank, columns))
            nn.init.xavier_uniform_(self.Xu)
        elif form != 'none':
            self.X = nn.Parameter(torch.zeros(rows if form == 'vector' else 1, 1))
        self.form = form

    def forward(self) -> torch.Tensor | float:
        if self.form == 'lora':
            return self.Xd @ self.Xu
        return 0.0 if self.form == 'none' else self.X


class Generalized(Delta):
    """W + W * A + B and b + b * D + E + W C, * by element

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups. A and B: (out, n). C: (n,
    1). D and E: (out, 1). Without a bias b, there is no C, D and E.
    """

    def __init__(self, weight_shape: torch.Size, has_bias: bool, rank: int, forms: tuple[str, str, str]):
        super().__init__()
        out = weight_shape[0]
        inside = math.prod(weight_shape[1:])
        weight, prompt, bias = forms if has_bias else (forms[0], 'none', 'none')
        self.A, self.B = Term(out, inside, weight, rank), Term(out, inside, weight, rank)
        self.C = Term(inside, 1, prompt, rank)
        self.D, self.E = Term(out, 1, bias, rank), Term(out, 1, bias, rank)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        W = weight.flatten(1)
        new = (W + W * self.A() + self.B()).view_as(weight).to(weight.dtype)
        if bias is None:
            return new, None
        b = bias[:, None]
        C = self.C()
        shifted = b + b * self.D() + self.E() + (W @ C.to(W.dtype) if isinstance(C, torch.Tensor) else 0)
        return new, shifted.squeeze(1).to(bias.dtype)


@TUNERS.register_module()
class GLoRA(Tuner):
    """W + W * A + B and b + b * D + E + W C: updates of weight, bias and inputs, which merge.

    rank: the rank of the form 'lora': one value, a list by depth (0 skips a block), or a dict of patterns.
    weight: the form of A and B: 'lora', 'vector' (a number for each output), 'constant' or 'none'.
    prompt: the form of C: 'lora', 'vector' (a number for each input) or 'none'.
    bias: the form of D and E: 'vector', 'constant' or 'none'.
    at: weights of Linear layers and convolutions. C, D and E exist only beside a bias.
    Parameters per site: weight: 2 rank (out + in), 2 out or 2; prompt: rank (in + 1) or in; bias: 2 out or 2.
    Against the released code: the formula, the forms and the start. The code draws forms at random for each
        layer and step, and then searches the best forms of each layer by evolution. Here the user chooses the
        forms, as in PEFT, whose formula is the same. PEFT draws Xu smaller. The code takes rank 4.
    """

    learning_rates = (5e-5, 5e-3)  # the released code takes 1e-4

    def __init__(
        self,
        rank: Counts = 8,
        weight: Annotated[str, OneOf(WEIGHT_FORMS)] = 'lora',
        prompt: Annotated[str, OneOf(PROMPT_FORMS)] = 'lora',
        bias: Annotated[str, OneOf(BIAS_FORMS)] = 'constant',
        at: Places = 'attn.qkv',
        **peft: Unpack[OfGLoRA],
    ):
        for name, form, allowed in (
            ('weight', weight, WEIGHT_FORMS),
            ('prompt', prompt, PROMPT_FORMS),
            ('bias', bias, BIAS_FORMS),
        ):
            if form not in allowed:
                raise UnknownNameError(f'{name} of GLoRA', form, allowed)
        super().__init__(at)
        self.rank = rank
        self.forms = (weight, prompt, bias)

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        require_matrix(self, site)
        if rank:
            delta = Generalized(site.weight.shape, site.bias is not None, rank, self.forms)
            if list(delta.parameters()):
                self.reweight(site, delta)
