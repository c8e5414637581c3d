"""The device and the precision of a run: an Accelerator."""

import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from vet.errors import UserError
from vet.torch_private import forget_accelerator


def make_accelerator(
    device: str | None = None, precision: str = 'auto', some_unused: bool = False
) -> Accelerator:
    """An Accelerator on `device` ('cpu', 'cuda', 'cuda:1', 'mps'; None: the best device of the machine).

    precision: 'fp32', 'bf16' (autocast), 'fp8' (the same; a training adds vet/engine/fast/fp8.py), or 'auto':
        bf16 if the hardware has bf16.
    some_unused: whether a step may leave trained parameters without a gradient, as with several tasks.

    If a machine without a GPU has several processes, each computes on the CPU. UserError if processes cannot
    work together.
    """
    processes = int(os.environ.get('WORLD_SIZE', 1))
    if (
        device is None
        and (processes > 1 or not torch.accelerator.is_available())
        and not torch.cuda.is_available()
    ):
        device = 'cpu'  # otherwise accelerate would let each process train alone
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f'the device {device!r} cannot be used: {str(error).splitlines()[0]} '
                f'Allowed: cpu, cuda, cuda:N, mps, where the machine has it.'
            ) from error
        if device.startswith('cuda:'):
            torch.cuda.set_device(device)
    is_gpu = device != 'cpu' and torch.cuda.is_available()
    if precision == 'auto':
        precision = 'bf16' if is_gpu and torch.cuda.is_bf16_supported() else 'fp32'
    # a later trainer may need another device or precision
    forget_accelerator(with_processes=not torch.distributed.is_initialized())
    # batch_norms.py shares the buffers that train
    parallel = DistributedDataParallelKwargs(find_unused_parameters=some_unused, broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=device == 'cpu',
        mixed_precision='no' if precision == 'fp32' else 'bf16',
        kwargs_handlers=[parallel],
    )
    if accelerator.num_processes != processes:
        raise UserError(
            f'{processes} processes were started, but on the device {str(accelerator.device)!r} they cannot '
            'share the work; start one process, or give --device cpu.'
        )
    return accelerator


def precision_of(accelerator: Accelerator) -> str:
    """'bf16' or 'fp32'. (`accelerator.mixed_precision` is always that of the newest accelerator.)"""
    return 'bf16' if accelerator.native_amp else 'fp32'
