"""Every private name of torch, torchvision and accelerate that vet uses: its purpose, and the consequence if
a later version has lost the name.

vet uses no private name of timm. No other file of vet uses a private name; tests/test_torch_private.py reads
the tree, and removes each name in turn. A function here looks its name up in each call. Without the name, the
function computes the same in another way, which is slower.

PRIVATE lists the names. The tables of nn.Module at the end are the exception: torch's own
`nn.Module.__call__` reads them, so every torch has them.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.backends import mkldnn

PRIVATE = (
    'torch._C._are_functorch_transforms_active',
    'torch._C.DisableTorchFunction',
    'torch._C._will_engine_execute_node',
    'torch.cpu._is_amx_tile_supported',
    'torch.cpu._is_avx512_bf16_supported',
    'torch._softmax_backward_data',
    'torch.native_layer_norm',
    'torch.ops.aten.native_layer_norm_backward',
    'torch.ops.aten.convolution_backward',
    'torch.ops.aten._convolution',
    'torch.ops.aten._scaled_dot_product_flash_attention',
    'torch.ops.aten._scaled_dot_product_flash_attention_for_cpu',
    'torch.backends.mkldnn.matmul',
    'torch.nn.modules.batchnorm._BatchNorm',
    'torch.nn.modules.conv._ConvNd',
    'torch._native_multi_head_attention',
    'torch.UntypedStorage._cdata',
    'torch.Tensor._version',
    'torch.utils._pytree.tree_map_only',
    'torch.utils._python_dispatch.TorchDispatchMode',
    'torch._dynamo',
    'torchvision.datasets.utils._urlretrieve',
    'torchvision.datasets.utils._get_redirect_url',
    'torchvision.datasets.utils._ARCHIVE_EXTRACTORS',
    'accelerate.state.PartialState._reset_state',
    'accelerate.state.AcceleratorState._reset_state',
)


# The downloads of torchvision -------------------------------------------------------------------------------


@contextmanager
def torchvision_downloads_by(
    fetch: Callable[[str, Path], None], unpack: Callable[[Path, Path], None]
) -> Iterator[None]:
    """Within this context, torchvision's datasets call fetch(url, file) and unpack(archive, folder).

    fetch follows redirects itself. Without `_urlretrieve`, `_get_redirect_url` or `_ARCHIVE_EXTRACTORS`:
    torchvision downloads or unpacks by itself.
    """
    utils: Any = importlib.import_module('torchvision.datasets.utils')
    replacements: dict[str, Callable[..., object]] = dict(
        _urlretrieve=lambda url, file, *options: fetch(url, Path(file)),
        _get_redirect_url=lambda url, *options, **more: url,
    )
    before = {name: getattr(utils, name) for name in replacements if hasattr(utils, name)}
    extractors = getattr(utils, '_ARCHIVE_EXTRACTORS', {})
    extractors_before = dict(extractors)
    for name in before:
        setattr(utils, name, replacements[name])
    for kind in extractors:
        extractors[kind] = lambda archive, folder, compression: unpack(Path(archive), Path(folder))
    try:
        yield
    finally:
        extractors.update(extractors_before)
        for name, function in before.items():
            setattr(utils, name, function)


# The state of torch -----------------------------------------------------------------------------------------


def unwatched() -> AbstractContextManager[object]:
    """Within this context, a TorchFunctionMode sees no function and no attribute of a tensor.

    A mode that notes shapes reads the shapes within this context, and does not watch itself.
    Without `DisableTorchFunction`: the mode sees them. Its answers stay the same, and take longer.
    """
    return getattr(torch._C, 'DisableTorchFunction', nullcontext)()


def is_recorded() -> bool:
    """Whether a compiler, torch.jit or torch.func records the computation.

    A compiler fuses operations itself. The others refuse our functions that write into their input.
    Without `_are_functorch_transforms_active`: always True, so that none of these functions is used.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or getattr(torch._C, '_are_functorch_transforms_active', _always)()
    )


def _always() -> bool:
    return True


def has_compiled() -> bool:
    """Whether torch.compile may have compiled something in this process. The first compile imports
    `torch._dynamo`.

    Without a module of that name: always True.
    """
    return 'torch._dynamo' in sys.modules or importlib.util.find_spec('torch._dynamo') is None


def multiplies_bf16_tiles() -> bool:
    """Whether the processor multiplies tiles of bf16 (AMX). Without `_is_amx_tile_supported`: False."""
    asked = getattr(torch.cpu, '_is_amx_tile_supported', None)
    return asked is not None and asked()


