"""Facts about attentions: which need fixed tokens, and which rows of a weight make q, k and v."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vet.core.example import Example
from vet.core.modes import in_eval, uncompiled
from vet.core.site import Site
from vet.core.site_map import SiteMap
from vet.torch_private import map_tensors

POSITIONS = re.compile(
    r'rope|rotary|rel_?pos|rel_indices|relative_position|position_embeddings|window|attention_bias|bias_table'
)

# An argument with the rotary angles of the tokens (…, N, D): what an unrotated token has in the equal parts
# of D. timm has [sin, cos], or the cosines and the sines apart.
UNROTATED: Mapping[str, tuple[float, ...]] = {'rope': (0, 1), 'rope_cos': (1,), 'rope_sin': (0,)}

# Where a bias of relative positions (…, N, N) is added to the scores: an argument of a block or of an
# attention (BEiT of transformers has the bias in its mask), a method of a module below the block (timm's BEiT
# and RelPos networks), or a module below it (those of transformers).
BIAS_ARGUMENTS = ('shared_rel_pos_bias', 'shared_rel_pos', 'relative_position_bias', 'attention_mask')
BIAS_METHODS = ('_get_rel_pos_bias', 'get_bias')
BIAS_CLASS = re.compile(r'\w+RelativePositionBias')
BIAS_SETTINGS = ('has_relative_position_bias',)

# Attentions with scores between channels, by their class names. There, further keys and values of tokens have
# no scores.
OVER_CHANNELS = re.compile(r'XCA|CrossCovarianceAttn|ChannelAttention\w*')


def bias_arguments(block: nn.Module) -> list[str]:
    """The arguments by which a block gets a bias of relative positions, which its attention adds."""
    return [name for name in inspect.signature(type(block).forward).parameters if name in BIAS_ARGUMENTS]


def position_biases(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules below a block that compute a bias of relative positions, each with the method for it."""
    found = []
    for module in block.modules():
        kind = type(module)
        methods = ('forward',) if BIAS_CLASS.fullmatch(kind.__name__) else BIAS_METHODS
        found += [(module, method) for method in methods if hasattr(kind, method)]
    return found


def rotary_arguments(block: nn.Module) -> list[str]:
    """The arguments by which a block gets the rotary angles of its tokens."""
    return [name for name in inspect.signature(type(block).forward).parameters if name in UNROTATED]


def tie_to_positions(
    outer: nn.Module, but: Sequence[str] = (), besides: Sequence[nn.Module] = ()
) -> str | None:
    """The name of an argument, parameter or setting for which a module in `outer` needs a fixed number of
    tokens.

    Examples are windows, relative-position tables and rotary angles. None: any number of tokens is possible.
    but: names that tie nothing.
    besides: modules that tie nothing.
    """
    for module in outer.modules():
        if any(module is other for other in besides):
            continue
        arguments = list(inspect.signature(type(module).forward).parameters)
        tensors = [
            name
            for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        ]
        settings = [name for name, value in vars(module).items() if value is not None]
        for name in (*arguments, *tensors, *settings):
            if POSITIONS.search(name) and name not in but:
                return name
    return None


def attends(site: Site, sites: SiteMap) -> bool:
    """Whether an attention lies at or below the site, so that its tokens exchange information, whatever their
    number.
    """
    below = (call for name, call in sites.calls.items() if f'{name}.'.startswith(f'{site.name}.'))
    return any(call.layers.factors for call in below)


Rows = slice | torch.Tensor  # of a weight: rows that lie together, or their numbers (n,)
PRODUCTS = ('matmul', '__matmul__', 'bmm')


def find_parts(
    network: nn.Module, sites: Sequence[Site], called: SiteMap, example: Example
) -> dict[str, dict[str, Rows]]:
    """For each site, the rows of its weight that make the queries 'q', the keys 'k' and the values 'v'.

    {} if nothing shows the rows.
    Some networks have a fused projection, as [q; k; v] or head by head. Other networks have separate
    projections of q, k and v. So vet watches one forward on `example`, which has one image. The products
    around each softmax are q k' and p v. Gradients show which rows of a weight reach q, k and v. Every row
    must reach exactly one of them. If a weight has q, k and v, other rows of the weight may reach none.
    """
    found: dict[str, dict[str, Rows]] = {}
    # by site, the module whose forward is watched: the nearest module around the site, then the next
    around: dict[str, str] = {}
    for site in sites:
        # torch documents the order of these rows
        if isinstance(site.host, nn.MultiheadAttention) and site.weight_name == 'in_proj_weight':
            size = len(site.weight) // 3
            found[site.name] = {part: slice(i * size, (i + 1) * size) for i, part in enumerate('qkv')}
        elif not next(network.parameters()).is_meta:
            nearest = called.around(site.name) if site.called else site.host_name
            around[site.name] = called.multiplier(site.name) or nearest
    weights = {site.name: site.weight for site in sites}
    example = example.to(next(network.parameters()))  # a user may have moved or converted the network
    for _ in range(3):
        watched: dict[str, dict[str, object]] = {}
        for name, path in around.items():
            watched.setdefault(path, {})[name] = weights[name]
        if not watched:
            break
        found |= _watch(network, watched, example)
        around = {name: called.around(path) for name, path in around.items() if path and name not in found}
    return found


