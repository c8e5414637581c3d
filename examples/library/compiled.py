"""torch.compile makes one graph of a tuned network, and trains through the graph.    python compiled.py"""

import torch
import torch.nn.functional as F
from plain_loop import digits, network

import vet

if __name__ == '__main__':
    tuned = vet.tune(network(), vet.LoRA(rank=8))
    fast = torch.compile(tuned, fullgraph=True)
    optimizer = torch.optim.AdamW(tuned.trainable().values(), lr=2e-3)
    loader = torch.utils.data.DataLoader(digits(), batch_size=64, shuffle=True, drop_last=True)
    for images, labels in loader:
        loss = F.cross_entropy(fast(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f'loss {loss.item():.3f}')
    tuned.save('digits')
