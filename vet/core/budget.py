"""Limits the cost of a stranger's model. vet counts memory, tensors, operations and calls before they are
spent.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psutil
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import flop_registry

from vet.core.modes import in_eval
from vet.errors import DataError, UserError
from vet.torch_private import CONVOLUTIONS, COUNTED_AS, NEW_TENSORS, SEES_OPERATIONS, OperationsMode

MEMORY = 0.75  # the share of the free memory for new tensors
NUMBERS = 2**27  # in one new tensor; the largest matrix of a published network, VGG's, has 103 million
TENSORS = 20_000  # new tensors; the largest networks have a few thousand parameters
# floating point, in matrix products and attention; seven billion parameters on one image take 5e12
OPERATIONS = 1e13
# calls of a function of torch, each of some 50 microseconds; 64 tasks of one LoRA take 190,000. Each tuner
# proves that it runs together with all tuners before, so the calls grow with the square of their number.
CALLS = 500_000


class Budget(OperationsMode):
    """Within this context, a tensor that is too large is refused before it is made.

    The context also refuses more tensors than TENSORS, more operations than OPERATIONS, and more calls than
    CALLS.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: float
        self.tensors: float
        self.bytes = MEMORY * psutil.virtual_memory().available
        self.tensors = TENSORS
        self.operations = OPERATIONS
        self.calls = CALLS

    def __enter__(self) -> 'Budget':
        self._around = _budget.set(self)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _budget.reset(self._around)

    def __torch_dispatch__(
        self, op: Any, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        self._spend_call()
        if not any(isinstance(value, torch.Tensor) for value in args) or op.overloadpacket in NEW_TENSORS:
            self._spend_memory(args, kwargs)
        count = flop_registry.get(COUNTED_AS.get(op.overloadpacket, op.overloadpacket))
        if count and op.overloadpacket not in CONVOLUTIONS:
            self._spend_operations(count(*args, **kwargs))
        made = op(*args, **kwargs)
        if count and op.overloadpacket in CONVOLUTIONS:
            self._spend_operations(count(*args, **kwargs, out_val=made))
        return made

    def _spend_call(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise DataError(
                f'to build and to check the network, its tuners and its head takes more than {CALLS:,} calls '
                'of functions of torch. Use fewer tuners, or fewer tasks.'
            )

    def _spend_memory(self, args: tuple, kwargs: dict) -> None:
        sizes = [value for value in (*args, *kwargs.values()) if _is_size(value)]
        if args and type(args[-1]) is int and not sizes:  # arange, eye
            sizes = [[max(abs(value) for value in args if type(value) is int)]]
        numbers = max((math.prod(size) for size in sizes), default=0)
        self.bytes -= 4 * numbers
        self.tensors -= bool(sizes)
        if numbers > NUMBERS:
            raise DataError(
                f'the network, its tuners or its head have a tensor of {numbers:,} numbers; allowed: '
                f'{NUMBERS:,}.'
            )
        if self.bytes < 0:
            raise DataError(
                f'the network, its tuners and its head need more than {MEMORY:.0%} of the memory that is '
                f'free here ({psutil.virtual_memory().available / 2**30:.1f} GiB).'
            )
        if self.tensors < 0:
            raise DataError(f'the network, its tuners and its head have more than {TENSORS:,} tensors.')

    def _spend_operations(self, operations: float) -> None:
        self.operations -= operations
        if self.operations < 0:
            raise _too_many_operations()


_budget: ContextVar[Budget | None] = ContextVar('budget', default=None)  # the innermost that is entered


def rehearse_building(build: Callable[[], object]) -> None:
    """Within a Budget: counts the cost of the network that `build` makes, without using the network's
    memory.
    """
    budget = _budget.get()
    if budget is None:
        return
    left = budget.bytes, budget.tensors, budget.operations
    try:
        with torch.device('meta'):
            build()
    except UserError:
        raise
    except Exception:  # numbers are missing, or arguments do not fit; then the real build raises the error
        pass
    finally:
        budget.bytes, budget.tensors, budget.operations = left


@contextmanager
def unbounded() -> Iterator[None]:
    """Within this context, a Budget counts only calls: the meta device takes no memory and no operations."""
    budget = _budget.get()
    if budget is None:
        yield
        return
    left = budget.bytes, budget.tensors, budget.operations
    budget.bytes = budget.tensors = budget.operations = math.inf
    try:
        yield
    finally:
        budget.bytes, budget.tensors, budget.operations = left


def rehearse(network: nn.Module, image: torch.Tensor) -> float:
    """Within a Budget: counts the operations of one image, without computing the image. Returns the count.

    If the network cannot run without numbers, nothing is counted: 0. The caller computes the same image next,
    so DataError if the rest of the budget is less than the cost.
    """
    budget = _budget.get()
    if budget is None:
        return 0
    state = {
        name: tensor.to('meta') for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    before = budget.operations
    try:
        with torch.no_grad(), in_eval(network):
            functional_call(network, state, (image.to('meta'),))
    except UserError:
        raise
    except Exception:  # a step needs numbers, or the image does not fit; then the dry run raises the error
        return 0
    cost = before - budget.operations
    if cost > budget.operations:
        raise _too_many_operations()
    return cost


def _too_many_operations() -> DataError:
    return DataError(f'the network needs more than {OPERATIONS:.0e} operations for one image.')


@contextmanager
def bounded(source: str, advice: str = '') -> Iterator[None]:
    """Builds a stranger's model within this context: within a Budget, and with DataErrors about `source`.

    Every error of a library becomes such a DataError.
    """
    if not SEES_OPERATIONS:
        warnings.warn(
            f'torch {torch.__version__} does not show its operations, so vet cannot limit the memory that '
            f'{source} takes. Load only folders that you trust.',
            stacklevel=3,
        )
    try:
        with Budget():
            yield
    except UserError as error:
        if not advice or str(error).endswith(advice):
            raise
        raise DataError(f'{error} {advice}') from error
    except Exception as error:  # a library did not expect a value
        said = next(iter(str(error).strip().splitlines()), '')
        raise DataError(
            f'{source} cannot be built: {type(error).__name__}: {said[:300]} {advice}'.rstrip()
        ) from error


def _is_size(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(type(number) is int and number >= 0 for number in value)
    )