def _watch(
    network: nn.Module, watched: Mapping[str, dict[str, Any]], example: Example
) -> dict[str, dict[str, Rows]]:
    spy = _Spy()
    weights = [weight for named in watched.values() for weight in named.values() if not weight.requires_grad]
    handles = []
    for path, named in watched.items():
        module = network.get_submodule(path)
        handles += [
            module.register_forward_pre_hook(lambda _, args, named=named: spy.enter(named, args)),
            module.register_forward_hook(lambda _, args, out: spy.leave(out)),
        ]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with in_eval(network), uncompiled(), torch.enable_grad(), spy:
            example.call(network)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
        for handle in handles:
            handle.remove()
    return {name: _split(masks) for name, masks in spy.masks.items()}


class _Spy(TorchFunctionMode):
    """Within this context, notes which rows of an attention's weights reach q, k and v: (3, out) of bool
    each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[str, torch.Tensor] = {}
        self.around: list[Mapping[str, Any]] = []  # the weights of each watched module that is running
        self.product: tuple = ()  # the factors of the last product
        self.scores: tuple = ()  # the queries and keys of the last softmax

    @property
    def named(self) -> Mapping[str, Any]:
        return self.around[-1] if self.around else {}

    def enter(self, named: Mapping[str, object], args: tuple) -> tuple:
        """Returns other numbers for the arguments.

        None of them is zero, and odd weights lose none of them.
        """
        self.around.append(named)
        self.product = self.scores = ()
        return map_tensors(lambda given: _waves(given) if given.is_floating_point() else given, args)

    def leave(self, out: object) -> Any:
        """Forgets the attention, and cuts the graph of its output."""
        self.around.pop()
        self.product = self.scores = ()
        return map_tensors(torch.Tensor.detach, out)

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        name = getattr(function, '__name__', '')
        if not self.named:
            return out
        if name == 'scaled_dot_product_attention':
            self.note(*(*args, *(kwargs or {}).values())[:3])
        elif name in PRODUCTS and self.scores:
            self.note(*self.scores, *args[:2])
            self.product = self.scores = ()
        elif name in PRODUCTS:
            self.product = args[:2]
        elif name == 'softmax' and self.product:
            dim = (kwargs or {}).get('dim', args[1] if len(args) > 1 else -1)
            over_right = dim % out.dim() == out.dim() - 1  # the columns of q k' are the keys
            self.scores = self.product if over_right else self.product[::-1]
        return out

    def note(self, q: torch.Tensor, k: torch.Tensor, *values: torch.Tensor) -> None:
        """Notes the rows of each weight. values: v, or p and v in any order; p is made of q and k."""
        reached = [self.reached(tensor) for tensor in (q, k, *values)]
        for name in self.named:
            q_rows, k_rows, *others = (rows[name] for rows in reached)
            apart = [rows for rows in others if not (rows & (q_rows | k_rows)).any()]
            v_rows = max(apart, key=torch.sum, default=others[0])  # of a single key, p depends on nothing
            masks = torch.stack([q_rows, k_rows, v_rows])
            if masks.any():
                self.masks.setdefault(name, masks)  # the first softmax that a weight reaches is its own

    def reached(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """For each weight, the rows on which the tensor depends."""
        weights = list(self.named.values())
        if not tensor.requires_grad:
            return {name: torch.zeros(len(weight), dtype=torch.bool) for name, weight in self.named.items()}
        gradients = torch.autograd.grad(
            (tensor * _waves(tensor)).sum(), weights, retain_graph=True, allow_unused=True
        )
        return {
            name: torch.zeros(len(weight), dtype=torch.bool)
            if gradient is None
            else gradient.flatten(1).any(1).cpu()
            for (name, weight), gradient in zip(self.named.items(), gradients)
        }


def _waves(like: torch.Tensor) -> torch.Tensor:
    """Numbers of the shape of `like`, between -1 and 1, whose sums do not cancel."""
    return (torch.arange(like.numel(), device=like.device) + 1.0).sin().view(like.shape).to(like.dtype)


def _split(masks: torch.Tensor) -> dict[str, Rows]:
    parts = masks.sum(0)  # of each row
    # an FFN may stand beside q, k and v
    if (parts > 1).any() or (parts == 0).any() and not masks.any(1).all():
        return {}
    return {part: _rows(mask.nonzero().flatten()) for part, mask in zip('qkv', masks) if mask.any()}


def _rows(numbers: torch.Tensor) -> Rows:
    first = int(numbers[0])
    last = int(numbers[-1]) + 1
    return slice(first, last) if last - first == len(numbers) else numbers
