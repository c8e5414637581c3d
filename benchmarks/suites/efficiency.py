"""Efficiency: accuracy against trained numbers, bytes, seconds and memory; DeiT-Tiny, Flowers: 63 runs.

    python tools/benchmark.py benchmarks/suites/efficiency.py --data-root DATA \
        --cfg-options model.backbone.checkpoint=FILE

Tuners of several sizes, by the protocol of deit_tiny_cpu: images of 112 pixels, 20 epochs, one thread. The
report has a plot for each cost. Seconds and memory depend on the machine and on what else it does: give
--jobs 1 and a quiet machine. DATA and FILE are the same as for deit_tiny_cpu.
"""

_base_ = ['deit_tiny_cpu.py']

datasets = dict(
    _delete_=True,
    flowers102=dict(
        train=dict(type='Flowers102', split='train'),
        test=dict(type='Flowers102', split='test'),
        options={'model.backbone.preprocessing.size': 112, 'train.max_epochs': 20},
    ),
)
tuners = dict(
    _delete_=True,
    linear=[dict(type='LinearProbe')],
    full=dict(tuners=[dict(type='Full')], options={'train.optimizer.lr': 1e-4, 'train.head_lr': 2e-3}),
    partial=[dict(type='Partial', blocks=1)],
    bitfit=[dict(type='BitFit')],
    norm_tune=[dict(type='NormTune')],
    ssf=[dict(type='SSF')],
    lora_1=[dict(type='LoRA', rank=1)],
    lora_4=[dict(type='LoRA', rank=4)],
    lora_16=[dict(type='LoRA', rank=16)],
    lora_64=[dict(type='LoRA', rank=64)],
    adapter_1=[dict(type='Adapter', width=1)],
    adapter_8=[dict(type='Adapter', width=8)],
    adapter_64=[dict(type='Adapter', width=64)],
    vpt_1=[dict(type='VPT', length=1)],
    vpt_10=[dict(type='VPT', length=10)],
    vpt_50=[dict(type='VPT', length=50)],
    repadapter=[dict(type='RepAdapter', width=8)],
    side_tuning=[dict(type='SideTuning')],
    ladder_side=[dict(type='LadderSide')],
    res_tuning_bypass=[dict(type='ResTuningBypass')],
    dtl=[dict(type='DTL')],
)
seeds = [0, 1, 2]
baseline = 'lora_4'
