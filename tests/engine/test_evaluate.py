"""Several processes score what one scores. Here each process is a thread, with an exchange of tensors in
place of a network.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from vet.engine import evaluate
from vet.engine.device import make_accelerator
from vet.engine.feed.batches import Batch


class Exchange:
    """The processes of a group. `share` gives each process the values of all processes, in order."""

    def __init__(self, processes):
        self.processes = processes
        self.values = [None] * processes
        self.barrier = threading.Barrier(processes, timeout=10)
        self.of_thread = threading.local()

    def share(self, value):
        self.values[self.of_thread.rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def gather_object(self, objects):
        return [one for objects in self.share(objects) for one in objects]

    def run(self, function):
        """The results of function(accelerator) in each process."""

        def start(rank):
            self.of_thread.rank = rank
            return function(Process(rank, self))

        with ThreadPoolExecutor(self.processes) as pool:
            return list(pool.map(start, range(self.processes)))


class Process:
    """What `score` takes of an Accelerator."""

    device = torch.device('cpu')
    autocast = staticmethod(nullcontext)

    def __init__(self, rank, exchange):
        self.process_index = rank
        self.num_processes = exchange.processes
        self.exchange = exchange

    def gather(self, tensor):
        return torch.cat(self.exchange.share(tensor))


class Numbers:
    """A dataset whose image i is kept as the feature vector (i, 2 i, 3 i)."""

    classes = ['a', 'b', 'c']

    def __init__(self, length):
        self.length = length
        self.net = nn.Identity()

    def __len__(self):
        return self.length

    def batches(self, keys, device):
        for listed in keys:
            numbers_B = torch.tensor([i for _, i, _ in listed])
            yield Batch(
                numbers_B[:, None] * torch.tensor([1.0, 2.0, 3.0]), numbers_B % 3, torch.ones(len(listed))
            )


@pytest.mark.parametrize('length, processes', [(7, 2), (8, 2), (1, 2), (7, 3), (2, 3)])
def test_processes_score_what_one_process_scores(monkeypatch, length, processes):
    data, exchange = Numbers(length), Exchange(processes)
    monkeypatch.setattr(evaluate, 'gather_object', exchange.gather_object)

    def score(accelerator):
        return evaluate.score(data.net, data, None, accelerator, 2, 0, data)

    scores, targets = score(make_accelerator('cpu', 'fp32'))
    assert scores.shape == (length, 3) and targets.tolist() == [i % 3 for i in range(length)]
    for others, theirs in exchange.run(score):
        assert others.dtype == scores.dtype and theirs.dtype == targets.dtype
        np.testing.assert_array_equal(others, scores)
        np.testing.assert_array_equal(theirs, targets)
