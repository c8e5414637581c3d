"""Finds labels that are probably wrong, and classes that overlap, from features of a frozen backbone.

A linear discriminant with shrinkage (Ledoit and Wolf 2004) is trained on four fifths of the photos, and
judges the others. A label k of a photo with the scores s is explained by a mixture:

    p(k) = (1 - e) softmax(s / T)_k + e / K

The share e of labels says nothing of the photo. T and e maximise the likelihood of all labels. A label is
suspect if the label comes from the second part with a probability above 1/2. Where no label is wrong, e is
near 0, and no label is suspect.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from vet.check.findings import Finding
from vet.check.photos import Photo
from vet.core.backbone import Backbone
from vet.datasets.image import open_image
from vet.progress import counted
from vet.transforms.torchvision import build_transform

FOLDS = 5
STARTS = ((0.0, -3.0), (2.0, -3.0))  # of the search: log T, and the logit of e
OVERLAP = 0.2  # the share of the photos of each of two classes that the other class takes


def features_of(backbone: Backbone, paths: Sequence[str], batch: int = 32) -> np.ndarray:
    """(N, C) features of the evaluation's view of each photo."""
    preprocessing = backbone.preprocessing
    view = build_transform(None, **vars(preprocessing))
    network, found = backbone.eval(), []
    starts = range(0, len(paths), batch)
    with torch.inference_mode():
        for start in counted(starts, len(starts), True):
            images = [open_image(path, preprocessing.gray_range) for path in paths[start : start + batch]]
            found.append(network(torch.stack([view(image) for image in images])).float().cpu().numpy())
    return np.concatenate(found)


@dataclass(frozen=True)
class Judged:
    """best_N: the most probable class of each photo. wrong_N: the probability that the label is wrong."""

    best_N: np.ndarray
    wrong_N: np.ndarray

    def suspects(self, labels_N: np.ndarray) -> list[int]:
        """The photos with a suspect label, the most suspect first."""
        order = np.argsort(-self.wrong_N, kind='stable')
        return [int(i) for i in order if self.wrong_N[i] > 0.5 and self.best_N[i] != labels_N[i]]


def judged(features_NC: np.ndarray, labels_N: np.ndarray) -> Judged:
    """Judges the labels 0 … K-1 by models that have not seen the photo. Each class needs two photos."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a class with fewer photos than folds
        scores_NK = cross_val_predict(model, features_NC, labels_N, cv=folds, method='predict_log_proba')
    items, by_chance = np.arange(len(labels_N)), 1 / scores_NK.shape[1]

    def parts(point: np.ndarray) -> tuple[np.ndarray, float]:
        share = float(expit(point[1]))
        right_N = softmax(scores_NK / np.exp(point[0]), axis=1)[items, labels_N]
        return (1 - share) * right_N, share * by_chance

    def loss(point: np.ndarray) -> float:
        right_N, wrong = parts(point)
        return -float(np.log(right_N + wrong + 1e-300).mean())

    found = min((minimize(loss, start, method='Nelder-Mead') for start in STARTS), key=lambda end: end.fun)
    right_N, wrong = parts(found.x)
    return Judged(scores_NK.argmax(1), wrong / (right_N + wrong + 1e-300))


def label_findings(photos: Sequence[Photo], features_NC: np.ndarray) -> Iterator[Finding]:
    """Suspect labels, and pairs of classes that take each other's photos.

    A class with one photo cannot be judged.
    """
    counts = Counter(photo.label for photo in photos)
    kept = [i for i, photo in enumerate(photos) if counts[photo.label] > 1]
    names = sorted({photos[i].label for i in kept})
    if len(names) < 2:
        return
    labels_N = np.array([names.index(photos[i].label) for i in kept])
    found = judged(features_NC[kept], labels_N)
    for item in found.suspects(labels_N):
        photo, other = photos[kept[item]], names[found.best_N[item]]
        chance = f'{found.wrong_N[item]:.2f}'
        text = f'the label {photo.label} is wrong with probability {chance}; {other} fits better.'
        yield Finding('suspect label', text, (photo.path,))
    taken_KK = np.zeros((len(names), len(names)))
    np.add.at(taken_KK, (labels_N, found.best_N), 1)
    taken_KK /= taken_KK.sum(1, keepdims=True)
    for one, other in zip(*np.nonzero(np.minimum(taken_KK, taken_KK.T) >= OVERLAP)):
        if one < other:
            yield Finding(
                'classes that overlap', f"{names[one]} and {names[other]} take each other's photos."
            )
