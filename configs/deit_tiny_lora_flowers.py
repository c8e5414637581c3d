"""LoRA r=10 on qkv, DeiT-Tiny, Oxford Flowers 102.

python tools/train.py configs/deit_tiny_lora_flowers.py
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10))
