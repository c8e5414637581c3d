"""Compares `pipeline` on image files with the time of its network alone.

    python benchmarks/predict.py --data-root DIR

DIR holds flowers-102/jpg and weights/deit_tiny_patch16_224.safetensors. A model folder of DeiT-Tiny with LoRA
and 102 classes labels 1,000 photos in batches of 32. The network computes in one thread.
Each round measures the network alone, on images that are tensors already, and `pipeline` with each number of
workers. Writes results/predict.json.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vet import build_trainer, pipeline
from vet.benchmark import record
from vet.datasets.image import open_image
from vet.environment import describe
from vet.transforms.torchvision import build_transform

CONFIG = Path(__file__).parents[1] / 'configs' / 'deit_tiny_lora_flowers.py'
WEIGHTS = 'weights/deit_tiny_patch16_224.safetensors'
RESULTS = Path(__file__).parent / 'results' / 'predict.json'
BATCH = 32
WORKERS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--images', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=3)
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    environment = describe(torch.device('cpu'))  # now: the commit may change while the script measures
    torch.set_num_threads(1)
    files = sorted((args.data_root / 'flowers-102' / 'jpg').glob('*.jpg'))[: args.images]
    with tempfile.TemporaryDirectory() as folder:
        classify = pipeline(model=model_folder(Path(folder), args.data_root), device='cpu')
    classifier = classify.model.for_task(None)
    view = build_transform(None, **vars(classifier.backbone.preprocessing))
    views = torch.stack([view(open_image(file)) for file in files])

    def network() -> None:
        with torch.inference_mode():
            for batch in views.split(BATCH):
                classifier.objective.answers(classifier(batch), 5, 5)

    jobs: dict[str, Callable[[], object]] = {'network': network}
    for workers in WORKERS:
        jobs[f'workers={workers}'] = partial(classify, files, batch_size=BATCH, workers=workers)
    network()  # the first forward makes caches
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(args.rounds):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: value / middle['network'] for name, value in middle.items()}
    record.write(
        path,
        dict(
            environment=environment,
            load=os.getloadavg(),
            images=len(files),
            batch_size=BATCH,
            threads_of_the_network=1,
            seconds=seconds,
            times_the_network=ratios,
        ),
    )
    for name in jobs:
        print(f'{name:10} {middle[name]:6.2f} s  {ratios[name]:.3f} x the network')


def model_folder(folder: Path, data_root: Path) -> Path:
    """A model folder of DeiT-Tiny with LoRA, untrained: the time does not depend on the values."""
    trainer = build_trainer(
        model=str(CONFIG),
        work_dir=folder / 'work',
        data_root=str(data_root),
        device='cpu',
        cfg_options={'model.backbone.checkpoint': str(data_root / WEIGHTS)},
    )
    trainer.save_pretrained(folder / 'model')
    return folder / 'model'


if __name__ == '__main__':
    main()
