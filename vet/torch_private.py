"""Every private name of torch, timm and accelerate that vet uses, with what it is for, and what happens when
a later version has it no more. timm: none.

No other file of vet uses such a name; tests/test_torch_private.py reads the tree, and removes each name in
turn. A function here looks its name up in each call. Without the name, the function computes the same in
another way, which is slower.

PRIVATE lists the names. The tables of nn.Module at the end are the exception: torch's own `nn.Module.__call__`
reads them, so no torch can be without them.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.backends import mkldnn

PRIVATE = (
    'torch._C._are_functorch_transforms_active',
    'torch.cpu._is_amx_tile_supported',
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
    'torch.UntypedStorage._cdata',
    'torch.utils._pytree.tree_map_only',
    'torch.utils._python_dispatch.TorchDispatchMode',
    'torch._dynamo',
    'accelerate.state.PartialState._reset_state',
    'accelerate.state.AcceleratorState._reset_state',
)


# What torch is doing -----------------------------------------------------------------------------------------


def is_recorded() -> bool:
    """Whether a compiler, torch.jit or torch.func follows what is computed. The first fuses by itself. The
    others refuse functions of our own that write into their input.

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
    """Whether torch.compile may have compiled something in this process. Its compiler, `torch._dynamo`, is
    imported when it is first used.

    Without a module of that name: always True.
    """
    return 'torch._dynamo' in sys.modules or importlib.util.find_spec('torch._dynamo') is None


def multiplies_bf16_tiles() -> bool:
    """Whether the processor multiplies tiles of bf16 (AMX). Without `_is_amx_tile_supported`: False, and
    attention in bf16 is torch's.
    """
    asked = getattr(torch.cpu, '_is_amx_tile_supported', None)
    return asked is not None and asked()


# Gradients ---------------------------------------------------------------------------------------------------


def softmax_gradient(dp: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The gradient of s, where p = softmax(s) over the last axis, from that of p; all (…, n).

    Without `_softmax_backward_data`: its formula, in three passes over the memory.
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
    """The gradient of x, from that of y and what `layer_norm` returned beside y.

    Without `native_layer_norm_backward`: its formula, in more passes over the memory.
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
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, how: tuple[Any, Any, Any], wanted: str
) -> torch.Tensor:
    """The gradient of x or of the weight ('x', 'weight'), where y is the convolution of x (N, in, H, W) with
    weight (out, in, kH, kW). how: stride, padding and dilation.

    Without `convolution_backward`: autograd's, which computes y again.
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


# Faster ways to compute --------------------------------------------------------------------------------------


@contextmanager
def float32_products_in_bf16() -> Iterator[None]:
    """Within, products of float32 matrices on a CPU round their entries to bf16. They add up and give float32.

    Without `mkldnn.matmul`: products are float32's, slower and more exact.
    """
    matmul: Any = getattr(mkldnn, 'matmul', None)
    if matmul is None:
        yield
        return
    before, matmul.fp32_precision = matmul.fp32_precision, 'bf16'
    try:
        yield
    finally:
        matmul.fp32_precision = before


# Kinds -------------------------------------------------------------------------------------------------------

# The classes of batch norms and of convolutions. Without their common bases: torch's own classes, and not a
# stranger's that derives from the base alone.
BATCH_NORM: Any = getattr(
    nn.modules.batchnorm, '_BatchNorm', (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
)
CONVOLUTION: Any = getattr(
    nn.modules.conv,
    '_ConvNd',
    (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def operations(*names: str) -> set[Any]:
    """torch's operations of these names in `aten`; those that are gone are left out."""
    return {getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)}


# What core.budget counts apart. Without a name: the operation costs nothing, as others that are not known.
NEW_TENSORS = operations('new_empty', 'new_zeros', 'new_ones', 'new_full')
CONVOLUTIONS = operations('convolution', '_convolution')
COUNTED_AS = dict(
    zip(
        operations('_scaled_dot_product_flash_attention_for_cpu'),
        operations('_scaled_dot_product_flash_attention'),
    )
)


class _SeesNothing:
    """In place of TorchDispatchMode: no operation comes by."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


# The class of a mode that sees each operation of torch. Without `TorchDispatchMode`: one that sees none, so
# that a stranger's model is built without a bound. SEES_OPERATIONS tells that.
try:
    from torch.utils._python_dispatch import TorchDispatchMode as _Mode
except ImportError:
    _Mode = _SeesNothing  # type: ignore[assignment,misc]
OperationsMode: Any = _Mode
SEES_OPERATIONS = _Mode is not _SeesNothing


# Tensors -----------------------------------------------------------------------------------------------------


def share_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors lie in the same storage, as a view does. Without `_cdata`: in the same memory."""
    storages = one.untyped_storage(), other.untyped_storage()
    mine, theirs = (getattr(storage, '_cdata', None) or storage.data_ptr() for storage in storages)
    return mine == theirs


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """A value with `change` made of each tensor in its tuples, lists and dicts.

    Without `tree_map_only`: by a recursion, which does not look into classes that a library registered.
    """
    try:
        from torch.utils._pytree import tree_map_only
    except ImportError:
        return _mapped(change, value)
    return tree_map_only(torch.Tensor, change, value)


def _mapped(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, _mapped(change, part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        parts = [_mapped(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, '_fields') else type(value)(parts)
    return value


# accelerate --------------------------------------------------------------------------------------------------


def forget_accelerator(with_processes: bool) -> None:
    """accelerate keeps one device and one precision for a process. After this, the next Accelerator chooses
    anew. with_processes: it may choose the device and the processes too.

    Without `_reset_state`: what it clears is cleared here. Without that too, accelerate refuses a second
    Accelerator of another precision, by an error.
    """
    from accelerate.state import AcceleratorState, PartialState  # here, since it takes time

    for state in (PartialState, AcceleratorState) if with_processes else (AcceleratorState,):
        reset = getattr(state, '_reset_state', None) or getattr(state, '_shared_state', {}).clear
        reset()


# The tables of nn.Module -------------------------------------------------------------------------------------


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """The module's own table of parameters, by name. Whoever writes a plain tensor into the table gives the
    module that tensor for the parameter, which `setattr` refuses."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """The module's own table of buffers, by name, in which a plain tensor may stand for another."""
    return module._buffers


def twin(module: nn.Module) -> Any:
    """A module that shares all of `module`, but for its tables of parameters and of submodules, which are
    copies. Whatever is written into the copies leaves `module` as it is."""
    made: Any = object.__new__(type(module))
    made.__dict__ = {
        **module.__dict__,
        '_parameters': dict(module._parameters),
        '_modules': dict(module._modules),
    }
    return made


def children_of(module: nn.Module) -> dict[str, Any]:
    """The module's own table of submodules, by name."""
    return module._modules


def hooks_before(module: nn.Module) -> list[Any]:
    """The hooks that see the module's input, in order."""
    return list(module._forward_pre_hooks.values())


def hooks_after(module: nn.Module) -> list[Any]:
    """The hooks that see the module's output, in order."""
    return list(module._forward_hooks.values())
