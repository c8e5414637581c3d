"""DeiT-Tiny on Oxford Flowers 102: vet's configs against PEFT's LoRA (r=10 on qkv) in a plain torch loop.

    python benchmarks/peft_flowers.py --data-root DIR --checkpoint deit_tiny_patch16_224.safetensors              accuracy
    python benchmarks/peft_flowers.py --data-root DIR --checkpoint … --epochs 1 --rounds 5 --no-test              time

Each side trains on the 1,020 official training images with batch 64 and is tested once, after the last epoch, on the 6,149
official test images. PEFT's side: AdamW 2e-3, resize, centre crop, flip. Seconds are those of training, loading included, from
the first batch on; with several rounds the sides take turns. Results are added to results/peft_flowers.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from torchvision.datasets import Flowers102
from torchvision.transforms import v2

from vet import build_trainer
from vet.engine.environment import describe

RESULTS = Path(__file__).parent / 'results' / 'peft_flowers.json'
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def with_peft(data_root: str, checkpoint: str, epochs: int, device: str, test: bool) -> dict:
    """PEFT as its users write it."""
    torch.manual_seed(0)
    model = timm.create_model('deit_tiny_patch16_224', checkpoint_path=checkpoint)
    model.reset_classifier(102)
    model = get_peft_model(model, LoraConfig(r=10, lora_alpha=10, target_modules=['qkv'], modules_to_save=['head'])).to(device)
    size = [v2.Resize(248, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)]
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    train = Flowers102(data_root, 'train', transform=v2.Compose([*size, v2.RandomHorizontalFlip(), *tensor]))
    batches = DataLoader(train, 64, shuffle=True, num_workers=2, persistent_workers=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    began = time.perf_counter()
    model.train()
    for _ in range(epochs):
        for images, labels in batches:
            loss = torch.nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return dict(side='peft', seconds=seconds, accuracy=_accuracy(model, data_root, [*size, *tensor], device) if test else None)


@torch.no_grad()
def _accuracy(model: torch.nn.Module, data_root: str, view: list, device: str) -> float:
    data = Flowers102(data_root, 'test', transform=v2.Compose(view))
    model.eval()
    correct = sum((model(images.to(device)).argmax(1).cpu() == labels).sum().item()
                  for images, labels in DataLoader(data, 128, num_workers=2))
    return correct / len(data)


def with_vet(config: str, data_root: str, checkpoint: str, epochs: int, device: str, test: bool) -> dict:
    """A shipped config as it is."""
    options = {'model.backbone.checkpoint': checkpoint, 'train.max_epochs': epochs, 'evaluation.before': False, 'dataset.val': None}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(model=config, work_dir=folder, data_root=data_root, device=device,
                                cfg_options=options | ({} if test else {'dataset.test': None}))
        summary = trainer.train()
    return dict(side=Path(config).stem, seconds=summary['train_seconds'], accuracy=summary.get('accuracy'),
                parameters=summary['parameters'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--sides', nargs='+', default=['peft', 'deit_tiny_lora_flowers', 'deit_tiny_linear_flowers'])
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--no-test', action='store_true')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    seconds: dict[str, list[float]] = {side: [] for side in args.sides}
    for _ in range(args.rounds):
        for side in args.sides:
            common = args.data_root, args.checkpoint, args.epochs, args.device, not args.no_test
            run = with_peft(*common) if side == 'peft' else with_vet(f'configs/{side}.py', *common)
            seconds[side].append(run['seconds'])
            runs.append(run | dict(epochs=args.epochs, environment=describe(torch.device(args.device))))
            RESULTS.write_text(json.dumps(runs, indent=1) + '\n')
            print(run, flush=True)
    base = statistics.median(seconds[args.sides[0]])
    for side, own in seconds.items():
        print(f'{side:28} median {statistics.median(own):7.1f} s ({min(own):.1f} to {max(own):.1f}), '
              f'{statistics.median(own) / base:.2f} x {args.sides[0]}')


if __name__ == '__main__':
    main()
