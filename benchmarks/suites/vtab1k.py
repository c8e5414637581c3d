"""VTAB-1k: 19 tasks, ViT-B/16 of ImageNet-21k (orig), eighteen tuners, three seeds: 1,026 runs, for a GPU.

    python tools/benchmark.py benchmarks/suites/vtab1k.py --data-root DATA

All runs have one protocol, fact2023, with its drop path and its normalisation. The last epoch counts, never
the best epoch on the test images. Only linear probes have no drop path. So their features are the same in
each epoch, and are computed once (train.cache_features). The recipes of the other suites augment at random,
where this setting has no effect. Tuners with a grid choose their scale for each task out of five. 380 runs
that come first choose it: they train on 800 images and are judged on 200, by VTAB-1k's own lists. The final
runs train on all 1,000. Tables give both means, over the 19 tasks and over the 3 groups.

DATA holds vtab-1k/<task>/, in the layout of NOAH's script (vet/datasets/vtab.py). The weights come from
timm's hub, or from Google's imagenet21k/ViT-B_16.npz, given by --cfg-options
model.backbone.checkpoint=ViT-B_16.npz.
"""

_base_ = ['../../configs/_base_/recipes/fact2023.py', '../../configs/_base_/datasets/vtab1k.py']

backbones = dict(vitb16_orig=dict(type='timm', name='vit_base_patch16_224.orig_in21k'))
scales = {'model.tuners.0.scale': [0.01, 0.1, 1.0, 10.0, 100.0]}
tuners = dict(
    linear=dict(
        tuners=[dict(type='LinearProbe')],
        options={'train.cache_features': True, 'model.backbone.kwargs.drop_path_rate': 0.0},
    ),
    full=dict(tuners=[dict(type='Full')], options={'train.optimizer.lr': 1e-4}),
    bitfit=[dict(type='BitFit')],
    norm_tune=[dict(type='NormTune')],
    difffit=[dict(type='DiffFit')],
    vpt_shallow=[dict(type='VPT', length=10, depth='shallow')],
    vpt_deep=[dict(type='VPT', length=10)],
    lora=[dict(type='LoRA', rank=8)],
    adapter=[dict(type='Adapter', width=8)],
    houlsby=[dict(type='Houlsby', width=8)],
    pfeiffer=[dict(type='Pfeiffer', width=8)],
    adaptformer=[dict(type='AdaptFormer', width=8, dropout=0.1)],
    ssf=[dict(type='SSF')],
    fact_tt=dict(tuners=[dict(type='FacT', variant='tt', rank=16, dropout=0.1)], grid=scales),
    fact_tk=dict(tuners=[dict(type='FacT', variant='tk', rank=32, dropout=0.1)], grid=scales),
    convpass=dict(tuners=[dict(type='Convpass', width=8)], grid=scales),
    repadapter=dict(
        tuners=[dict(type='RepAdapter', width=8, dropout=0.1)],
        grid={'model.tuners.0.scale': [0.1, 0.5, 1.0, 5.0, 10.0]},
    ),
    sct=[dict(type='SCT')],
)
seeds = [0, 1, 2]
options = {
    'model.backbone.kwargs.drop_path_rate': 0.1,
    'model.backbone.preprocessing': dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
}
