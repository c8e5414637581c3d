"""Measures what `vet check` finds: planted copies and wrong labels in Oxford Flowers 102, with DeiT-Tiny.

    python benchmarks/check.py --data-root DIR

DIR holds flowers-102/ (as torchvision reads the dataset) and weights/deit_tiny_patch16_224.safetensors. 5 %
of the 1,020 training labels become other classes. Copies of 50 training images are planted among the 6,149
test images, as JPEG of quality 60 with sides of 90 %. Writes results/check.json.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vet.benchmark import record
from vet.check.findings import findings
from vet.check.labels import features_of, label_findings
from vet.check.photos import Photo, Photos
from vet.check.sameness import look
from vet.environment import describe
from vet.registry import BACKBONES, DATASETS

RESULTS = Path(__file__).parent / 'results' / 'check.json'
FLIPPED = 0.05
PLANTED = 50
DATA = 'Oxford Flowers 102, official splits, short side 224, JPEG quality 78'


def flowers(root: Path, split: str) -> list[Photo]:
    data: Any = DATASETS.build(dict(type='Flowers102', split=split), root=root)
    return [Photo(str(path), data.classes[label], split) for path, label in data.samples]


def with_wrong_labels(photos: list[Photo], draw: np.random.Generator) -> tuple[list[Photo], set[str]]:
    """The photos, and the paths of those whose class was changed to another class."""
    classes = sorted({photo.label for photo in photos})
    changed = draw.choice(len(photos), round(FLIPPED * len(photos)), replace=False)
    found = list(photos)
    for item in changed:
        other = (classes.index(found[item].label) + draw.integers(1, len(classes))) % len(classes)
        found[item] = Photo(found[item].path, classes[other], found[item].split)
    return found, {photos[item].path for item in changed}


def planted(photos: list[Photo], folder: Path, draw: np.random.Generator) -> list[Photo]:
    """Smaller copies of some photos, for test."""
    found = []
    for item in draw.choice(len(photos), PLANTED, replace=False):
        image = Image.open(photos[item].path)
        path = folder / f'{item}.jpg'
        image.resize([round(0.9 * side) for side in image.size]).save(path, quality=60)
        found.append(Photo(str(path), photos[item].label, 'test'))
    return found


def measure(root: Path, seed: int, folder: Path) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    train, test = flowers(root, 'train'), flowers(root, 'test')
    copies = planted(train, folder, draw)
    labelled, wrong = with_wrong_labels(train, draw)
    begin = time.perf_counter()
    photos = Photos([*labelled, *test, *copies])
    of_files = findings(photos, look([photo.path for photo in photos.photos]))
    weights = root / 'weights' / 'deit_tiny_patch16_224.safetensors'
    backbone = BACKBONES.build(dict(type='timm', name='deit_tiny_patch16_224', checkpoint=str(weights)))
    of_labels = list(label_findings(labelled, features_of(backbone, [photo.path for photo in labelled])))
    seconds = time.perf_counter() - begin
    named = {path for finding in of_files if 'copy' in finding.kind for path in finding.paths}
    suspect = [path for finding in of_labels if finding.kind == 'suspect label' for path in finding.paths]
    return dict(
        seed=seed,
        copies_found=sum(photo.path in named for photo in copies) / len(copies),
        pairs=sum('copy' in finding.kind for finding in of_files),
        wrong_labels=len(wrong),
        suspects=len(suspect),
        recall=sum(path in wrong for path in suspect) / len(wrong),
        precision=sum(path in wrong for path in suspect) / max(len(suspect), 1),
        seconds=seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--seeds', type=int, default=3, help='how many (default: %(default)s)')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    root = args.data_root.absolute()
    runs = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(root, seed, Path(folder)))
        print(runs[-1], flush=True)
    record.write(path, dict(environment=describe(torch.device('cpu')), data=DATA, runs=runs))


if __name__ == '__main__':
    main()
