"""A recipe for ModelScope's model cards of vision-efficient-tuning. ModelScope published no recipe with them.

Known: the LoRA card's example sets lr_scheduler.T_max to max_epochs (a cosine over the whole training) and
lora_length to 10. The example trains one epoch, only as a demonstration. ModelScope's tests set every length
to 10.

Assumed: everything else. These settings are those of adapter_plus2024: AdamW at 1e-3, weight decay 1e-4, 100
epochs, the first 10 of warmup, batch 64, random resized crops and flips. Two settings differ. The rate falls
to 0. The evaluation uses the checkpoint's own crop and normalisation.
"""

_base_ = ['adapter_plus2024.py']

train = dict(lr_scheduler=dict(eta_min=0))
evaluation = dict(transform=None)
