"""Counts the tensors that get a gradient with PEFT's LoRA and with vet's LoRA, network by network.

    python benchmarks/peft_coverage.py

Each network has random weights. PEFT gets the module names that a user reads in `print(net)`. vet gets the
default place of LoRA. For a network without attention, vet gets the same modules as PEFT. All tensors of LoRA
start with random numbers, because a factor of zeros hides the gradient of the other factor. One image goes
forward and backward. A tensor counts if it has a gradient that is not zero. Writes
results/peft_coverage.json.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import open_clip
import peft
import timm
import torch
import torchvision
from torch import nn

import vet
from vet.benchmark import record
from vet.environment import describe

RESULTS = Path(__file__).parent / 'results' / 'peft_coverage.json'
RANK = 8


@dataclass(frozen=True)
class Case:
    """A network, the names that a user of PEFT gives, and the place of vet's LoRA. ''  is LoRA's default."""

    name: str
    make: Callable[[], nn.Module]
    targets: list[str]
    at: str = ''
    size: int = 224


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10)


def _clip() -> nn.Module:
    return open_clip.create_model('ViT-B-32').visual


CASES = [
    Case('timm beit_base_patch16_224', _timm('beit_base_patch16_224'), ['qkv']),
    Case('timm beitv2_base_patch16_224', _timm('beitv2_base_patch16_224'), ['qkv']),
    Case('timm swinv2_tiny_window8_256', _timm('swinv2_tiny_window8_256'), ['qkv'], size=256),
    Case('torchvision swin_v2_t', torchvision.models.swin_v2_t, ['qkv'], size=256),
    Case('timm eva02_base_patch14_224', _timm('eva02_base_patch14_224'), ['q_proj', 'k_proj', 'v_proj']),
    Case('timm eva02_tiny_patch14_224', _timm('eva02_tiny_patch14_224'), ['qkv']),
    Case('OpenCLIP ViT-B-32, vision', _clip, ['out_proj']),
    Case('OpenCLIP ViT-B-32, vision', _clip, ['attn']),
    Case('timm resnext50_32x4d', _timm('resnext50_32x4d'), ['conv2'], '*.conv2'),
    Case('timm vit_base_patch16_224', _timm('vit_base_patch16_224'), ['qkv']),
]


def made(case: Case) -> nn.Module:
    """The network of the case. Tensors of zeros, which hide gradients, get small random numbers."""
    torch.manual_seed(0)
    network = case.make().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    return network


def counted(network: nn.Module, tensors: Iterable[nn.Parameter], size: int) -> dict[str, int]:
    """How many tensors LoRA made, and how many of them get a gradient from one image."""
    tensors = list(tensors)
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_(0, 0.02)
    loss = network(torch.randn(1, 3, size, size)).square().sum()
    if loss.requires_grad:  # without, no tensor of LoRA takes part in the forward
        loss.backward()
    reached = sum(tensor.grad is not None and bool(tensor.grad.any()) for tensor in tensors)
    return dict(made=len(tensors), reached=reached)


def by_peft(case: Case) -> dict[str, Any]:
    try:
        network = peft.get_peft_model(made(case), peft.LoraConfig(r=RANK, target_modules=case.targets))
    except ValueError as error:
        return dict(refused=str(error).partition('\n')[0])
    tensors = (parameter for name, parameter in network.named_parameters() if 'lora_' in name)
    return counted(network, tensors, case.size)


def by_vet(case: Case) -> dict[str, Any]:
    tuner = vet.LoRA(rank=RANK, at=case.at) if case.at else vet.LoRA(rank=RANK)
    tuned = vet.tune(made(case), tuner)
    reached, missed = tuner.coverage().attentions
    tensors = (parameter for name, parameter in tuned.trainable().items() if '.deltas.' in name)
    attentions = dict(attentions=len(reached + missed), reached_attentions=len(reached))
    return counted(tuned, tensors, case.size) | attentions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--only', nargs='+', default=[''], help='parts of the names of networks')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    environment = describe(torch.device('cpu'))
    environment['packages'] |= {name: metadata.version(name) for name in ('peft', 'open_clip_torch')}
    runs = []
    for case in CASES:
        if any(name in case.name for name in args.only):
            runs.append(
                dict(name=case.name, targets=case.targets, at=case.at, peft=by_peft(case), vet=by_vet(case))
            )
            print(runs[-1], flush=True)
    record.write(path, dict(rank=RANK, runs=runs, environment=environment))


if __name__ == '__main__':
    main()
