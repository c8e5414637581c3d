"""Model folders on the shipped backbone, of every objective, each of whose trained numbers is random."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vet.core.assemble import build_classifiers
from vet.core.objective import build_objective
from vet.hub.model_folder import save_model
from vet.registry import BACKBONES

LORA = dict(type='LoRA', rank=2)


def save(
    folder: Path,
    seed: int = 0,
    tuner: dict = LORA,
    names: str = 'abcdefg',
    objective: dict | None = None,
    head: dict | None = None,
    tasks: tuple = (None,),
    evaluation: dict | None = None,
) -> Path:
    """Writes a model folder, by one rename."""
    head = head or dict(type='Linear')
    parts = {}
    for task in tasks:
        parts[task] = (
            BACKBONES.build(dict(type='DigitsViT')),
            head,
            list(names),
            build_objective(objective, list(names)),
        )
    model = build_classifiers(parts, [tuner])
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    of_tasks = {} if tasks == (None,) else {task: {} for task in tasks}
    settings = dict(
        model=dict(tuners=[tuner], head=head, tasks=of_tasks, shared='.*'),
        dataset={},
        train={},
        evaluation=evaluation or {},
        seed=seed,
    )
    save_model(model, folder, dict(settings=settings, metrics=dict(accuracy=0.5)))
    return folder


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = 'PNG') -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()