def multiplies_bf16() -> bool:
    """Whether the processor has products of bf16: of tiles (AMX), or of vectors (AVX-512 BF16). Without
    `_is_avx512_bf16_supported`: only of tiles. Without products of bf16, attention in bf16 is torch's.
    """
    asked = getattr(torch.cpu, '_is_avx512_bf16_supported', None)
    return multiplies_bf16_tiles() or (asked is not None and asked())


# Gradients --------------------------------------------------------------------------------------------------

Sides = Sequence[int]  # a number for the height, and one for the width


def softmax_gradient(dp: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The gradient of s from that of p, where p = softmax(s) over the last axis. All are (…, n).

    Without `_softmax_backward_data`: the formula, in three passes over the memory.
    """
    fused = getattr(torch, '_softmax_backward_data', None)
    if fused is not None:
        return fused(dp, p, -1, p.dtype)
    return (dp - (dp * p).sum(-1, keepdim=True)) * p


def layer_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer norm of x (…, *shape), with the mean and the reciprocal standard deviation (…, 1, …) of each
    position.

    Without `native_layer_norm`: the mean and the deviation are computed a second time.
    """
    fused = getattr(torch, 'native_layer_norm', None)
    if fused is not None:
        return fused(x, shape, weight, bias, eps)
    axes = tuple(range(-len(shape), 0))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return F.layer_norm(x, shape, weight, bias, eps), mean, (variance + eps).rsqrt()


def layer_norm_gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    shape: Sequence[int],
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient of x, from the gradient of y and the other results of `layer_norm`.

    Without `native_layer_norm_backward`: the formula, in more passes over the memory.
    """
    fused = getattr(torch.ops.aten, 'native_layer_norm_backward', None)
    if fused is not None:
        return fused(dy, x, shape, mean, rstd, weight, bias, [True, False, False])[0]
    axes = tuple(range(-len(shape), 0))
    normed = (x - mean) * rstd
    scaled = dy if weight is None else dy * weight
    along = normed * (scaled * normed).mean(axes, keepdim=True)
    return (scaled - scaled.mean(axes, keepdim=True) - along) * rstd


def convolution_gradients(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, how: tuple[Sides, Sides, Sides], wanted: str
) -> torch.Tensor:
    """The gradient of x or of the weight (`wanted`: 'x' or 'weight') of a convolution y.

    x (N, in, H, W), weight (out, in, kH, kW). how: stride, padding and dilation.
    Without `convolution_backward`: autograd's gradient, which computes y again.
    """
    fused = getattr(torch.ops.aten, 'convolution_backward', None)
    if fused is not None:
        asked = [wanted == 'x', wanted == 'weight', False]
        return fused(dy, x, weight, None, *how, False, [0, 0], 1, asked)[asked.index(True)]
    creates_graph = torch.is_grad_enabled()
    if not creates_graph:
        x, weight = x.detach(), weight.detach()
    with torch.enable_grad():
        x, weight = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, weight))
        y = F.conv2d(x, weight, None, *how)
        return torch.autograd.grad(y, x if wanted == 'x' else weight, dy, create_graph=creates_graph)[0]


# Faster ways to compute -------------------------------------------------------------------------------------


@contextmanager
def float32_products_in_bf16() -> Iterator[None]:
    """Within this context, products of float32 matrices on a CPU round their entries to bf16. Sums are in
    float32.

    Without `mkldnn.matmul`: products are those of float32, slower and more exact.
    """
    matmul = getattr(mkldnn, 'matmul', None)
    if matmul is None:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = 'bf16'
    try:
        yield
    finally:
        matmul.fp32_precision = before


# Kinds ------------------------------------------------------------------------------------------------------

# The classes of batch norms and of convolutions. Without their common bases: torch's own classes. Then a
# class of another author that derives only from the base is left out.
BATCH_NORM: type[nn.Module] | tuple[type[nn.Module], ...] = getattr(
    nn.modules.batchnorm, '_BatchNorm', (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
)
CONVOLUTION: Any = getattr(
    nn.modules.conv,
    '_ConvNd',
    (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)

# The functions that compute a whole attention from the packed weight of q, k and v. torch takes the second in
# eval mode. Without `_native_multi_head_attention`: torch takes the first.
PACKED_ATTENTION = ('multi_head_attention_forward', '_native_multi_head_attention')


def operations(*names: str) -> set[object]:
    """torch's operations of these names in `aten`. Missing operations are left out."""
    return {getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)}


