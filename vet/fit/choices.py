"""Chooses a backbone by its size, and the image size and epochs by a short timing."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache

from vet.builders import build_model
from vet.config import read_settings
from vet.engine.device import make_accelerator
from vet.errors import UnknownNameError, UserError
from vet.log import say

SIZES = {  # from small to large; all read ImageNet-21k's 21,843 classes in their pretraining
    'small': 'vit_small_patch16_224.augreg_in21k',
    'base': 'vit_base_patch16_224.augreg_in21k',
    'large': 'vit_large_patch16_224.augreg_in21k',
}
TRIAL = 'trial'
PIXELS = (160, 112, 64)  # smaller images that a slow machine may take
LEAST_EPOCHS = 5
MOST_EPOCHS = 30
BATCH = 32
SHARE = 0.6  # of the minutes for the training steps; the rest is for reading, validation, test and probe
Entry = dict[str, Any]


def backbone_entry(name: str | None, checkpoint: str | None) -> Entry:
    """The config entry of the backbone. UserError if the weights are not on this machine, and cannot be
    downloaded.

    name: small, base or large; a timm name; 'trial', the small ViT that ships with vet; a file of weights
        whose name begins with the timm name, or beside which Hugging Face's config.json names the network;
        None: the largest of base and small that timm has downloaded before, else small.
    checkpoint: a file with the weights of `name`.
    """
    if name == TRIAL:
        if checkpoint is not None:
            raise UserError(
                f'--checkpoint is {checkpoint!r}, but --backbone {TRIAL} ships with its weights. Leave '
                '--checkpoint out, or name another backbone.'
            )
        return dict(type='DigitsViT')
    if name is not None and checkpoint is None and Path(name).is_file():
        return dict(type='timm', name=_named_by(Path(name)), checkpoint=str(Path(name).absolute()))
    if checkpoint is not None:
        if name is None:
            raise UserError(
                "--checkpoint needs --backbone NAME: timm's name of the network, such as "
                'vit_small_patch16_224.'
            )
        return dict(type='timm', name=_known(name), checkpoint=checkpoint)
    chosen = _known(name) if name else next(filter(_is_here, _preferred()), SIZES['small'])
    if not _is_here(chosen):
        say(
            f'The weights of {chosen} are downloaded from {_source(chosen)}. For a trial without a download, '
            f'give --backbone {TRIAL}.'
        )
    return dict(type='timm', name=chosen)


def _known(name: str) -> str:
    """timm's name. UserError for an unknown name."""
    chosen = SIZES.get(name, name)
    if not timm.is_model(chosen):
        raise UnknownNameError('backbone', name, [*SIZES, TRIAL, *timm.list_models()], 'Give a name of timm.')
    return chosen


def _named_by(file: Path) -> str:
    """timm's name of the network whose weights a file holds. UserError if nothing tells the name."""
    beside = file.parent / 'config.json'
    try:
        told = json.loads(beside.read_text()).get('architecture')
    except (OSError, ValueError, AttributeError):  # there is no such file, or no dict of JSON in the file
        told = None
    fitting = [name for name in timm.list_models() if file.name.startswith(name)]
    name = told if isinstance(told, str) and timm.is_model(told) else max(fitting, key=len, default='')
    if not name:
        raise UserError(
            f'--backbone {str(file)!r} is a file, but nothing tells the network of the weights. Give '
            f'--backbone NAME --checkpoint {file}, with a NAME of timm; or let the name of the file begin '
            'with NAME.'
        )
    return name


def _preferred() -> list[str]:
    return [SIZES['base'], SIZES['small']]


def _source(name: str) -> str:
    cfg = timm.models.get_pretrained_cfg(name)
    return f'huggingface.co/{cfg.hf_hub_id}' if cfg and cfg.hf_hub_id else 'the place that timm names'


def _is_here(name: str) -> bool:
    """Whether timm has downloaded the weights before."""
    cfg = timm.models.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return False
    # timm names the repository timm/ and the network with its tag
    repository = cfg.hf_hub_id if '/' in cfg.hf_hub_id and not cfg.hf_hub_id.endswith('/') else f'timm/{name}'
    files = ('model.safetensors', 'pytorch_model.bin')
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


@dataclass(frozen=True)
class Plan:
    """The length and the image size of a training. size: pixels of a side. None: the size of the backbone."""

    backbone: Entry
    epochs: int
    size: int | None
    seconds: float


def plan(
    backbone: Entry, tuners: list[Entry], classes: list[str], images: int, minutes: float, device: str | None
) -> Plan:
    """The largest image size at which the training has LEAST_EPOCHS epochs within the minutes."""
    budget = minutes * 60 * SHARE
    options: list[int | None] = [None, *PIXELS] if backbone['type'] == 'timm' else [None]
    last: Plan | None = None
    for size in options:
        entry = backbone if size is None else _smaller(backbone, size)
        try:
            seconds = _seconds_of_an_image(entry, tuners, classes, device) * images
        except UserError:
            if size is None:
                raise
            continue  # the network takes no other size
        last = Plan(entry, max(1, min(MOST_EPOCHS, int(budget / seconds))), size, seconds)
        if last.epochs >= LEAST_EPOCHS:
            return last
    assert last is not None
    return last


def _smaller(backbone: Entry, size: int) -> Entry:
    return dict(backbone, kwargs=dict(img_size=size), preprocessing=dict(size=size, crop_pct=1.0))


def _seconds_of_an_image(
    backbone: Entry, tuners: list[Entry], classes: list[str], device: str | None
) -> float:
    """Seconds of a training step for each image, with the forward of a validation."""
    config = dict(
        model=dict(backbone=backbone, tuners=tuners, head=dict(type='Linear')),
        dataset=dict(train=dict(type='CSV', file='none.csv')),
    )
    model = build_model(read_settings(config), classes)
    accelerator = make_accelerator(device, 'auto')
    model = model.to(accelerator.device).train()
    size = model.for_task(None).backbone.preprocessing.size
    images = torch.rand(8, 3, *size, device=accelerator.device)
    steps = []
    for _ in range(4):  # the first step is slower, and other programs may slow each step
        begin = time.perf_counter()
        with accelerator.autocast():
            model(images).float().sum().backward()
        if accelerator.device.type == 'cuda':
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - begin)
    return min(steps) / len(images)
