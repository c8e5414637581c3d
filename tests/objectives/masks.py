"""Small drawings with masks: folders, a user's dataset, and a trainer of a tiny ViT."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vet import build_trainer

NAMES = ['ground', 'box', 'stripe']
COLORS = np.array([[40, 120, 40], [200, 60, 40], [60, 80, 220]], np.uint8)
VOID = 9  # the number of pixels without a class
VIT = dict(
    type='timm',
    name='vit_tiny_patch16_224',
    pretrained=False,
    kwargs=dict(img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2),
    preprocessing=dict(size=32),
)


def drawing(number, size=(32, 32)):
    """An RGB array, and its mask with VOID at the edge: a box and a stripe on the ground."""
    draw, mask = np.random.default_rng(number), np.zeros(size, np.uint8)
    top, left = draw.integers(2, size[0] - 16), draw.integers(2, size[1] - 16)
    mask[top : top + 12, left : left + 12] = 1
    row = draw.integers(0, size[0] - 6)
    mask[row : row + 5] = 2
    pixels = np.clip(COLORS[mask] + draw.integers(-20, 20, (*size, 3)), 0, 255).astype(np.uint8)
    mask[:, 0] = VOID
    return pixels, mask


def write_folder(folder, counts=(('train', 12), ('val', 4), ('test', 5)), size=(32, 32)):
    """folder/<split>/{images,masks}/: the same drawings at each call."""
    for split, count in counts:
        for part in ('images', 'masks'):
            (folder / split / part).mkdir(parents=True)
        for number in range(count):
            pixels, mask = drawing(f'{split}{number}'.__len__() * 100 + number + len(split), size)
            Image.fromarray(pixels).save(folder / split / 'images' / f'{number}.png')
            Image.fromarray(mask).save(folder / split / 'masks' / f'{number}.png')
    return folder


def config(folder, **options):
    made = dict(
        model=dict(backbone=dict(VIT), tuners=[dict(type='LoRA', rank=4)], head=dict(type='LinearMask')),
        dataset={
            split: dict(type='MaskFolder', path=str(folder), split=split, classes=NAMES, ignore=[VOID])
            for split in ('train', 'val', 'test')
        },
        train=dict(
            max_epochs=2,
            optimizer=dict(type='AdamW', lr=1e-2),
            transform=[dict(type='RandomHorizontalFlip')],
            precision='fp32',
            dataloader=dict(batch_size_per_gpu=4, workers_per_gpu=0),
        ),
        evaluation=dict(dataloader=dict(workers_per_gpu=0), report=False),
    )
    for path, value in options.items():
        *sections, key = path.split('.')
        section = made
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return made


def trainer_of(folder, work, resume=None, **options):
    return build_trainer(model=config(folder, **options), work_dir=work, resume=resume, device='cpu')


if __name__ == '__main__':  # by torchrun: FOLDER WORK
    trainer_of(Path(sys.argv[1]), Path(sys.argv[2])).train()
