"""The identity of a run: facts that its result depends on beside the config. A resumed run must have the same
identity.

classes: their names, in the order of the labels.
data: for each split the number of images, and digests of their names, labels and contents.
weights: the sha256 of the backbone's weights.
objectives: the entry of each objective, which may come from the dataset.
versions: of the packages that compute.
plugins: the sha256 of each file that registers plugins, beside the files of vet.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
from PIL import Image

import vet
from vet.core.multitask import Classifier
from vet.datasets.base import Datasets, ImageData, errors_named, item_name, item_of, known_targets, sources_of
from vet.engine.feed.door import opened
from vet.files import JsonObject
from vet.registry import REGISTRIES, package_of

CONTENT_BYTES = 256 * 2**20  # of each split, this many bytes are read, spread over all its files
ITEMS = 8  # about this many items are read of a dataset that does not say its sources
VERSIONS = ('torch', 'torchvision', 'timm', 'pillow')
DATA = dict(
    images='the number of images',
    names='the names of the images',
    labels='the labels',
    contents='the contents of the images',
    forms='the shapes, kinds or palettes of the images',
)


def identity_of(model: Classifier, data: Datasets) -> JsonObject:
    """The identity of a run that trains `model` on `data`: {'train': dataset, 'val': …, 'test': …}."""
    tasks = {str(task or ''): classifier for task, classifier in model.tasks.items()}
    return dict(
        classes={task: list(classifier.classes) for task, classifier in tasks.items()},
        data={split: _of_dataset(dataset) for split, dataset in data.items() if dataset is not None},
        weights={task: classifier.backbone.identity['sha256'] for task, classifier in tasks.items()},
        objectives={task: classifier.objective.given for task, classifier in tasks.items()},
        versions=dict(vet=vet.__version__) | {name: metadata.version(name) for name in VERSIONS},
        plugins=_plugins(),
    )


def differences(before: JsonObject, now: JsonObject) -> list[str]:
    """The differences between two identities, without versions, one text each."""
    texts = []
    for task, was, is_ in _changed(before['classes'], now['classes']):
        texts.append(f'the classes{_of(task)} ({_first(was or [], is_ or [])})')
    for split in sorted({*before['data'], *now['data']}):
        texts += _of_split(split, before['data'].get(split), now['data'].get(split))
    for task, was, is_ in _changed(before['weights'], now['weights']):
        texts.append(f"the backbone's weights{_of(task)} (sha256 {was}, now {is_})")
    noted = before if 'objectives' in before else now  # an older vet did not note them
    for task, was, is_ in _changed(noted['objectives'], now['objectives']):
        texts.append(f'the objective{_of(task)} ({was}, now {is_})')
    return texts


def _changed(before: JsonObject, now: JsonObject) -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) of each value that differs. None stands for a value that is missing."""
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def other_versions(before: JsonObject, now: JsonObject) -> list[str]:
    """The packages whose versions differ."""
    was, is_ = before['versions'], now['versions']
    return [
        f'{name} {was.get(name)}, now {is_.get(name)}'
        for name in sorted({*was, *is_})
        if was.get(name) != is_.get(name)
    ]


def changed_plugins(before: JsonObject, now: JsonObject) -> list[str]:
    """The modules with plugins whose files have changed. An older vet did not note them."""
    was = before.get('plugins', {})
    return [name for name, digest in now['plugins'].items() if was.get(name, digest) != digest]


def _plugins() -> JsonObject:
    """{module: sha256 of its file} of the registered plugins that belong neither to vet nor to VERSIONS."""
    plugins = [plugin for registry in REGISTRIES.values() for plugin in registry.module_dict.values()]
    modules = {plugin.__module__ for plugin in plugins if package_of(plugin) not in ('', 'vet', *VERSIONS)}
    found = {}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), '__file__', None)
        if file and os.path.isfile(file):
            found[name] = _contents([file])
    return found


def _of(task: str) -> str:
    return f' of the task {task}' if task else ''


