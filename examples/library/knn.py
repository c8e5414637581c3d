"""k-nearest neighbours on the features of a tuned network, with sklearn.    python knn.py"""

import torch
import torch.nn.functional as F
from plain_loop import digits, network
from sklearn.neighbors import KNeighborsClassifier

import vet

if __name__ == '__main__':
    tuned = vet.tune(network(), vet.LoRA(rank=8))
    images, labels = digits().tensors
    optimizer = torch.optim.AdamW(tuned.trainable().values(), lr=2e-3)
    for start in range(0, 384, 64):
        loss = F.cross_entropy(tuned(images[start : start + 64]), labels[start : start + 64])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tuned.eval()
    with torch.inference_mode():  # the tuners act within the network, so its own methods see them
        features = tuned.forward_head(tuned.forward_features(images), pre_logits=True)
    nearest = KNeighborsClassifier(5).fit(features[:384], labels[:384])
    print(f'accuracy {nearest.score(features[384:], labels[384:]):.3f}')
