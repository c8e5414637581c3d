"""LoRA r=10 on qkv, ViT-B/16 IN-21k (orig), Oxford Flowers 102.

    python tools/train.py configs/vitb16_lora_flowers.py

Not measured. ModelScope's card: 98.94.
"""

_base_ = ['_base_/models/vitb16_orig_in21k.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10))
