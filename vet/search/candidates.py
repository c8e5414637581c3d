"""The candidates of a search: tuners with arguments, and a range of learning rates for each."""

from collections.abc import Sequence
from dataclasses import dataclass

from vet.config import Plugin
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS


@dataclass(frozen=True)
class Candidate:
    """tuner: the config entry. lowest, highest: learning rates of AdamW."""

    name: str
    tuner: Plugin
    lowest: float
    highest: float


def candidates(names: Sequence[str] | None = None) -> list[Candidate]:
    """The candidates of the tuners `names`. None: of all tuners whose files state candidates.

    UserError for an unknown name. A named tuner without stated candidates is tried with its defaults.
    """
    found = []
    for name in TUNERS.names() if names is None else dict.fromkeys(names):
        tuner = TUNERS.find(name)
        if not (isinstance(tuner, type) and issubclass(tuner, Tuner)):
            if names is None:
                continue
            raise UserError(f'the tuner {name!r} is no class of tuners, so that vet tune cannot try it.')
        stated = tuner.candidates or (() if names is None else ({},))
        for arguments in stated:
            words = ', '.join(f'{key}={value!r}' for key, value in arguments.items())
            entry = {**arguments, 'type': name}
            found.append(Candidate(f'{name}({words})', entry, *tuner.learning_rates))
    return found
