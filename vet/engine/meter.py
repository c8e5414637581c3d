"""Running means of the loss and of one more number, such as the accuracy. They stay on the device, so
that no step waits for them.
"""

import time

import torch
from accelerate import Accelerator


class Meter:
    """Means over images since the last `read`, and images per second: of the loss, and of a watched number.

    An objective says the watched number, such as 1 for an image whose class is right.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._epoch = [0.0, 0.0, 0.0]
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, device=self._device)  # loss, watched, images
        self._began = time.perf_counter()

    def add(self, losses_B: torch.Tensor, watched_B: torch.Tensor, weights_B: torch.Tensor) -> None:
        self._sums += torch.stack(
            [(losses_B * weights_B).sum(), (watched_B * weights_B).sum(), weights_B.sum()]
        )

    def sums(self) -> torch.Tensor:
        """(3,): a copy of the sums of the loss and the watched number, and of the number of images."""
        return self._sums.clone()

    def restart_clock(self) -> None:
        """Leaves out the time since the last `read`, such as that of a validation."""
        self._began = time.perf_counter()

    def state(self, accelerator: Accelerator) -> list[float]:
        """All counts since the last `read` and the last `end_epoch`, over all processes: six numbers."""
        return [*accelerator.reduce(self._sums.clone(), 'sum').tolist(), *self._epoch]

    def restore(self, state: list[float], is_main: bool) -> None:
        """Continues from `state`; [] changes nothing. The main process takes the counts of all processes."""
        if state:
            self._sums += torch.tensor(state[:3], device=self._device) * is_main
            self._epoch = list(state[3:])

    def read(self, accelerator: Accelerator) -> tuple[float, float, float]:
        """Loss, watched number and images per second, over all processes. Then the counts start again."""
        loss, watched, images = accelerator.reduce(self._sums, 'sum').tolist()
        seconds = time.perf_counter() - self._began
        self._epoch = [a + b for a, b in zip(self._epoch, (loss, watched, images))]
        self._reset()
        return loss / images, watched / images, images / seconds

    def peek_epoch(self) -> tuple[float, float]:
        """Loss and watched number over all reads since the last `end_epoch`."""
        loss, watched, images = self._epoch
        return loss / images, watched / images

    def end_epoch(self) -> None:
        """Starts the counts of the next epoch."""
        self._epoch = [0.0, 0.0, 0.0]
