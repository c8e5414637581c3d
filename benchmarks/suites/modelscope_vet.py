"""ModelScope's model cards again: 6 datasets, 2 backbones, 7 tuners, 3 seeds: 252 runs, for a GPU.

    python tools/benchmark.py benchmarks/suites/modelscope_vet.py --data-root DATA

ModelScope published no recipe with the cards. configs/_base_/recipes/modelscope_vet.py says what is known and
what is assumed. Sizes are 10, as in the cards' example. On Flowers the suite trains on the 1,020 images of
the training split.

DATA holds cifar-100-python, CUB_200_2011, flowers-102 and stanford_dogs, which are downloaded if there is a
network. DATA also holds nabirds and stanford_cars, which you put there by hand (the command says how). The
weights come from timm's hub, or from a file. For ViT-B/16 this is Google's imagenet21k/ViT-B_16.npz, given by
--only '*.vitb16_orig.*' --cfg-options model.backbone.checkpoint=ViT-B_16.npz.
"""

_base_ = ['../../configs/_base_/recipes/modelscope_vet.py', '../../configs/_base_/datasets/fgvc.py']

backbones = dict(
    vitb16_orig=dict(type='timm', name='vit_base_patch16_224.orig_in21k'),
    vitl14_clip=dict(type='timm', name='vit_large_patch14_clip_quickgelu_224.openai'),
)
datasets = dict(
    cifar100=dict(train=dict(type='CIFAR100', split='train'), test=dict(type='CIFAR100', split='test'))
)
tuners = dict(
    lora=[dict(type='LoRA', rank=10)],
    adapter=[dict(type='Adapter', width=10, init='xavier')],
    prefix=[dict(type='Prefix', length=10)],
    vpt_shallow=[dict(type='VPT', length=10, depth='shallow')],
    vpt_deep=[dict(type='VPT', length=10)],
    bitfit=[dict(type='BitFit')],
    side_tuning=[dict(type='SideTuning')],
)
seeds = [0, 1, 2]
