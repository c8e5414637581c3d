"""Few images: five datasets, 1 to 16 images of each class, ViT-B/16, seven tuners, three seeds: 525 runs.

    python tools/benchmark.py benchmarks/suites/fewshot.py --data-root DATA

The datasets are those of NOAH (Zhang, Zhou, Liu 2022, arXiv:2206.04673): Food-101, Stanford Cars, Oxford
Flowers, FGVC-Aircraft and Oxford-IIIT Pet. A run trains on 1, 2, 4, 8 or 16 images of each class. Seed 0
draws these images, so the deviations are those of training alone. The images are not those of NOAH's lists.
More shots hold the images of fewer shots. Flowers draws from train + val, because train has ten images of
each class. All runs have the protocol adapter_plus2024, and test on the whole test split. The last epoch
counts.

DATA holds the datasets in the layout of torchvision, which are downloaded if there is a network, and
stanford_cars, which you put there by hand.
"""

_base_ = ['../../configs/_base_/recipes/adapter_plus2024.py']

backbones = dict(vitb16_orig=dict(type='timm', name='vit_base_patch16_224.orig_in21k'))
pools = dict(
    food101=(
        dict(type='torchvision', name='Food101', split='train'),
        dict(type='torchvision', name='Food101', split='test'),
    ),
    stanford_cars=(dict(type='StanfordCars', split='train'), dict(type='StanfordCars', split='test')),
    flowers102=(dict(type='Flowers102', split='train+val'), dict(type='Flowers102', split='test')),
    aircraft=(
        dict(type='torchvision', name='FGVCAircraft', split='train+val'),
        dict(type='torchvision', name='FGVCAircraft', split='test'),
    ),
    pets=(
        dict(type='torchvision', name='OxfordIIITPet', split='train+val'),
        dict(type='torchvision', name='OxfordIIITPet', split='test'),
    ),
)
datasets = {}
for shots in (1, 2, 4, 8, 16):
    for name, (pool, test) in pools.items():
        datasets[f'{name}-{shots}'] = dict(
            train=dict(type='FewShot', dataset=pool, shots=shots), test=test, group=f'{shots} shots'
        )
tuners = dict(
    linear=[dict(type='LinearProbe')],
    lora=[dict(type='LoRA', rank=8)],
    adapter=[dict(type='Adapter', width=8)],
    adaptformer=[dict(type='AdaptFormer', width=8, dropout=0.1)],
    vpt_deep=[dict(type='VPT', length=10)],
    ssf=[dict(type='SSF')],
    pace=[dict(type='PACE')],
)
seeds = [0, 1, 2]
baseline = 'lora'
options = {'model.backbone.kwargs.drop_path_rate': 0.1}
