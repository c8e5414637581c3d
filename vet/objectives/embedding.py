"""The objective of images that are searched: a vector for each image, near the vectors of its class."""

from typing import Any

import numpy as np
import torch

from vet.core.objective import Answer
from vet.core.one_class import OneClass
from vet.core.permits import permits
from vet.errors import UserError
from vet.registry import OBJECTIVES

EXAMPLE = 8  # numbers of a made-up vector


@OBJECTIVES.register_module()
@permits()
class Embedding(OneClass):
    """A vector of length 1 for each image. Vectors of one class lie near one another, also of unseen classes.

    A target is a class number 0 … K-1. The head is dict(type='Embedding', size=128). While the model trains,
    its outputs are the K cosines between the vector and a trained prototype of each class, then the vector.
    In use, the output is the vector. `pipeline` returns {'vector': [...]}, and has `nearest(images,
    gallery)`.
    """

    targets = 'a class of images that are alike'
    loss = dict(type='ArcFaceLoss')
    metrics = ('recall_at_1', 'recall_at_5', 'map_at_r')
    embeds = True
    watched = 'recall_in_batch'
    about = 'a model that places images near similar images'
    hub_task = 'image-feature-extraction'

    def watch(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Whether the nearest other image of the batch is of the same class."""
        vectors_BD = outputs[:, len(self.names) :].float()
        near_BB = (vectors_BD @ vectors_BD.T).fill_diagonal_(-2)
        return (targets[near_BB.argmax(1)] == targets).float()

    def answers(self, outputs: torch.Tensor, topk: int | None, usual: int) -> list[Answer]:
        return [dict(vector=vector) for vector in outputs.float().tolist()]

    def rows(self, answer: Answer) -> list[tuple[str, str]]:
        return [
            (
                f'{len(answer["vector"])} numbers',
                ' '.join(f'{value:.3f}' for value in answer['vector'][:4]) + ' …',
            )
        ]

    @property
    def columns(self) -> list[str]:
        return ['vector']

    def flat(self, answer: Answer) -> Answer:
        return dict(vector=' '.join(f'{value:.6g}' for value in answer['vector']))

    def refuse_threshold(self) -> None:
        raise UserError('the model gives vectors, which have no score. Leave the threshold out.')

    def words(self, target: Any) -> str:
        """The name of a class. '' for a vector."""
        return '' if np.ndim(target) else super().words(target)

    def sureness(self, scores: np.ndarray, decided: object) -> list[float]:
        """Empty: a vector is no score."""
        return []

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The similarity to the nearest image of another class minus that to the nearest of the same class.

        At least 0.
        """
        near_NN = scores @ scores.T
        np.fill_diagonal(near_NN, -1)
        is_same_NN = targets[:, None] == targets
        same_N = np.where(is_same_NN, near_NN, -1).max(1)
        other_N = np.where(is_same_NN, -1, near_NN).max(1)
        return np.maximum(other_N - same_N, 0)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        labels = self.example_labels()
        vectors = np.random.default_rng(0).standard_normal((len(labels), EXAMPLE))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels

    def example_outputs(self) -> np.ndarray:
        vectors, _ = self.examples()
        return np.concatenate(
            [np.random.default_rng(1).uniform(-1, 1, (len(vectors), len(self.names))), vectors], 1
        )
