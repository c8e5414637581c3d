"""GPS k=1 on every weight, DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_gps_flowers.py

Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='GPS', k=1)])
