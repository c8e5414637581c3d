"""Shows that SingleLabel is the classifier from before objectives: the same runs with two commits of vet.

    python benchmarks/single_label.py

b823a2b made objectives, losses and metrics plugins. Its parent knew one class for each image alone. Both
commits train LoRA on digits that the backbone has not seen, in six ways. The script compares the bits of the
trained weights, of the losses, of the metrics and of the answers of `pipeline`. It needs the commits of the
repository. Writes results/single_label.json.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

from vet.benchmark import record
from vet.environment import describe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'single_label.json'
COMMITS = ('b823a2b^', 'b823a2b')
VARIANTS = {
    'fp32': {},
    'bf16': dict(precision='bf16'),
    'label smoothing': dict(label_smoothing=0.1),
    'mixup, cutmix and an average': dict(mixup=0.4, cutmix=1.0, ema=0.8),
    'recomputed blocks': dict(gradient_checkpointing=True),
    'clipped, two batches a step': dict(clip_norm=0.1, accumulate=2),
}
DATA = 'Digits 5 to 9 of scikit-learn, 2 epochs'
NEW = [5, 6, 7, 8, 9]
METRICS = ['accuracy', 'mean_per_class_accuracy', 'macro_f1']


def config(**train: object) -> dict[str, object]:
    loader = dict(batch_size_per_gpu=64, workers_per_gpu=0)
    return dict(
        model=dict(backbone=dict(type='DigitsViT'), tuners=[dict(type='LoRA', rank=4)]),
        dataset={split: dict(type='Digits', split=split, digits=NEW) for split in ('train', 'test')},
        train=dict(max_epochs=2, precision='fp32', transform=[], dataloader=loader) | train,
        evaluation=dict(metrics=METRICS, dataloader=dict(batch_size_per_gpu=256, workers_per_gpu=0)),
    )


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def ended(name: str, work: Path) -> dict[str, object]:
    """All that a run ends with, by the vet that PYTHONPATH names."""
    from vet import build_trainer, pipeline
    from vet.datasets.digits import Digits

    trainer = build_trainer(model=config(**VARIANTS[name]), work_dir=work, device='cpu')
    summary = trainer.train()
    state = {key: value.detach().float().numpy() for key, value in trainer.model.trained_state().items()}
    records = [json.loads(line) for line in (work / 'log.jsonl').read_text().splitlines()]
    images = [Digits(split='test', digits=NEW)[i][0] for i in range(20)]
    answers = pipeline(model=work, device='cpu')(images, topk=5)
    return dict(
        weights=digest(b''.join(key.encode() + state[key].tobytes() for key in sorted(state))),
        losses=digest(
            repr([(each['loss'], each['accuracy']) for each in records if 'loss' in each]).encode()
        ),
        metrics={key: summary[key] for key in METRICS},
        answers=digest(json.dumps(answers).encode()),
    )


def of_commit(commit: str) -> dict[str, object]:
    """{variant: what its run ends with}."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(['git', 'archive', commit, 'vet'], cwd=ROOT, capture_output=True, check=True)
        tarfile.open(fileobj=io.BytesIO(archive.stdout)).extractall(folder, filter='data')
        command = [sys.executable, __file__, '--within', f'{folder}/run']
        done = subprocess.run(
            command, env={**os.environ, 'PYTHONPATH': folder}, cwd=folder, stdout=subprocess.PIPE, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--within', type=Path, metavar='DIR', help='train here, with the vet of PYTHONPATH')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    if args.within:
        print(json.dumps({name: ended(name, args.within / str(i)) for i, name in enumerate(VARIANTS)}))
        return
    path = record.output(args)
    before, after = map(of_commit, COMMITS)
    wrong = [name for name in VARIANTS if before[name] != after[name]]
    runs = dict(zip(COMMITS, (before, after)))
    record.write(path, dict(environment=describe(torch.device('cpu')), data=DATA, equal=not wrong, runs=runs))
    print('each run is equal, bit for bit' if not wrong else f'not equal: {", ".join(wrong)}')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
