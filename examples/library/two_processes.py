"""accelerate trains a tuned network in two processes.

accelerate launch --cpu --num_processes 2 two_processes.py
"""

import accelerate
import torch
import torch.nn.functional as F
from plain_loop import digits, network

import vet

if __name__ == '__main__':
    accelerator = accelerate.Accelerator(cpu=True)
    tuned = vet.tune(network(), vet.LoRA(rank=8))
    optimizer = torch.optim.AdamW(tuned.trainable().values(), lr=2e-3)
    loader = torch.utils.data.DataLoader(digits(), batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(tuned, optimizer, loader)
    for images, labels in loader:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    sums = torch.stack([parameter.detach().double().sum() for parameter in tuned.trainable().values()])
    assert (accelerator.gather(sums[None]) == sums).all()  # all processes hold the same numbers
    accelerator.print(f'processes {accelerator.num_processes}, loss {loss.item():.3f}')
    if accelerator.is_main_process:
        tuned.save('digits')
