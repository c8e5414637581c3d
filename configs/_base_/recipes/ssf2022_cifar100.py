"""SSF's recipe for CIFAR-100.   Lian et al. 2022, arXiv:2210.08823, and its released scripts

The same as ssf2022, except: AdamW at 1e-3 (full fine-tuning: 5e-5), batch 128, RandAugment of magnitude 9,
random erasing of a quarter of the images, and a slower average.

timm's RandAugment, in the code, differs from torchvision's. timm applies each of two operations with
probability 0.5, draws a magnitude around 9, and makes some operations stronger with it. torchvision applies
both, at 9. timm erases by noise of mean 0 and variance 1 after the normalisation; here the noise is drawn
before. The script that we saw runs batches of 64 on four GPUs. For other differences see ssf2022.
"""

_base_ = ['ssf2022.py']

train = dict(
    optimizer=dict(lr=1e-3),
    lr_scheduler=dict(eta_min=1e-5),
    dataloader=dict(batch_size_per_gpu=128),
    transform=[
        dict(type='RandomResizedCrop', scale=[0.08, 1.0]),
        dict(type='RandomHorizontalFlip'),
        dict(type='RandAugment', num_ops=2, magnitude=9),
        dict(type='ToImage'),
        dict(type='ConvertImageDtype'),
        dict(type='RandomErasing', p=0.25, value='random'),
    ],
    ema=0.99992,
)
