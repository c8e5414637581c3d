"""Handwritten digits 5 to 9 on the ViT that ships with vet: offline.

python tools/benchmark.py benchmarks/suites/quickstart.py
"""

_base_ = ['../../configs/quickstart.py']

digits = {split: dict(type='Digits', split=split, digits=[5, 6, 7, 8, 9]) for split in ('train', 'test')}
backbones = dict(digits_vit=dict(type='DigitsViT'))
datasets = dict(digits=digits)
tuners = dict(
    linear=[dict(type='LinearProbe')],
    bitfit=[dict(type='BitFit')],
    lora=[dict(type='LoRA', rank=8)],
    adaptformer=[dict(type='AdaptFormer', width=8)],
    vpt_deep=[dict(type='VPT', length=4)],
    ssf=[dict(type='SSF')],
)
seeds = [0, 1, 2]
options = {'train.max_epochs': 15, 'train.optimizer.lr': 1e-2}
