"""For ModelScope's model cards of vision-efficient-tuning. No recipe was published with them: this one is not
theirs.

What is known: the LoRA card's example sets lr_scheduler.T_max to max_epochs (a cosine over the whole
training), lora_length to 10, and trains one epoch, to show how; ModelScope's tests set every length to 10.
What is assumed: all else, which is adapter_plus2024 (AdamW at 1e-3, weight decay 1e-4, 100 epochs, 10 of
warmup, batch 64, random resized crops and flips), but down to a rate of 0, and evaluated with the
checkpoint's own crop and normalisation.
"""

_base_ = ['adapter_plus2024.py']

train = dict(lr_scheduler=dict(eta_min=0))
evaluation = dict(transform=None)
