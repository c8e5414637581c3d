"""Linear probe, DeiT-Tiny, Oxford Flowers 102.

python tools/train.py configs/deit_tiny_linear_flowers.py
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='LinearProbe')])
