"""LoRA r=10 on qkv, ViT-B/16 IN-21k (orig), CUB-200-2011.

    python tools/train.py configs/vitb16_lora_cub200.py

Not measured. ModelScope's card: 88.09.
"""

_base_ = ['_base_/models/vitb16_orig_in21k.py', '_base_/datasets/cub200.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10))
