"""A user's own network as the backbone of a model folder, see vet/library.py.

The folder names the network. If its library is known, vet can build the network again.
"""

from vet.core.backbone import Backbone
from vet.core.permits import ENTRIES, lists, permits, text
from vet.errors import DataError
from vet.registry import BACKBONES

NAME = text(r'[\w.]{0,200}', 'the name of a class or of a network')
PARAMETERS = lists(text(r'[\w.]+', 'the name of a parameter'), most=ENTRIES)


@BACKBONES.register_module(name='network')
@permits(name=NAME, whole=PARAMETERS)
def own_network(name: str, whole: list[str] | None = None) -> Backbone:
    """A network that a user gave to `vet.tune`. A config cannot name it.

    name: the name of its class.
    whole: the parameters that train whole, whose values the folder has.
    """
    raise DataError(
        f'the model was tuned on a network of the class {name}, which vet cannot build. Build the network as '
        'you did then, and give it: vet.load(folder, network), or vet.pipeline(folder, network=network).'
    )
