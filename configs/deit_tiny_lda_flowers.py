"""Linear discriminant analysis on the frozen features, without an epoch. DeiT-Tiny, Oxford Flowers 102.

python tools/train.py configs/deit_tiny_lda_flowers.py
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(head=dict(type='LDA'), tuners=[dict(type='LinearProbe')])
train = dict(max_epochs=0)
