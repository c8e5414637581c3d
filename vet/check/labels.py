"""Finds labels that are probably wrong, and classes that overlap, from features of a frozen backbone.

A linear discriminant with shrinkage (Ledoit and Wolf 2004) is trained on four fifths of the photos, and
judges the others. vet/report/suspects.py finds the suspect labels by these answers. A photo is unusual if the
nearest other photos are far away.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from vet.check.findings import Finding
from vet.check.photos import Photo
from vet.core.backbone import Backbone
from vet.datasets.image import open_image
from vet.progress import counted
from vet.report.suspects import Judged, judged_by
from vet.transforms.torchvision import build_transform

FOLDS = 5
NEIGHBOURS = 5  # of a photo, whose mean distance says how unusual the photo is
FAR = 5.0  # robust standard deviations of these distances above their median
OVERLAP = 0.2  # the share of the photos of each of two classes that the other class takes


def features_of(backbone: Backbone, paths: Sequence[str], batch: int = 32) -> np.ndarray:
    """(N, C) features of the evaluation's view of each photo."""
    preprocessing = backbone.preprocessing
    view = build_transform(None, **vars(preprocessing))
    network = backbone.eval()
    found = []
    starts = range(0, len(paths), batch)
    with torch.inference_mode():
        for start in counted(starts, len(starts), True):
            images = [open_image(path, preprocessing.gray_range) for path in paths[start : start + batch]]
            found.append(network(torch.stack([view(image) for image in images])).float().cpu().numpy())
    return np.concatenate(found)


def judged(features_NC: np.ndarray, labels_N: np.ndarray) -> Judged:
    """Judges the labels 0 … K-1 by models that have not seen the photo. Each class needs two photos."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a class with fewer photos than folds
        scores_NK = cross_val_predict(model, features_NC, labels_N, cv=folds, method='predict_log_proba')
    return judged_by(scores_NK, labels_N)


def outliers(features_NC: np.ndarray) -> list[int]:
    """The photos that are like no others, the most unusual first.

    The distance of a photo is the mean cosine distance to the NEIGHBOURS nearest other photos. A photo is an
    outlier if the logarithm of the distance is FAR robust standard deviations above the median. A robust
    standard deviation is 1.4826 times the median absolute deviation.
    """
    if len(features_NC) <= 2 * NEIGHBOURS:
        return []
    near = NearestNeighbors(n_neighbors=NEIGHBOURS, metric='cosine').fit(features_NC)
    log_N = np.log(near.kneighbors()[0].mean(1) + 1e-6)
    above_N = log_N - np.median(log_N)
    limit = FAR * 1.4826 * np.median(np.abs(above_N))
    return [int(i) for i in np.argsort(-above_N, kind='stable') if above_N[i] > max(limit, 1e-3)]


def label_findings(photos: Sequence[Photo], features_NC: np.ndarray) -> Iterator[Finding]:
    """Outliers, suspect labels, and pairs of classes that take each other's photos.

    A class with one photo cannot be judged.
    """
    for item in outliers(features_NC):
        text = f'a photo of {photos[item].label} is like no other photo.'
        yield Finding('outlier', text, (photos[item].path,))
    counts = Counter(photo.label for photo in photos)
    kept = [i for i, photo in enumerate(photos) if counts[photo.label] > 1]
    names = sorted({photos[i].label for i in kept})
    if len(names) < 2:
        return
    labels_N = np.array([names.index(photos[i].label) for i in kept])
    found = judged(features_NC[kept], labels_N)
    for item in found.suspects(labels_N):
        photo = photos[kept[item]]
        other = names[found.best_N[item]]
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
