"""Runs the configs that train on a few images, unchanged, and counts the right answers before and after.

    python benchmarks/walkthroughs.py --data-root DIR

DIR holds seed-images/ and weights/. These runs show that a config works. They are no accuracy claim: the
pretrained weights have seen these ImageNet images in training. Writes results/walkthroughs.json.
"""

import argparse
import tempfile
from pathlib import Path

from vet import build_trainer
from vet.benchmark import record
from vet.environment import describe

RESULTS = Path(__file__).parent / 'results' / 'walkthroughs.json'
CONFIGS = Path(__file__).parents[1] / 'configs'
WEIGHTS = {  # of each config; None: they ship with vet
    'minlora_jellyfish_mushroom': 'mobilenetv2_100',
    'minlora_conv_jellyfish_mushroom': 'mobilenetv2_100',
    'finetune_jellyfish_mushroom': 'mobilenetv2_100',
    'deit_tiny_peft_names_jellyfish_mushroom': 'deit_tiny_patch16_224',
    'digits_multitask': None,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--only', nargs='+', choices=WEIGHTS, default=list(WEIGHTS))
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    runs = []
    for name in args.only:
        weights = WEIGHTS[name]
        options = {}
        if weights is not None:
            options['model.backbone.checkpoint'] = str(args.data_root / 'weights' / f'{weights}.safetensors')
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(
                model=str(CONFIGS / f'{name}.py'),
                work_dir=folder,
                data_root=str(args.data_root),
                device='cpu',
                seed=0,
                cfg_options=options,
            )
            summary = trainer.train()
        test = trainer.data['test']
        runs.append(
            dict(
                config=name,
                before=summary['before']['accuracy'],
                accuracy=summary['accuracy'],
                train_images=summary['train_images'],
                test_images=len(test),
                trainable=summary['parameters']['trainable'],
                bytes=summary['output_bytes'],
            )
        )
        print(runs[-1], flush=True)
    record.write(path, dict(runs=runs, environment=describe(trainer.accelerator.device)))


if __name__ == '__main__':
    main()
