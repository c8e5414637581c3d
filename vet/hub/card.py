"""The model card: the README.md that the Hugging Face hub shows. The card says only what the folder holds."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vet.core.objective import DEFAULT, Objective
from vet.core.tensor_file import read_tensors
from vet.files import JsonObject
from vet.hub.file_names import TENSORS
from vet.hub.model_folder import AGAIN, read_configuration, tensors_sha256
from vet.registry import OBJECTIVES

CARD = """---
{front}
---

# {name}

This folder holds the trained part of {about}: {tuners} on {backbones}. The backbone's own weights
are not here. Together with these weights, the folder is the whole model.

## Use

{use}
Other weights than those named below are refused.

## Model

{model}

## Measured on the test split

{measured}

## Recipe

{recipe}

All settings are in configuration.json.
"""
USE = """```python
from vet import pipeline

pipeline('vision-efficient-tuning', {repo_id!r}{task})('image.jpg')
```

If the backbone's weights are not where their library keeps them, `backbone=PATH` says where they are."""
USE_OF_A_NETWORK = """```python
import vet

tuned = vet.load({repo_id!r}, network)  # edits the network
classify = vet.pipeline({repo_id!r}, network=network)  # leaves the network as it is
```

`network` is the {name} that was tuned, with its weights."""
Entry = Mapping[str, Any]


def model_card(folder: str | Path, repo_id: str = 'OWNER/NAME', license: str | None = None) -> str:
    """The model card of a model folder: Markdown, with YAML at the top that the hub reads.

    repo_id: the name that the card gives to `pipeline`.
    DataError if the configuration or the tensors cannot be read.
    """
    given = read_configuration(folder)
    path = Path(folder) / TENSORS
    configuration = without_paths(given)
    counts = _count(read_tensors(path, AGAIN, tensors_sha256(given, folder)))
    model = configuration['model']
    metrics = _numbers(configuration.get('metrics'))
    parts = _parts(configuration)
    classes = configuration['classes'] if model.get('tasks') else {'': configuration['classes']}
    bases = list(
        dict.fromkeys(filter(None, (base_of(entry['backbone']) for entry in _parts(given).values())))
    )
    rows: JsonObject = {}
    for task, entry in parts.items():
        rows |= {
            f'{task} backbone': _said(_origin(entry['backbone'])),
            f'{task} sha256': entry['backbone'].get('sha256'),
            f'{task} head': _said(entry['head']),
            f'{task} objective': _said(entry.get('objective')),
            f'{task} classes': _listed(classes[task]),
        }
    rows |= {
        'tuners': _said(model['tuners']) or 'none',
        'saved numbers': ', '.join(f'{name} {n:,}' for name, n in counts.items()),
        TENSORS: f'{path.stat().st_size:,} bytes',
        'vet': configuration.get('vet_version'),
    }
    return CARD.format(
        front=_front(configuration, bases, repo_id, license).to_yaml(),
        name=_name(repo_id),
        use=_use(configuration['model'], repo_id, next(iter(parts))),
        model=_table(rows),
        about=' and '.join(dict.fromkeys(kind.about for kind in _kinds(configuration))),
        tuners=' and '.join(tuner['type'] for tuner in model['tuners']) or 'a head',
        backbones=' and '.join(
            dict.fromkeys(
                entry['backbone'].get('name', entry['backbone']['type']) for entry in parts.values()
            )
        ),
        recipe=_table(_recipe(configuration)),
        measured=_table({name: f'{value:.4f}' for name, value in metrics.items()})
        if metrics
        else 'Not measured.',
    )


def without_paths(configuration: Entry) -> JsonObject:
    """The configuration without the absolute paths in its model and datasets.

    A path tells strangers about this machine, and does not help on another machine.
    """

    def without(value: object) -> Any:
        if isinstance(value, dict):
            return {
                key: without(inner)
                for key, inner in value.items()
                if not (isinstance(inner, str) and os.path.isabs(inner))
            }
        return [without(inner) for inner in value] if isinstance(value, list) else value

    return {
        key: without(value) if key in ('model', 'dataset') else value for key, value in configuration.items()
    }


def _use(model: Entry, repo_id: str, task: str) -> str:
    """The code that uses the model. A user's own network that no library builds must be given."""
    backbone = model.get('backbone') or {}
    if backbone.get('type') == 'network' and not backbone.get('model'):
        return USE_OF_A_NETWORK.format(repo_id=repo_id, name=backbone['name'])
    return USE.format(repo_id=repo_id, task=f', task={task!r}' if task else '')


