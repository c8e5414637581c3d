"""Shows where a network looks, by Grad-CAM and attention rollout: heat in 0..1 for each place of an image.

Both methods read the facts of the dry run of the backbone: blocks, axes of channels, and the grid of the
tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.site import Site
from vet.core.site_map import SiteMap
from vet.errors import UserError

BLOCKS = 4  # from the end, in which a map with a gradient is looked for
Hooked = list[tuple[Site, bool, torch.Tensor]]  # the block, whether the tensor is the output, the tensor


def grad_cam(
    model: ImageClassifier, images: torch.Tensor, outputs: Sequence[int] | None = None
) -> torch.Tensor:
    """Normalised images (B, 3, H, W) -> heat (B, h, w), 0..1: the places that speak for an output.

    heat = relu(sum_c a_c A_c), scaled to 0..1. a_c is the mean over places of the gradient of the
    output with respect to A_c. A is the last map of features with a gradient: the output of a block, or its
    input (the class token of a ViT reads the input of the last block).
    outputs: for each image, the number of the output. None: the largest output.
    UserError for a network without maps of features, and for a model whose outputs are no numbers per image.
    Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2.
    """
    _refuse_masks(model)
    sites = model.backbone.sites
    hooked: Hooked = []
    with ExitStack() as stack:
        for site in _last_blocks(sites):
            stack.enter_context(site.module.register_forward_pre_hook(_noting(hooked, site)))
            stack.enter_context(site.module.register_forward_hook(_noting_output(hooked, site)))
        score = _score(model, images, outputs)
    gradients = _slopes(score, [tensor for *_, tensor in hooked])
    for (site, is_output, tensor), gradient in reversed(list(zip(hooked, gradients))):
        axis = site.call.out_axis if is_output else site.call.in_axis
        map_BCHW = _as_map(tensor, axis, site, len(images))
        slope_BCHW = None if gradient is None else _as_map(gradient, axis, site, len(images))
        if (heat := _heat(map_BCHW, slope_BCHW, images)) is not None:
            return heat
    if (heat := _heat_of_maps(model, images, outputs)) is not None:
        return heat
    raise UserError(
        f'Grad-CAM needs a map of features with places, but the last blocks of {sites.family} have none: '
        f'{", ".join(site.name for site in _last_blocks(sites)) or "no block is known"}. Give the role '
        "'block' in model.backbone.roles."
    )


def rollout(
    model: ImageClassifier, images: torch.Tensor, outputs: Sequence[int] | None = None
) -> torch.Tensor:
    """Normalised images (B, 3, H, W) -> heat (B, h, w), 0..1: the patches whose information reaches the end.

    R = prod_l (A_l + 1) / 2, for the attention A_l of each layer, as the mean over its heads. The heat is the
    row of the class token. Without a class token: the mean over the rows of the patches. `outputs` has no
    meaning here, because attention does not know the classes.
    UserError for a network without attention over all patches (ConvNets, windows).
    Source: Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928, equation 1.
    """
    _refuse_masks(model)
    sites = model.backbone.sites
    spy = _Attentions(len(images))
    with ExitStack() as stack:
        for module in model.backbone.network.modules():
            if isinstance(module, nn.MultiheadAttention):
                stack.enter_context(module.register_forward_pre_hook(_with_weights, with_kwargs=True))
                stack.enter_context(module.register_forward_hook(spy.note_module))
        for manager in (in_eval(model), torch.no_grad(), spy):
            stack.enter_context(manager)
        model(images)
    sizes = {matrix.shape[-1] for matrix in spy.found}
    layout = sites.layout
    height, width = layout.grid or (0, 0)
    first = layout.num_prefix_tokens
    patches = height * width
    if len(sizes) != 1 or not patches or min(sizes) < first + patches:
        why = 'has no attention over all patches'
        if spy.others:
            why = 'has attention within windows, or over fewer patches from layer to layer'
        raise UserError(
            f'attention rollout has no meaning for {sites.family}, which {why}. Use Grad-CAM: '
            '--method grad-cam.'
        )
    flow = torch.eye(sizes.pop(), device=images.device).expand(len(images), -1, -1)
    for matrix in spy.found:
        flow = (matrix.float() + torch.eye(flow.shape[-1], device=images.device)) / 2 @ flow
    rows = flow[:, :1] if first else flow[:, first : first + patches]
    heat = rows.mean(1)[:, first : first + patches]
    return _scaled(heat.unflatten(1, (height, width)))


def _heat(
    map_BCHW: torch.Tensor | None, slope_BCHW: torch.Tensor | None, images: torch.Tensor
) -> torch.Tensor | None:
    """Grad-CAM of a map and its gradient. None: the map has one place, other places than the image, or no
    gradient.
    """
    if map_BCHW is None or slope_BCHW is None or not slope_BCHW.any() or map_BCHW[0, 0].numel() == 1:
        return None
    strides = [side / places for side, places in zip(images.shape[-2:], map_BCHW.shape[-2:])]
    if max(strides) > 2 * min(strides):  # windows, and not places of the image
        return None
    weights_BC11 = slope_BCHW.mean((2, 3), keepdim=True)
    return _scaled((weights_BC11 * map_BCHW).sum(1).relu().detach())


def _score(model: ImageClassifier, images: torch.Tensor, outputs: Sequence[int] | None) -> torch.Tensor:
    """The sum of the chosen outputs, with a graph. UserError if an image has several outputs of one kind."""
    with in_eval(model), torch.enable_grad():
        logits = model(images.detach().requires_grad_())
    if logits.ndim != 2:
        raise UserError(
            f'the objective {model.objective.given["type"]!r} gives {tuple(logits.shape[1:])} numbers for an '
            'image, so that no single output can be explained. Explain a model of classes or of numbers.'
        )
    chosen = logits.argmax(1) if outputs is None else torch.as_tensor(outputs, device=logits.device)
    return logits.gather(1, chosen[:, None]).sum()


def _slopes(score: torch.Tensor, tensors: list[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    return torch.autograd.grad(score, tensors, allow_unused=True) if tensors else ()


def _heat_of_maps(
    model: ImageClassifier, images: torch.Tensor, outputs: Sequence[int] | None
) -> torch.Tensor | None:
    """Grad-CAM of the last map that the backbone gives to heads for masks. None: no map has a gradient.

    Blocks of hierarchical transformers give tokens without a grid. A module's output with the values of a map
    is that map.
    """
    given = model.backbone.maps
    if given is None:
        return None
    try:
        with in_eval(model), torch.no_grad():
            maps = given.compute(model.backbone.network, images, range(len(given.channels)))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):
        return None  # a tuner changes the form of the maps
    found: list[tuple[int, torch.Tensor]] = []  # the number of a map, and the tensor with its values
    with ExitStack() as stack:
        for module in model.backbone.network.modules():
            stack.enter_context(module.register_forward_hook(_noting_maps(found, maps)))
        score = _score(model, images, outputs)
    slopes = _slopes(score, [tensor for _, tensor in found])
    for (number, tensor), slope in sorted(zip(found, slopes), key=lambda item: -item[0][0]):
        size = maps[number].shape[-2:]
        slope_BCHW = None if slope is None else _unfolded(slope, size)
        if (heat := _heat(_unfolded(tensor, size), slope_BCHW, images)) is not None:
            return heat
    return None


def _noting_maps(found: list[tuple[int, torch.Tensor]], maps: Sequence[torch.Tensor]) -> Callable:
    """A hook that notes an output with the values of one of the maps, up to rounding."""
    close = [1e-5 * wanted.abs().max().item() for wanted in maps]

    def hook(module: nn.Module, args: tuple, out: Any) -> None:
        for tensor in out if isinstance(out, tuple) else (out,):
            if not isinstance(tensor, torch.Tensor) or not tensor.requires_grad or tensor.ndim not in (3, 4):
                continue
            for number, wanted in enumerate(maps):
                given = _unfolded(tensor, wanted.shape[-2:])
                if given is None or given.shape != wanted.shape:
                    continue
                if given.allclose(wanted, atol=close[number]):
                    found.append((number, tensor))

    return hook


def _unfolded(tensor: torch.Tensor, size: Sequence[int]) -> torch.Tensor | None:
    """A map (B, C, h, w); or tokens (B, N, C), of which the last h w are the places row by row, as a map."""
    height, width = size
    if tensor.ndim == 4:
        return tensor if tuple(tensor.shape[-2:]) == (height, width) else None
    tokens_BNC = tensor[:, -height * width :]
    if tokens_BNC.shape[1] != height * width:
        return None
    return tokens_BNC.transpose(1, 2).unflatten(2, (height, width))


def _refuse_masks(model: ImageClassifier) -> None:
    """UserError for a model of masks, which takes images of any size through windows."""
    if model.objective.dense:
        raise UserError(
            f'the objective {model.objective.given["type"]!r} gives an answer for each pixel, so that no '
            'single output can be explained. Explain a model of classes or of numbers.'
        )


METHODS: dict[str, Callable[..., torch.Tensor]] = {'grad-cam': grad_cam, 'rollout': rollout}


def _last_blocks(sites: SiteMap) -> list[Site]:
    return sites.find('block')[-BLOCKS:] if sites.blocks else []


def _noting(hooked: Hooked, site: Site) -> Callable:
    def hook(module: nn.Module, args: tuple) -> None:
        for tensor in reversed(args):  # the first input last: it comes before the others (see grad_cam)
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                hooked.append((site, False, tensor))

    return hook


def _noting_output(hooked: Hooked, site: Site) -> Callable:
    def hook(module: nn.Module, args: tuple, out: Any) -> None:
        tensor = out if site.call.place is None else out[site.call.place]
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            hooked.append((site, True, tensor))

    return hook


def _as_map(tensor: torch.Tensor, axis: int | None, site: Site, batch: int) -> torch.Tensor | None:
    """A block's tensor as a map (B, C, H, W). None: it has no places, or is cut into windows."""
    if len(tensor) != batch or axis is None:
        return None
    if tensor.ndim == 4:
        return tensor.movedim(axis, 1)
    if tensor.ndim != 3 or site.grid is None:
        return None
    tokens_BNC = tensor.movedim(axis, 2)
    height, width = site.grid
    first = site.num_prefix_tokens if tokens_BNC.shape[1] > height * width else 0
    patches_BNC = tokens_BNC[:, first : first + height * width]
    if patches_BNC.shape[1] < height * width:
        return None
    return patches_BNC.transpose(1, 2).unflatten(2, (height, width))


