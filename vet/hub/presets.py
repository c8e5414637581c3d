"""Models that vet knows by an id.

An id stands for a config; `build_trainer` and `pipeline` take it like a path.
"""

import copy
from collections.abc import Iterable

from vet.errors import UnknownNameError
from vet.files import JsonObject

CHECKPOINTS = dict(
    vitb16=dict(type='timm', name='vit_base_patch16_224.orig_in21k'),
    vitl14=dict(type='timm', name='vit_large_patch14_clip_quickgelu_224.openai'),
)
METHODS = dict(lora=dict(lora_length=10))


def _id(backbone: str, tuner: str) -> str:
    return f'damo/cv_{backbone}_classification_vision-efficient-tuning-{tuner}'


PRESETS: dict[str, JsonObject] = {
    _id(backbone, tuner): dict(
        model=dict(
            backbone=dict(CHECKPOINTS[backbone], **METHODS[tuner]),
            tuners=[],
            head=dict(type='Linear', num_classes=None),
            finetune=True,
        ),
        dataset=dict(),
        train=dict(max_epochs=20, lr_scheduler=dict(type='CosineAnnealingLR', T_max=None, warmup_epochs=1)),
    )
    for backbone in CHECKPOINTS
    for tuner in METHODS
}


def preset(name: str, others: Iterable[str] = ()) -> JsonObject:
    """The config of a model that vet knows. The owner ('damo/…') may be left out.

    UnknownNameError, with all ids and the `others` that the caller takes, for another name.
    """
    for known, config in PRESETS.items():
        if name in (known, known.partition('/')[2]):
            return copy.deepcopy(config)
    raise UnknownNameError(
        'model',
        name,
        [*PRESETS, *others],
        'Or give a config file (.py, .yaml, .json) or a model folder that exists.',
    )
