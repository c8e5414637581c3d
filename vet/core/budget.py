"""What building a stranger's model may cost: memory, calls and operations are counted before they are
spent.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.flop_counter import flop_registry

from vet.core.modes import in_eval
from vet.errors import DataError, UserError

MEMORY = 0.75  # of what is free, for new tensors
NUMBERS = 2**27  # in one new tensor; the largest matrix of a published network, VGG's, has 103 million
TENSORS = 20_000  # new ones; the largest networks have a few thousand parameters
OPERATIONS = (
    1e13  # floating point, of matrix products and attention; seven billion parameters on one image take 5e12
)


class Budget(TorchDispatchMode):
    """Within, a new tensor that is too large is refused before it is made, as is one tensor or product
    too many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.tensors, self.operations = (
            MEMORY * psutil.virtual_memory().available,
            TENSORS,
            OPERATIONS,
        )

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, torch.Tensor) for value in args) or op.overloadpacket in _NEW:
            self._spend_memory(args, kwargs)
        count = flop_registry.get(_KNOWN_AS.get(op.overloadpacket, op.overloadpacket))
        if count and op.overloadpacket not in _CONVOLUTIONS:
            self._spend_operations(count(*args, **kwargs))
        made = op(*args, **kwargs)
        if count and op.overloadpacket in _CONVOLUTIONS:
            self._spend_operations(count(*args, **kwargs, out_val=made))
        return made

    def _spend_memory(self, args: Any, kwargs: Any) -> None:
        sizes = [value for value in (*args, *kwargs.values()) if _is_size(value)]
        if args and type(args[-1]) is int and not sizes:  # arange, eye
            sizes = [[max(abs(value) for value in args if type(value) is int)]]
        numbers = max((math.prod(size) for size in sizes), default=0)
        self.bytes -= 4 * numbers
        self.tensors -= bool(sizes)
        if numbers > NUMBERS:
            raise DataError(
                f'the network or what is trained of it has a tensor of {numbers:,} numbers; allowed: '
                f'{NUMBERS:,}.'
            )
        if self.bytes < 0:
            raise DataError(
                f'the network and what is trained of it need more than {MEMORY:.0%} of the memory that is '
                f'free here ({psutil.virtual_memory().available / 2**30:.1f} GiB).'
            )
        if self.tensors < 0:
            raise DataError(f'the network and what is trained of it have more than {TENSORS:,} tensors.')

    def _spend_operations(self, operations: float) -> None:
        self.operations -= operations
        if self.operations < 0:
            raise DataError(f'the network needs more than {OPERATIONS:.0e} operations for one image.')


def rehearse_building(build: Callable[[], Any]) -> None:
    """Within a Budget: counts what the network costs that `build` makes, without its memory."""
    budget = _get_current_dispatch_mode()
    if not isinstance(budget, Budget):
        return
    left = budget.bytes, budget.tensors, budget.operations
    try:
        with torch.device('meta'):
            build()
    except UserError:
        raise
    except (
        Exception
    ):  # a constructor that needs numbers, or arguments that do not fit, which the real one names
        pass
    finally:
        budget.bytes, budget.tensors, budget.operations = left


def rehearse(network: nn.Module, image: torch.Tensor) -> None:
    """Within a Budget: counts what one image costs, without computing it. Of a network that cannot run
    so, nothing is counted.
    """
    if not isinstance(_get_current_dispatch_mode(), Budget):
        return
    state = {
        name: tensor.to('meta') for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    try:
        with torch.no_grad(), in_eval(network):
            functional_call(network, state, (image.to('meta'),))
    except UserError:
        raise
    except Exception:  # a step that needs numbers, or an image that does not fit, which the dry run names
        return


@contextmanager
def bounded(source: str, advice: str = '') -> Iterator[None]:
    """Within, a stranger's model is built: within a Budget, and any error of a library becomes a
    DataError about `source`.
    """
    try:
        with Budget():
            yield
    except UserError as error:
        if not advice or str(error).endswith(advice):
            raise
        raise DataError(f'{error} {advice}') from error
    except Exception as error:  # a library's, about a value that the library did not expect
        said = next(iter(str(error).strip().splitlines()), '')
        raise DataError(
            f'{source} cannot be built: {type(error).__name__}: {said[:300]} {advice}'.rstrip()
        ) from error


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(type(one) is int and one >= 0 for one in value)
    )


aten = torch.ops.aten
_NEW = {aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full}
_KNOWN_AS = {aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention}
_CONVOLUTIONS = {aten.convolution, aten._convolution}