def _scaled(heat_BHW: torch.Tensor) -> torch.Tensor:
    """Each image's heat from 0 to 1. Heat that is equal everywhere becomes 0."""
    heat_BHW = heat_BHW - heat_BHW.amin((1, 2), keepdim=True)
    return heat_BHW / heat_BHW.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _with_weights(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """nn.MultiheadAttention shall give its weights, too."""
    return args, {**kwargs, 'need_weights': True, 'average_attn_weights': True}


class _Attentions(TorchFunctionMode):
    """Within this context, notes each attention matrix between all tokens: (B, N, N), the mean over heads."""

    def __init__(self, batch: int):
        super().__init__()
        self.batch = batch
        self.found: list[torch.Tensor] = []
        self.others = 0  # attentions in windows, or between other numbers of tokens

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = getattr(function, '__name__', '')
        if name == 'scaled_dot_product_attention':
            self.note(_weights(*args, **kwargs))
        elif name == 'softmax' and out.ndim == 4:
            self.note(out)
        return out

    def note(self, matrix_BHNN: torch.Tensor) -> None:
        if matrix_BHNN.ndim != 4 or matrix_BHNN.shape[-1] != matrix_BHNN.shape[-2]:
            return  # one query, as in a pool, or a map of features
        if len(matrix_BHNN) == self.batch:
            self.found.append(matrix_BHNN.mean(1))
        else:
            self.others += 1

    def note_module(self, module: nn.Module, args: tuple, out: tuple) -> None:
        weights = out[1]
        if weights.shape[-1] == weights.shape[-2] and len(weights) == self.batch:
            self.found.append(weights)


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: object,
) -> torch.Tensor:
    """softmax(q k' scale + mask) of the arguments of scaled_dot_product_attention."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = (
            scores.masked_fill(~attn_mask, -torch.inf)
            if attn_mask.dtype == torch.bool
            else scores + attn_mask
        )
    return scores.softmax(-1)
