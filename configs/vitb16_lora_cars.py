"""LoRA r=10 on qkv, ViT-B/16 IN-21k (orig), Stanford Cars.

    python tools/train.py configs/vitb16_lora_cars.py

Not measured. ModelScope's card: 85.82.
"""

_base_ = ['_base_/models/vitb16_orig_in21k.py', '_base_/datasets/stanford_cars.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10))