def _front(configuration: Entry, bases: list[str], repo_id: str, license: str | None) -> ModelCardData:
    metrics = _numbers(configuration.get('metrics'))
    datasets = configuration.get('dataset') or {}
    hub_task = _kinds(configuration)[0].hub_task
    results = [
        EvalResult(
            hub_task or 'image-regression', title, title, metric, value, dataset_split=entry.get('split')
        )
        for task, entry in _by_task(datasets.get('test')).items()
        if (title := _title(entry))
        for name, value in metrics.items()
        for before, _, metric in [name.rpartition('/')]
        if before == task
    ]
    return ModelCardData(
        library_name='vet',
        license=license,
        pipeline_tag=hub_task,
        base_model=bases or None,
        base_model_relation='adapter' if bases else None,
        metrics=sorted({name.rpartition('/')[2] for name in metrics}) or None,
        tags=[
            'vet',
            'vision-efficient-tuning',
            *(tuner['type'] for tuner in configuration['model']['tuners']),
        ],
        datasets=list(dict.fromkeys(filter(None, map(_title, _by_task(datasets.get('train')).values()))))
        or None,
        model_name=_name(repo_id) if results else None,
        eval_results=results or None,
    )


def _recipe(configuration: Entry) -> JsonObject:
    train = configuration.get('train') or {}
    evaluation = configuration.get('evaluation') or {}
    seed = configuration.get('seed')
    data = _by_task((configuration.get('dataset') or {}).get('train')).values()
    return {
        'trained on': _said([entry for entry in data if _title(entry)]),
        'loss': _said(train.get('loss')),
        'optimizer': _said(train.get('optimizer')),
        'learning rate of the head': train.get('head_lr'),
        'schedule': _said(train.get('lr_scheduler')),
        'epochs': train.get('max_epochs'),
        'stages': _said(train.get('stages')),
        'images per batch and process': (train.get('dataloader') or {}).get('batch_size_per_gpu'),
        'batches per step': train.get('accumulate'),
        'training transform': _said(train.get('transform')),
        'evaluation transform': _said(evaluation.get('transform')),
        'mixup': train.get('mixup'),
        'cutmix': train.get('cutmix'),
        'label smoothing': train.get('label_smoothing'),
        'EMA': _said(train.get('ema')),
        'precision': train.get('precision'),
        'seed': None if seed is None else str(seed),
    }


def _count(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Counts the numbers of tuners and head.

    Whole numbers, such as indices, are not trained and not counted.
    """
    counts = dict(tuners=0, head=0)
    for name, tensor in tensors.items():
        counts['tuners' if name.startswith('tuners.') else 'head'] += (
            tensor.numel() * tensor.is_floating_point()
        )
    return counts


def _parts(configuration: Entry) -> Mapping[str, Entry]:
    return configuration['model'].get('tasks') or {'': configuration['model']}


def _kinds(configuration: Entry) -> list[type[Objective]]:
    """The class of each task's objective."""
    entries = (entry.get('objective') or DEFAULT for entry in _parts(configuration).values())
    return [OBJECTIVES.find(entry['type']) for entry in entries]


def base_of(backbone: Entry) -> str | None:
    """The hub's id of the backbone's weights. None: the weights did not come from the hub."""
    if backbone['type'] != 'timm' or backbone.get('checkpoint') or not backbone.get('pretrained', True):
        return None
    import timm  # imported here, because the import takes seconds

    return getattr(timm.get_pretrained_cfg(backbone['name']), 'hf_hub_id', None)


def _origin(backbone: Entry) -> JsonObject:
    """The config entry that makes the network, without paths of this machine and without repeated facts."""
    return {
        key: value
        for key, value in backbone.items()
        if value and key not in ('sha256', 'checkpoint', 'tag', 'pretrained')
    }


def _numbers(metrics: Any) -> dict[str, float]:
    """The metrics that are numbers."""
    return {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}


def _by_task(entry: Entry | None) -> Mapping[str, Entry]:
    return (entry.get('tasks') or {'': entry}) if entry else {}


def _title(entry: Entry) -> str | None:
    """A short name of a dataset. None: the user gave the dataset as an object.

    If one plugin reads many datasets, the short name is that of the dataset.
    """
    known = next((entry[key] for key in ('name', 'task', 'path', 'file') if entry.get(key)), entry['type'])
    return None if entry['type'] == 'given' else re.sub(r'[^\w.-]+', '-', PurePath(str(known)).stem)


def _name(repo_id: str) -> str:
    return repo_id.rstrip('/').rpartition('/')[2]


def _said(value: object) -> str:
    """An entry of a config in the form of a call: 'AdamW(lr=0.02)'."""
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_said, value))
    if not isinstance(value, Mapping):
        return '' if value is None else str(value)
    inner = ', '.join(f'{key}={inner!r}' for key, inner in value.items() if key != 'type')
    return f'{value.get("type", "")}({inner})'


def _listed(classes: list[str], most: int = 20) -> str:
    return f'{len(classes)}: {", ".join(map(str, classes[:most]))}{", …" if len(classes) > most else ""}'


def _table(rows: Mapping[str, object]) -> str:
    """A Markdown table of the rows that have a value.

    Each value is literal text, whatever the value holds.
    """

    def literal(value: object) -> str:
        return '`' + ' '.join(str(value).split()).replace('`', "'").replace('|', '\\|') + '`'

    return '\n'.join(
        [
            '| | |',
            '|---|---|',
            *(f'| {name.strip()} | {literal(value)} |' for name, value in rows.items() if value),
        ]
    )
