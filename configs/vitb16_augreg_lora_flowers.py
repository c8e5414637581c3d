"""LoRA r=10 on qkv, ViT-B/16 IN-21k (augreg: another checkpoint than orig), Oxford Flowers 102.

    python tools/train.py configs/vitb16_augreg_lora_flowers.py

Not measured.
"""

_base_ = ['_base_/models/vitb16_augreg_in21k.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10))
