"""Nearest neighbours among vectors of length 1."""

from collections.abc import Iterator

import numpy as np

CHUNK = 1024  # rows that are compared at once


def unit(vectors_NC: np.ndarray) -> np.ndarray:
    """The vectors with length 1, float32."""
    length_N1 = np.linalg.norm(vectors_NC, axis=1, keepdims=True)
    return (vectors_NC / np.maximum(length_N1, 1e-12)).astype(np.float32)


def nearest(vectors_NC: np.ndarray, gallery_MC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The places (N, k) in the gallery of the k largest cosines, largest first, and the cosines (N, k)."""
    places, cosines = [], []
    for _, near in _chunks(unit(vectors_NC), unit(gallery_MC)):
        best = np.argsort(-near, axis=1, kind='stable')[:, :k]
        places.append(best)
        cosines.append(np.take_along_axis(near, best, 1))
    return np.concatenate(places), np.concatenate(cosines)


def nearest_others(vectors_NC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The places (N, k) of the k nearest others of each vector, nearest first, and the cosines (N, k)."""
    places, cosines = [], []
    rows = unit(vectors_NC)
    for start, near in _chunks(rows, rows):
        near[np.arange(len(near)), start + np.arange(len(near))] = -np.inf
        best = np.argsort(-near, axis=1, kind='stable')[:, :k]
        places.append(best)
        cosines.append(np.take_along_axis(near, best, 1))
    return np.concatenate(places), np.concatenate(cosines)


def votes(
    vectors_NC: np.ndarray,
    gallery_MC: np.ndarray,
    labels_M: np.ndarray,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """(N, K): the votes of the k nearest vectors of the gallery. A vote weighs exp(cosine / temperature).

    Wu et al. 2018, arXiv:1805.01978; k and temperature of DINO, Caron et al. 2021, arXiv:2104.14294
    """
    places, cosines = nearest(vectors_NC, gallery_MC, min(k, len(gallery_MC)))
    return _weighed(labels_M[places], cosines, classes, temperature)


def votes_of_others(
    vectors_NC: np.ndarray, labels_N: np.ndarray, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """(N, K): the votes of the k nearest others of each vector, as `votes` weighs them."""
    places, cosines = nearest_others(vectors_NC, min(k, len(vectors_NC) - 1))
    return _weighed(labels_N[places], cosines, int(labels_N.max()) + 1, temperature)


def _weighed(labels_NK: np.ndarray, cosines_NK: np.ndarray, classes: int, temperature: float) -> np.ndarray:
    """(N, classes): the sum of the weights of the votes for each class."""
    found = np.zeros((len(labels_NK), classes))
    weights = np.exp((cosines_NK.astype(np.float64) - 1) / temperature)
    np.add.at(found, (np.arange(len(found))[:, None], labels_NK), weights)
    return found


def _chunks(rows_NC: np.ndarray, gallery_MC: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The cosines of some rows with the whole gallery, and the place of the first of these rows."""
    for start in range(0, len(rows_NC), CHUNK):
        yield start, rows_NC[start : start + CHUNK] @ gallery_MC.T
