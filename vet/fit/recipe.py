"""The config of a training on photos, which `vet train` runs too."""

from pathlib import Path
from pprint import pformat

from vet.config import Plugin
from vet.files import JsonObject
from vet.fit.choices import BATCH, Plan
from vet.registry import TUNERS

USUAL: dict[str, Plugin] = {'LoRA': dict(rank=8)}  # arguments of a tuner, beside its defaults
PROBE = [dict(type='LinearProbe')]
PROBE_EPOCHS = 30
STILL = [dict(type='EvaluationCrop')]  # as in evaluation
AUGMENTED = [dict(type='RandomResizedCrop', scale=[0.4, 1.0]), dict(type='RandomHorizontalFlip')]


def tuner_entry(name: str) -> Plugin:
    """The config entry of a tuner. 'auto' is LoRA. UserError for an unknown name."""
    chosen = 'LoRA' if name == 'auto' else name
    TUNERS.find(chosen)
    return {**USUAL.get(chosen, {}), 'type': chosen}


def recipe(table: Path, classes: list[str], chosen: Plan, tuners: list[Plugin], seed: int) -> JsonObject:
    """The config of a training. table: a CSV path,label,split. The linear probe sees each photo once."""
    is_probe = tuners == PROBE
    labels = {name: label for label, name in enumerate(classes)}  # names may be numbers
    entry = dict(type='CSV', file=str(table.absolute()), separator=None, classes=classes, label_map=labels)
    return dict(
        model=dict(backbone=chosen.backbone, tuners=tuners, head=dict(type='Linear')),
        dataset={split: dict(entry, split=split) for split in ('train', 'val', 'test')},
        train=dict(
            max_epochs=PROBE_EPOCHS if is_probe else chosen.epochs,
            optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4),
            lr_scheduler=dict(warmup_epochs=min(1, chosen.epochs / 10)),
            dataloader=dict(batch_size_per_gpu=BATCH),
            transform=STILL if is_probe else AUGMENTED,
            cache_features=is_probe,
            cache_images=not is_probe,
        ),
        evaluation=dict(metrics='accuracy', select='best', before=False),
        seed=seed,
    )


def as_file(config: JsonObject, command: str) -> str:
    """The text of a config file that `command` wrote."""
    sections = '\n'.join(f'{key} = {pformat(value, sort_dicts=False)}' for key, value in config.items())
    return f'"""Written by {command}. `vet train` runs this file."""\n\n{sections}\n'
