"""Facts that a result depends on beside its config: versions, machine, device and the code's git revision."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import vet
from vet.torch_private import multiplies_bf16_tiles

NO_CODE = (
    ':(top)',
    ':(top,exclude)benchmarks/results',
    ':(top,exclude)benchmarks/speed/results',
    ':(top,exclude,glob)**/*.md',
)
PACKAGES = ('torch', 'torchvision', 'timm', 'mmengine', 'accelerate', 'numpy', 'safetensors')


def describe(device: torch.device) -> dict[str, object]:
    """A description of the machine and the code, which JSON can hold.

    'git_changes' says whether the code differs from the commit 'git_revision'. Result files and pages (.md)
    are not code.
    """
    is_gpu = device.type == 'cuda'
    # not if vet is installed below the repository of another project
    is_checkout = bool(_git('ls-files', Path(vet.__file__).name))
    return dict(
        vet=vet.__version__,
        git_revision=_git('rev-parse', 'HEAD') if is_checkout else None,
        git_changes=is_checkout and bool(_git('status', '--porcelain', '--', *NO_CODE)),
        python=platform.python_version(),
        platform=platform.platform(),
        device=torch.cuda.get_device_name(device) if is_gpu else f'{device.type}, {_processor()}',
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        multiplies_bf16_tiles=multiplies_bf16_tiles(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        packages={name: metadata.version(name) for name in PACKAGES},
    )


def host(device: torch.device) -> dict[str, object]:
    """The machine and torch: facts on which the speed of a computation depends."""
    is_gpu = device.type == 'cuda'
    return dict(
        device=torch.cuda.get_device_name(device) if is_gpu else f'{device.type}, {_processor()}',
        instructions=torch.backends.cpu.get_cpu_capability(),
        multiplies_bf16_tiles=multiplies_bf16_tiles(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def _processor() -> str:
    """The processor's model, if the system names it. Otherwise its kind."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return models[0] if models else platform.processor() or platform.machine()


def _git(*args: str) -> str | None:
    """git's answer about the source of vet. None: the source is no checkout."""
    try:
        answer = subprocess.run(
            ['git', *args], cwd=Path(vet.__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
