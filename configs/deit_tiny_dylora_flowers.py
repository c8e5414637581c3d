"""DyLoRA on qkv, every rank from 1 to 8 in one training, DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_dylora_flowers.py

Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='DyLoRA', rank=8)])
