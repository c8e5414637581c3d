"""Measures heads for masks on real data: the street images of CamVid, with DeiT-Tiny.

    python benchmarks/segmentation.py --data-root DIR

DIR holds camvid/{train,val,test}/{images,masks}/ and weights/deit_tiny_patch16_224.safetensors. The recipe is
that of configs/deit_tiny_lora_camvid.py. LoRA of rank 10 is compared with the frozen network, and FPNMask
with LinearMask. Results are counted over all pixels of the test masks, at 240 x 180. Writes
results/segmentation.json.
"""

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import deit_tiny

from vet.benchmark import record

RESULTS = Path(__file__).parent / 'results' / 'segmentation.json'
DATA = 'CamVid, images of 240 x 180 pixels (resized from 480 x 360), seen at 240 x 176'
CONFIGS = dict(LoRA='deit_tiny_lora_camvid.py', LinearProbe='deit_tiny_linear_camvid.py')
ROWS = [
    ('LoRA', 'LinearMask'),
    ('LinearProbe', 'LinearMask'),
    ('LoRA', 'FPNMask'),
    ('LinearProbe', 'FPNMask'),
]


def train(tuner: str, head: str, seed: int, root: Path, work: Path) -> Any:
    """The trainer after its training, and the summary."""
    metrics = ['mIoU', 'pixel_accuracy', 'iou_per_class']
    changes = {'model.head': dict(type=head), 'evaluation.metrics': metrics}
    return deit_tiny.trained(CONFIGS[tuner], changes, root, work, seed)


def main() -> None:
    parser = deit_tiny.parser(__doc__)
    parser.add_argument('--seeds', type=int, default=1, help='how many (default: %(default)s)')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    root = args.data_root.absolute()
    measured = record.Rows(path, ('tuner', 'head', 'seed'), DATA)
    with tempfile.TemporaryDirectory() as folder:
        for seed, (tuner, head) in product(range(args.seeds), ROWS):
            row = dict(tuner=tuner, head=head, seed=seed)
            if row in measured:
                continue
            trainer, summary = train(tuner, head, seed, root, Path(folder) / f'{tuner}-{head}-{seed}')
            found = dict(
                test={
                    name: value
                    for name, value in summary.items()
                    if name.partition('.')[0] in trainer.metrics
                },
                validation=summary['validation'],
                epochs=summary['epochs'],
                seconds=summary['train_seconds'],
                trainable=summary['parameters']['trainable'],
                bytes=summary['output_bytes'],
            )
            measured.add(row | found, trainer.accelerator.device)
            print(row, found, flush=True)


if __name__ == '__main__':
    main()
