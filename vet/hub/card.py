"""The model card: README.md of a model folder as the Hugging Face hub shows it, made from what the
folder holds, and no more.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vet.core.tensor_file import read_tensors
from vet.hub.model_folder import AGAIN, TENSORS, read_configuration, tensors_sha256

CARD = """---
{front}
---

# {name}

What was trained of an image classifier: {tuners} on {backbones}. With the backbone's own weights, which are not here, it is the
whole model.

## Use

```python
from vet import pipeline

pipeline('vision-efficient-tuning', {repo_id!r}{task})('image.jpg')
```

`backbone=PATH` says where the backbone's weights are, if not where its library keeps them; other weights than those named below
are refused.

## Model

{model}

## Measured on the test split

{measured}

## Recipe

{recipe}

All settings are in configuration.json.
"""
Entry = Mapping[str, Any]


def model_card(folder: str | Path, repo_id: str = 'OWNER/NAME', license: str | None = None) -> str:
    """The Markdown of a model folder, under YAML that the hub reads. repo_id: what `pipeline` takes in it.

    DataError where the configuration or the tensors cannot be read.
    """
    given, path = read_configuration(folder), Path(folder) / TENSORS
    configuration = without_paths(given)
    counts = _count(read_tensors(path, AGAIN, tensors_sha256(given, folder)))
    model, metrics = configuration['model'], _numbers(configuration.get('metrics'))
    parts, classes = (
        _parts(configuration),
        configuration['classes'] if model.get('tasks') else {'': configuration['classes']},
    )
    bases = list(dict.fromkeys(filter(None, (_base(part['backbone']) for part in _parts(given).values()))))
    rows: dict[str, Any] = {}
    for task, part in parts.items():
        rows |= {
            f'{task} backbone': _said(_origin(part['backbone'])),
            f'{task} sha256': part['backbone'].get('sha256'),
            f'{task} head': _said(part['head']),
            f'{task} classes': _listed(classes[task]),
        }
    rows |= {
        'tuners': _said(model['tuners']) or 'none',
        'saved numbers': ', '.join(f'{part} {n:,}' for part, n in counts.items()),
        TENSORS: f'{path.stat().st_size:,} bytes',
        'vet': configuration.get('vet_version'),
    }
    return CARD.format(
        front=_front(configuration, bases, repo_id, license).to_yaml(),
        name=_name(repo_id),
        repo_id=repo_id,
        model=_table(rows),
        tuners=' and '.join(tuner['type'] for tuner in model['tuners']) or 'a head',
        backbones=' and '.join(
            dict.fromkeys(part['backbone'].get('name', part['backbone']['type']) for part in parts.values())
        ),
        task='' if '' in parts else f', task={next(iter(parts))!r}',
        recipe=_table(_recipe(configuration)),
        measured=_table({name: f'{value:.4f}' for name, value in metrics.items()})
        if metrics
        else 'Not measured.',
    )


def without_paths(configuration: Entry) -> dict[str, Any]:
    """The configuration without the absolute paths in its model and datasets, which tell of this
    machine and help no other.
    """

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: kept(inner)
                for key, inner in value.items()
                if not (isinstance(inner, str) and os.path.isabs(inner))
            }
        return [kept(inner) for inner in value] if isinstance(value, list) else value

    return {
        key: kept(value) if key in ('model', 'dataset') else value for key, value in configuration.items()
    }


def _front(configuration: Entry, bases: list[str], repo_id: str, license: str | None) -> ModelCardData:
    metrics, datasets = _numbers(configuration.get('metrics')), configuration.get('dataset') or {}
    results = [
        EvalResult('image-classification', title, title, metric, value, dataset_split=entry.get('split'))
        for task, entry in _by_task(datasets.get('test')).items()
        if (title := _title(entry))
        for name, value in metrics.items()
        for before, _, metric in [name.rpartition('/')]
        if before == task
    ]
    return ModelCardData(
        library_name='vet',
        license=license,
        pipeline_tag='image-classification',
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


def _recipe(configuration: Entry) -> dict[str, Any]:
    train, evaluation, seed = (
        configuration.get('train') or {},
        configuration.get('evaluation') or {},
        configuration.get('seed'),
    )
    data = _by_task((configuration.get('dataset') or {}).get('train')).values()
    return {
        'trained on': _said([entry for entry in data if _title(entry)]),
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
    """Numbers of tuners and head, whole numbers such as indices left out: these are not trained."""
    counts = dict(tuners=0, head=0)
    for name, tensor in tensors.items():
        counts['tuners' if name.startswith('tuners.') else 'head'] += (
            tensor.numel() * tensor.is_floating_point()
        )
    return counts


def _parts(configuration: Entry) -> Mapping[str, Entry]:
    return configuration['model'].get('tasks') or {'': configuration['model']}


def _base(backbone: Entry) -> str | None:
    """The id on the hub of the weights that were tuned, where they came from there."""
    if backbone['type'] != 'timm' or backbone.get('checkpoint') or not backbone.get('pretrained', True):
        return None
    import timm  # here, since it takes seconds

    return getattr(timm.get_pretrained_cfg(backbone['name']), 'hf_hub_id', None)


def _origin(backbone: Entry) -> dict[str, Any]:
    """The entry of a config that makes the network, without what is told elsewhere or is of this machine."""
    return {
        key: value
        for key, value in backbone.items()
        if value and key not in ('sha256', 'checkpoint', 'tag', 'pretrained')
    }


def _numbers(metrics: Any) -> dict[str, float]:
    """Of the metrics, those that are numbers."""
    return {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}


def _by_task(entry: Entry | None) -> Mapping[str, Entry]:
    return (entry.get('tasks') or {'': entry}) if entry else {}


def _title(entry: Entry) -> str | None:
    """A dataset by one word: its own name where one plugin reads many; None for one that was given as
    an object.
    """
    known = next((entry[key] for key in ('name', 'task', 'path', 'file') if entry.get(key)), entry['type'])
    return None if entry['type'] == 'given' else re.sub(r'[^\w.-]+', '-', PurePath(str(known)).stem)


def _name(repo_id: str) -> str:
    return repo_id.rstrip('/').rpartition('/')[2]


def _said(value: Any) -> str:
    """A config's entry as a call: 'AdamW(lr=0.02)'."""
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_said, value))
    if not isinstance(value, Mapping):
        return '' if value is None else str(value)
    inner = ', '.join(f'{key}={inner!r}' for key, inner in value.items() if key != 'type')
    return f'{value.get("type", "")}({inner})'


def _listed(classes: list[str], most: int = 20) -> str:
    return f'{len(classes)}: {", ".join(map(str, classes[:most]))}{", …" if len(classes) > most else ""}'


def _table(rows: Mapping[str, Any]) -> str:
    """Markdown of the rows that say something, as literal text whatever names they hold."""

    def literal(value: Any) -> str:
        return '`' + ' '.join(str(value).split()).replace('`', "'").replace('|', '\\|') + '`'

    return '\n'.join(
        [
            '| | |',
            '|---|---|',
            *(f'| {name.strip()} | {literal(value)} |' for name, value in rows.items() if value),
        ]
    )
