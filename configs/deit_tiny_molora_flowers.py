"""MoLoRA on qkv, four experts of rank 4, DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_molora_flowers.py

Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='MoLoRA', rank=4, experts=4)])
