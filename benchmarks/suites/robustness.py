"""Robustness: trained on clean images, tested on shifted and corrupted images, ViT-B/16: 48 runs, for a GPU.

    python tools/benchmark.py benchmarks/suites/robustness.py --data-root DATA

Each run trains once, and is then tested with its test split and with every shifted set. `shifts/accuracy`
in the tables is the mean over the shifted sets. The corruptions are eight of ImageNet-C (Hendrycks and
Dietterich 2019, arXiv:1903.12261) by vet's dataset Corrupted, of severity 3, on the images as the dataset
gives them. So the numbers are not those of ImageNet-C's files. ImageNet trains on 16 images of each class,
and ImageNet-Sketch (Wang et al. 2019, arXiv:1905.13549) is one of its shifted sets. All runs have the
protocol adapter_plus2024.

DATA holds flowers-102, which is downloaded if there is a network, imagenet/{train,val}/<wnid>/ and
imagenet-sketch/test/<wnid>/.
"""

_base_ = ['../../configs/_base_/recipes/adapter_plus2024.py']

backbones = dict(vitb16_augreg=dict(type='timm', name='vit_base_patch16_224.augreg_in21k'))
flowers = dict(type='Flowers102', split='test')
imagenet = dict(type='ImageFolder', path='imagenet', split='val')
damages = [
    'gaussian_noise',
    'shot_noise',
    'impulse_noise',
    'gaussian_blur',
    'brightness',
    'contrast',
    'pixelate',
    'jpeg_compression',
]
datasets = dict(
    flowers102=dict(train=dict(type='Flowers102', split='train'), test=flowers, shifts={}),
    imagenet=dict(
        train=dict(type='FewShot', dataset=dict(imagenet, split='train'), shots=16),
        test=imagenet,
        shifts=dict(sketch=dict(type='ImageFolder', path='imagenet-sketch', split='test')),
    ),
)
for name, clean in (('flowers102', flowers), ('imagenet', imagenet)):
    for corruption in damages:
        datasets[name]['shifts'][corruption] = dict(type='Corrupted', dataset=clean, corruption=corruption)
tuners = dict(
    linear=[dict(type='LinearProbe')],
    full=dict(tuners=[dict(type='Full')], options={'train.optimizer.lr': 1e-4}),
    lora=[dict(type='LoRA', rank=8)],
    adapter=[dict(type='Adapter', width=8)],
    vpt_deep=[dict(type='VPT', length=10)],
    ssf=[dict(type='SSF')],
    bitfit=[dict(type='BitFit')],
    pace=[dict(type='PACE')],
)
seeds = [0, 1, 2]
baseline = 'lora'
options = {'model.backbone.kwargs.drop_path_rate': 0.1}
