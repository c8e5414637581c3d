"""LoRA r=10 on DeiT-Tiny's qkv, Oxford Flowers 102, 20 epochs: vet's config against PEFT in a plain torch loop.

    python benchmarks/peft_flowers.py --data-root DIR --checkpoint deit_tiny_patch16_224.safetensors

Both train on the 1,020 official training images with batch 64 and are tested, once, after the last epoch, on the 6,149 test
images. PEFT's side: AdamW 2e-3, resize, centre crop and flip. Writes results/peft_flowers.json.
"""

import argparse
import json
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


def with_peft(data_root: str, checkpoint: str, epochs: int, device: str) -> dict:
    """PEFT as its users write it."""
    torch.manual_seed(0)
    model = timm.create_model('deit_tiny_patch16_224', checkpoint_path=checkpoint)
    model.reset_classifier(102)
    model = get_peft_model(model, LoraConfig(r=10, lora_alpha=10, target_modules=['qkv'], modules_to_save=['head'])).to(device)
    size = [v2.Resize(248, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)]
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    train = Flowers102(data_root, 'train', transform=v2.Compose([*size, v2.RandomHorizontalFlip(), *tensor]))
    test = Flowers102(data_root, 'test', transform=v2.Compose([*size, *tensor]))
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
    model.eval()
    with torch.no_grad():
        correct = sum((model(images.to(device)).argmax(1).cpu() == labels).sum().item()
                      for images, labels in DataLoader(test, 128, num_workers=2))
    return dict(side='peft', accuracy=correct / len(test), seconds=seconds, epochs=epochs)


def with_vet(config: str, data_root: str, checkpoint: str, epochs: int, device: str) -> dict:
    """The shipped config; the seconds are those from the first batch to the last step, loading included."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(model=config, work_dir=folder, data_root=data_root, device=device, cfg_options={
            'model.backbone.checkpoint': checkpoint, 'train.max_epochs': epochs, 'evaluation.before': False, 'dataset.val': None})
        summary = trainer.train()
    return dict(side=Path(config).stem, accuracy=summary['accuracy'], seconds=summary['train_seconds'], epochs=epochs,
                trainable=summary['parameters'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    common = args.data_root, args.checkpoint, args.epochs, args.device
    runs = [with_peft(*common), *(with_vet(config, *common) for config in
                                  ('configs/deit_tiny_lora_flowers.py', 'configs/deit_tiny_linear_flowers.py'))]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(dict(environment=describe(torch.device(args.device)), runs=runs), indent=1) + '\n')
    for run in runs:
        print(f'{run["side"]:28} {100 * run["accuracy"]:6.2f} %   {run["seconds"]:7.1f} s   {run["seconds"] / runs[0]["seconds"]:.2f} x PEFT')


if __name__ == '__main__':
    main()
