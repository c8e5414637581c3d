"""LoRA against the linear probe of the same backbone on the quickstart's digits, over seeds.

    python benchmarks/quickstart.py                 trains both with 5 seeds, prints the table, writes results/quickstart.json
"""

import json
import statistics
import tempfile
from pathlib import Path

from vet import build_trainer
from vet.engine.environment import describe

SEEDS = range(5)
TUNERS = {'LinearProbe': 0, 'LoRA': 8}      # by the rank of the update
RESULTS = Path(__file__).parent / 'results' / 'quickstart.json'


def main() -> None:
    runs = []
    for name, rank in TUNERS.items():
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                trainer = build_trainer(model='configs/quickstart.py', work_dir=folder, seed=seed, device='cpu',
                                        cfg_options={'model.backbone.lora_length': rank})
                summary = trainer.train()
            runs.append(dict(tuner=name, seed=seed, accuracy=summary['accuracy'], seconds=summary['train_seconds'],
                             trainable=summary['parameters']['trainable']))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(dict(environment=describe(trainer.accelerator.device), runs=runs), indent=1) + '\n')
    for name in TUNERS:
        own = [run for run in runs if run['tuner'] == name]
        accuracies = [100 * run['accuracy'] for run in own]
        print(f'{name:12} {statistics.mean(accuracies):6.2f} ± {statistics.stdev(accuracies):.2f} % of the test digits, '
              f'{own[0]["trainable"]:6,} trained numbers, {statistics.mean(run["seconds"] for run in own):.1f} s')


if __name__ == '__main__':
    main()