# core.budget counts these apart. Without a name: the operation costs nothing, like other unknown operations.
NEW_TENSORS = operations('new_empty', 'new_zeros', 'new_ones', 'new_full')
CONVOLUTIONS = operations('convolution', '_convolution', 'convolution_backward')
COUNTED_AS = dict(
    zip(
        operations('_scaled_dot_product_flash_attention_for_cpu'),
        operations('_scaled_dot_product_flash_attention'),
    )
)


class _SeesNothing:
    """Stands in place of TorchDispatchMode. It sees no operation."""

    def __enter__(self) -> '_SeesNothing':
        return self

    def __exit__(self, *error: object) -> None:
        pass


# The class of a mode that sees each operation of torch. Without `TorchDispatchMode`: a mode that sees none.
# Then a stranger's model is built without limits; SEES_OPERATIONS says so.
try:
    from torch.utils._python_dispatch import TorchDispatchMode as _Mode
except ImportError:
    _Mode = _SeesNothing  # type: ignore[assignment,misc]  # mypy knows only torch's class
OperationsMode: Any = _Mode
SEES_OPERATIONS = _Mode is not _SeesNothing


# Tensors ----------------------------------------------------------------------------------------------------


def share_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same storage, as views do.

    Without `_cdata`: whether they share the same memory.
    """
    storages = one.untyped_storage(), other.untyped_storage()
    mine, theirs = (getattr(storage, '_cdata', None) or storage.data_ptr() for storage in storages)
    return mine == theirs


def times_written(tensor: torch.Tensor) -> int:
    """How often operations wrote into a tensor. 0 for a tensor of inference_mode, and without `_version`."""
    return 0 if tensor.is_inference() else getattr(tensor, '_version', 0)


def is_in_backward(node: Any) -> bool:
    """Whether the running backward pass computes a node of its graph. Without the name: True."""
    try:
        return torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):  # torch refuses to answer about a leaf of torch.autograd.grad
        return True


def map_tensors(change: Callable[[torch.Tensor], object], value: object) -> Any:
    """A value in which `change` has replaced each tensor of its tuples, lists and dicts.

    Without `tree_map_only`: a recursion, which does not look into classes that a library registered.
    """
    try:
        from torch.utils._pytree import tree_map_only
    except ImportError:
        return _mapped(change, value)
    return tree_map_only(torch.Tensor, change, value)


def _mapped(change: Callable[[torch.Tensor], object], value: object) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, _mapped(change, inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        parts = [_mapped(change, inner) for inner in value]
        return type(value)(*parts) if hasattr(value, '_fields') else type(value)(parts)
    return value


# accelerate -------------------------------------------------------------------------------------------------


def forget_accelerator(with_processes: bool) -> None:
    """Lets the next Accelerator choose a precision. Otherwise accelerate keeps the first precision of a
    process.

    with_processes: whether the next Accelerator may also choose the device and the processes.
    Without `_reset_state`: this function clears the same state. If that fails too, accelerate raises an error
    for a second Accelerator of another precision.
    """
    from accelerate.state import AcceleratorState, PartialState  # here, because the import takes time

    for state in (PartialState, AcceleratorState) if with_processes else (AcceleratorState,):
        reset = getattr(state, '_reset_state', None) or getattr(state, '_shared_state', {}).clear
        reset()


# The tables of nn.Module ------------------------------------------------------------------------------------


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """The module's table of parameters, by name.

    The table takes a plain tensor in place of a parameter, which `setattr` refuses.
    """
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """The module's table of buffers, by name. The table takes a plain tensor in place of a buffer."""
    return module._buffers


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module that shares everything with `module`, except its tables of parameters and of submodules.

    The tables are copies. Changes of the copies do not change `module`.
    """
    made = object.__new__(type(module))
    made.__dict__ = {
        **module.__dict__,
        '_parameters': dict(module._parameters),
        '_modules': dict(module._modules),
    }
    return made


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The module's own table of submodules, by name."""
    return module._modules


def hooks_before(module: nn.Module) -> list[Callable]:
    """The hooks that see the module's input, in order."""
    return list(module._forward_pre_hooks.values())


def hooks_after(module: nn.Module) -> list[Callable]:
    """The hooks that see the module's output, in order."""
    return list(module._forward_hooks.values())
