"""Compares LoRA with the linear probe of the same backbone on the quickstart's digits.

    python benchmarks/quickstart.py

Trains both with 5 seeds, prints the table, and writes results/quickstart.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from vet import build_trainer
from vet.benchmark import record
from vet.environment import describe

TUNERS = {'LinearProbe': 0, 'LoRA': 8}  # by the rank of the update
RESULTS = Path(__file__).parent / 'results' / 'quickstart.json'
CONFIG = Path(__file__).parents[1] / 'configs' / 'quickstart.py'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seeds', type=int, default=5, help='how many (default: %(default)s)')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    runs = []
    for name, rank in TUNERS.items():
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                trainer = build_trainer(
                    model=str(CONFIG),
                    work_dir=folder,
                    seed=seed,
                    device='cpu',
                    cfg_options={'model.backbone.lora_length': rank},
                )
                summary = trainer.train()
            runs.append(
                dict(
                    tuner=name,
                    seed=seed,
                    before=summary['before']['accuracy'],
                    accuracy=summary['accuracy'],
                    seconds=summary['train_seconds'],
                    trainable=summary['parameters']['trainable'],
                    bytes=summary['output_bytes'],
                )
            )
    record.write(path, dict(environment=describe(trainer.accelerator.device), runs=runs))
    for name in TUNERS:
        own = [run for run in runs if run['tuner'] == name]
        print(
            name,
            *(f'{100 * run["accuracy"]:.2f} %' for run in own),
            f'{statistics.mean(run["seconds"] for run in own):.1f} s',
        )


if __name__ == '__main__':
    main()
