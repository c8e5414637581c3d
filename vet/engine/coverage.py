"""Before training, one line tells how much of the network each tuner reaches. Where that is little, a warning."""

import warnings
from collections.abc import Iterable

from vet.core.tuner import Tuner
from vet.progress import say


def tell_coverage(tuners: Iterable[Tuner]) -> None:
    """Prints the coverage of tuners that are attached. Tuners of several tasks that reach the same are one line."""
    attached = [tuner for tuner in tuners if not tuner.head_only]
    for line in dict.fromkeys(f'{type(tuner).__name__} reaches {tuner.coverage()}' for tuner in attached):
        say(line)
    for text in dict.fromkeys(text for tuner in attached for text in tuner.shortfalls()):
        warnings.warn(text, stacklevel=2)
