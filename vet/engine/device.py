"""Where a run computes and in which precision: an Accelerator."""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState

from vet.errors import UserError


def make_accelerator(device: str | None = None, precision: str = 'auto', some_unused: bool = False) -> Accelerator:
    """An Accelerator on `device` ('cpu', 'cuda', 'cuda:1', 'mps'; None: the best there is).

    precision: 'fp32', 'bf16' (autocast), 'fp8' (the same; a training adds vet/engine/fp8.py), or 'auto': bf16 where the hardware
        has it.
    some_unused: whether a step may leave trained parameters without a gradient, as one of several tasks does.
    """
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f'the device {device!r} cannot be used: {str(error).splitlines()[0]} '
                            f'Allowed: cpu, cuda, cuda:N, mps, where the machine has it.') from error
        if device.startswith('cuda:'):
            torch.cuda.set_device(device)
    is_gpu = device != 'cpu' and torch.cuda.is_available()
    if precision == 'auto':
        precision = 'bf16' if is_gpu and torch.cuda.is_bf16_supported() else 'fp32'
    if not torch.distributed.is_initialized():      # accelerate keeps one device a process; a later trainer's may differ
        PartialState._reset_state()
    AcceleratorState._reset_state()
    parallel = DistributedDataParallelKwargs(find_unused_parameters=some_unused)
    return Accelerator(cpu=device == 'cpu', mixed_precision='no' if precision == 'fp32' else 'bf16', kwargs_handlers=[parallel])


def precision_of(accelerator: Accelerator) -> str:
    """'bf16' or 'fp32'. Its own `mixed_precision` is that of the accelerator made last, whichever one is asked."""
    return 'bf16' if accelerator.native_amp else 'fp32'