def _first(was: list[str], is_: list[str]) -> str:
    """The first difference of two lists of names."""
    if len(was) != len(is_):
        return f'{len(was)}, now {len(is_)}'
    label = next(i for i, (a, b) in enumerate(zip(was, is_)) if a != b)
    return f'label {label} was {was[label]!r}, now {is_[label]!r}'


def _of_split(split: str, was: Any, is_: Any) -> Iterator[str]:
    if was is None or is_ is None:
        was_there, is_there = ('none' if record is None else 'one' for record in (was, is_))
        yield f'the {split} split ({was_there} before, {is_there} now)'
    elif was['images'] != is_['images']:
        yield f'the {split} images ({was["images"]:,}, now {is_["images"]:,})'
    elif kinds := [text for key, text in DATA.items() if was.get(key, is_.get(key)) != is_.get(key)]:
        yield f'the {split} split ({", ".join(kinds)})'


def _of_dataset(dataset: ImageData) -> JsonObject:
    if hasattr(dataset, 'tasks'):
        records = {task: _of_dataset(task_data) for task, task_data in dataset.tasks.items()}
        found: JsonObject = dict(images=sum(record['images'] for record in records.values()))
        for key in DATA:
            if key != 'images':
                found[key] = {task: record[key] for task, record in records.items()}
        return found
    targets = known_targets(dataset) or []
    sources = sources_of(dataset)
    paths = [os.fspath(source) for source in sources if isinstance(source, str | os.PathLike)]
    files = [os.path.abspath(path) for path in paths if os.path.isfile(path)]
    # names are relative, because the whole folder may have moved
    above = os.path.commonpath(map(os.path.dirname, files)) if files else ''
    names = [os.path.relpath(path, above) for path in files]
    memory = [_in_memory(source) for source in sources]
    if files:
        contents = _contents(files)
    else:
        contents = _digest(memory if any(memory) else _items(dataset))
    masks = [os.fspath(path) for path in sources_of(dataset, 1) if isinstance(path, str | os.PathLike)]
    labels = [_contents(masks)] if masks else targets
    return dict(
        images=len(dataset),
        labels=_digest(labels),
        names=_digest(names),
        contents=contents,
        forms=_digest(list(map(_form, sources))),
    )


def _items(dataset: ImageData) -> list[object]:
    """Digests of the pixels and labels of some items, for a dataset that does not say its sources.

    An item is read twice. None stands for an item that differs each time, such as after a random transform.
    """
    items: list[object] = []
    for index in range(0, len(dataset), max(1, len(dataset) // ITEMS)):
        first, second = (item_of(dataset, index) for _ in range(2))
        with errors_named(partial(item_name, dataset, index)):
            pixels = [np.asarray(opened(image)) for image, _ in (first, second)]
        one, other = (np.asarray(target) for _, target in (first, second))
        is_same = np.array_equal(pixels[0], pixels[1]) and np.array_equal(one, other)
        target = _in_memory(one) if one.ndim == 2 else first[1]  # a mask
        items.append((_in_memory(pixels[0]), target) if is_same else None)
    return items


def _contents(files: list[str]) -> str:
    """A digest of the sizes of all files, and of some whole files, evenly spread, as CONTENT_BYTES allows."""
    sizes = [os.stat(path).st_size for path in files]
    every = max(1, -(-sum(sizes) // CONTENT_BYTES))
    digest = hashlib.sha256(repr(sizes).encode())
    for path in files[::every]:
        with open(path, 'rb') as file:
            digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


def _in_memory(source: object) -> str | None:
    """A digest of an image in memory. None for an item that the dataset reads in its own way."""
    if isinstance(source, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(source).tobytes()).hexdigest()
    if isinstance(source, Image.Image):
        return hashlib.sha256(source.tobytes()).hexdigest()
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else None


def _form(source: object) -> object:
    """All of an image in memory beside its bytes, which `_in_memory` takes. None for an image in a file."""
    if isinstance(source, np.ndarray):
        return str(source.dtype), source.shape
    return (source.mode, source.size, source.getpalette()) if isinstance(source, Image.Image) else None


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode(errors='surrogateescape')).hexdigest()
