"""The library door: `tune` puts tuners on a user's own network, `load` puts saved tuners on it.

The door stands on core, backbones and hub, as the other doors do. vet offers `tune` and `load` under its own
name.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vet.backbones.libraries import (
    Recipe,
    classifier_of,
    image_size_of,
    input_of,
    layout_of,
    library_of,
    resampled_of,
)
from vet.core.backbone import Description
from vet.core.description import describe
from vet.core.example import Example
from vet.core.plain_network import require_network
from vet.core.preprocessing import Preprocessing
from vet.core.proof import prove
from vet.core.tuned_network import FIRST, TunedNetwork
from vet.core.tuner import Tuner
from vet.core.whole import modules_to_save_of, parameters_below, parameters_named, with_statistics
from vet.core.written_example import example_of
from vet.errors import DataError, UserError, shown
from vet.files import JsonObject
from vet.hub.model_folder import read_configuration
from vet.hub.names import find_folder, require_path
from vet.hub.network_folder import described_network, load_tensors, require_same, save_network
from vet.registry import TUNERS


class Tuned(TunedNetwork):
    """A user's network with tuners, as `vet.tune` and `vet.load` give it. See TunedNetwork.

    recipe: the name and the arguments by which the network's library builds the network again. None: not
        known.
    opened: {set: the configuration of the folder from which `vet.load` took the set}.
    """

    recipe: Recipe | None = None
    opened: dict[str, JsonObject]

    def add(self, name: str, *tuners: Tuner) -> None:
        """Adds a named set of tuners, and makes it the active set. The set has its own classifier.

        The classifier starts from the values that it had before `vet.tune`.
        """
        _require_name(name)
        _require_tuners(tuners)
        if not self.is_attached:
            raise UserError(
                'the tuners are detached. Tune the network again: vet.tune(net, vet.LoRA(rank=8)).'
            )
        if name in self.sets:
            raise UserError(f'there is a set {name!r} already; give another name.')
        before = self.active
        self.use(None)
        self.sets[name] = nn.ModuleList()
        self.active = name
        try:
            self.put(tuners)
        except BaseException:
            del self.sets[name]
            self.active = None
            self.use(before)
            raise

    def put(self, tuners: Sequence[Tuner]) -> None:
        """Attaches tuners, and the tuner of the parameters that train whole, to the active set."""
        for tuner in tuners:
            tuner.attach(self)
            self.tuners.append(tuner)
        left = [
            name
            for name, parameter in self.network.named_parameters()
            if name in set(self.whole) and not parameter.requires_grad
        ]
        if left:
            rest = TUNERS.build(dict(type='Partial', names=left))
            rest.attach(self)
            self.tuners.append(rest)
        self.renew_modes()

    def rename(self, name: str) -> None:
        """Names the active set."""
        if self.active is not None and name != self.active:
            self.sets[name] = self.sets.pop(self.active)
            self.active = name

    def save(
        self,
        folder: str | Path,
        classes: Sequence[str] | None = None,
        preprocessing: Mapping[str, object] | None = None,
    ) -> None:
        """Writes a model folder: configuration.json and tuner.safetensors. A folder of that name is replaced.

        classes: the names of the classes, in the order of the logits. None: those of the folder from which
            `vet.load` took the set, or '0', '1', ….
        preprocessing: changes to the settings of images that this folder says, or that the network's library
            states (mean, std, size, crop_pct, interpolation). `vet.pipeline` follows them.
        UserError while the network is merged or detached.
        """
        if not self.is_attached:
            raise UserError('the tuners are detached, so there is nothing to save; save before detach().')
        shape = self.sites.calls[''].out_shape
        count = shape[0] if len(shape) == 1 else 0
        opened = self.opened.get(self.active or '', {})
        if classes is None:
            classes = opened.get('classes') or list(map(str, range(count)))
        names = _class_names(classes)
        if count and len(names) != count:
            raise UserError(f'classes has {len(names)} names, but the network gives {count} logits.')
        require_path(folder)
        if Path(folder).name in ('', '..'):
            raise UserError(f'folder is {shown(folder)}; allowed: the path of a folder that has a name.')
        if preprocessing is not None and not isinstance(preprocessing, Mapping):
            raise UserError(
                f'preprocessing is {shown(preprocessing)}; allowed: a dict, such as dict(size=(32, 32)).'
            )
        images = self.preprocessing.with_changes(
            {**(opened.get('preprocessing') or {}), **(preprocessing or {})}
        )
        model, kwargs = self.recipe or ('', {})
        entry = dict(
            type='network',
            name=type(self.network).__name__,
            model=model,
            kwargs=kwargs,
            sha256=self.frozen['sha256'],
        )
        save_network(self, Path(folder), names, entry, images)


def tune(
    net: nn.Module,
    *tuners: Tuner | Mapping[str, Tuner | Sequence[Tuner]],
    train: str | Iterable[str] = (),
    example: object = None,
    modules_to_save: Iterable[str] = (),
) -> Tuned:
    """Freezes `net` except its classifier, and puts tuners on it. The network is edited in place.

    net: any network that takes images.
    tuners: one or more, such as vet.LoRA(rank=8). They are attached in order. Or one dict of named sets, such
        as dict(flowers=vet.LoRA(8), birds=[vet.LoRA(4), vet.BitFit()]): the first acts, and
        tuned.use('birds') or `with tuned.using('birds')` chooses another.
    train: names of further parameters that train whole, with wildcards: 'head.*'.
    example: an input for the dry run: a tensor (B, 3, H, W), a list of images, a tuple of arguments, or a
        dict of keyword arguments. None: a black image of the size that the network's library states.
    modules_to_save: PEFT's name: the names, or ends of paths, of modules that train whole, beside `train`.
    Returns the tuned network, an ordinary module: tuned(images) computes what net(images) computes. The
    classifier is what the network's library (timm, torchvision, transformers) calls its classifier. In
    another network, only the tuners and the parameters of `train` train, and vet warns. UserError if a tuner
    cannot act, or if nothing would train. Then the network is as it was.
    """
    require_network(net)
    sets = tuners[0] if len(tuners) == 1 and isinstance(tuners[0], Mapping) else {FIRST: tuners}
    if not sets or (isinstance(sets, Mapping) and 'type' in sets):
        _require_tuners([sets])
    named: dict[str, list[Any]] = {
        name: list(members) if isinstance(members, list | tuple) else [members]
        for name, members in sets.items()
    }
    for name, members in named.items():
        _require_name(name)
        _require_tuners(members)
    saved = modules_to_save_of(net, modules_to_save)
    classifier = classifier_of(net)
    if not classifier and not train and not saved:
        warnings.warn(
            f'vet knows no classifier of {type(net).__name__}, so only the tuners train. To train further '
            'parameters, name them: train="head.*".',
            stacklevel=2,
        )
    names = [*parameters_below(net, classifier), *parameters_named(net, train), *parameters_named(net, saved)]
    first, *others = named.items()
    whole = with_statistics(net, names)
    tuned = _tuned(net, first[1], whole, _described(net, whole), example)
    try:
        tuned.rename(first[0])
        for name, members in others:
            tuned.add(name, *members)
    except BaseException:
        tuned.detach()
        raise
    tuned.use(first[0])
    return tuned


def load(folder: str | Path | Mapping[str, str | Path], net: nn.Module, example: object = None) -> Tuned:
    """Puts the tuners of a saved folder on `net`, which must be the network that was tuned. Edits `net`.

    folder: a folder that tuned.save(…) wrote. Or {name: folder, …} for several sets of tuners on one network:
        the first acts, and tuned.use(name) or `with tuned.using(name)` chooses another.
    example: as in `tune`. None: an input of the shapes that the folder holds.
    DataError if the network has another architecture or other weights. Then the network is as it was.
    """
    require_network(net)
    folders: Mapping[str, str | Path] = folder if isinstance(folder, Mapping) else {FIRST: folder}
    if not folders:
        raise UserError('folder is {}; give one or more: vet.load(dict(flowers=folder), net).')
    for name in folders:
        _require_name(name)
    saved = {name: _Saved.read(each, net) for name, each in folders.items()}
    first, *others = saved
    stored = saved[first].example
    if example is None and stored:
        example = example_of(stored)
    whole = list(dict.fromkeys(name for content in saved.values() for name in content.whole))
    described = saved[first].network if saved[first].whole == whole else _described(net, whole)
    tuned = _tuned(net, saved[first].tuners(), saved[first].whole, described, example)
    try:
        tuned.rename(first)
        load_tensors(tuned, saved[first].path, saved[first].configuration)
        for name in others:
            tuned.whole = saved[name].whole
            tuned.add(name, *saved[name].tuners())
            load_tensors(tuned, saved[name].path, saved[name].configuration)
        tuned.opened = {name: content.configuration for name, content in saved.items()}
        tuned.whole = whole
        tuned.use(first)
    except BaseException:
        tuned.detach()
        raise
    return tuned


@dataclass(frozen=True)
class _Saved:
    """The content of a folder, and the network at this time. See hub/network_folder.py."""

    path: Path
    configuration: JsonObject
    whole: list[str]
    example: JsonObject | None
    network: JsonObject

    @classmethod
    def read(cls, folder: str | Path, net: nn.Module) -> '_Saved':
        """DataError if the folder is not that of a tuned network, or if `net` is another network."""
        path = find_folder(folder)
        configuration = read_configuration(path)
        described = described_network(configuration, str(folder))
        if described is None:
            raise DataError(
                f'{str(folder)!r} was not saved by tuned.save(…): open it by vet.pipeline({str(folder)!r}).'
            )
        network = _described(net, described['whole'])
        require_same(described, network, str(folder))
        return cls(path, configuration, described['whole'], described['example'], network)

    def tuners(self) -> list[Tuner]:
        return [TUNERS.build(entry) for entry in self.configuration['model']['tuners']]


def _tuned(
    net: nn.Module, tuners: Sequence[Tuner], whole: Sequence[str], described: Description, example: object
) -> Tuned:
    """whole: the names of the parameters that train whole. described: the network, before this call."""
    shape = image_size_of(net)
    library = library_of(net)
    recipe = library.recipe(net) if library else None
    settings = library.preprocessing(net) if library else {}
    takes = input_of(net, is_guessed=example is None)
    if example is None:
        image = torch.zeros(1, 3, *(shape or (224, 224)))
        example = {library.argument: image} if library and library.argument else image
    given = example if isinstance(example, Example) else Example.of(example)
    images = Preprocessing().with_changes({**settings, **(dict(size=shape) if shape else {})})
    tuned = Tuned(net, layout_of(net), given, images, takes)
    tuned.frozen = described
    tuned.whole = list(whole)
    tuned.recipe = recipe
    tuned.opened = {}
    try:
        tuned.put(tuners)
    except BaseException:
        tuned.detach()
        raise
    if not tuned.trainable():
        tuned.detach()
        raise UserError(
            f'nothing of {type(net).__name__} would train: the tuners add no numbers, and vet knows no '
            'classifier. Name parameters to train, such as train="head.*".'
        )
    _warn_of_idle(tuned)
    return tuned


def _warn_of_idle(tuned: Tuned) -> None:
    """Warns if a forward of the example gives some parameters of the tuners no gradient."""
    tuners = [(i, tuner) for i, tuner in enumerate(tuned.tuners) if tuner.no_gradient is None]
    named = [(f'tuners.{i}.{name}', one) for i, tuner in tuners for name, one in tuner.trainable()]
    try:
        idle = set(map(id, prove(tuned, [one for _, one in named])))
    except Exception:  # each tuner was proved; a network may give other outputs with all tuners
        return
    names = [name for name, one in named if id(one) in idle]
    if names:
        warnings.warn(
            f'{len(names)} of {len(named)} parameters of the tuners get no gradient, such as {names[0]!r}: '
            f'{type(tuned.network).__name__} does not call the module with the example, or computes the '
            'module without gradients. These parameters do not train, unless the network computes more from '
            'targets, as detection networks do. Choose other places with at=….',
            stacklevel=4,
        )


def _described(net: nn.Module, whole: Iterable[str]) -> Description:
    return describe(net, [*whole, *resampled_of(net)])


def whole_parameters(net: nn.Module, train: str | Iterable[str] = ()) -> list[str]:
    """The names of the parameters that train whole: those of the classifier, and those that `train` names."""
    return with_statistics(net, [*parameters_below(net, classifier_of(net)), *parameters_named(net, train)])


def _class_names(classes: object) -> list[str]:
    """The names of the classes. UserError for a text or a set, which has no order, and for equal names."""
    if isinstance(classes, str | Mapping | Set) or not isinstance(classes, Iterable):
        raise UserError(f"classes is {shown(classes)}; allowed: a list of names, such as ['cat', 'dog'].")
    names = list(map(str, classes))
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(
            f'classes has {doubled[0]!r} {names.count(doubled[0])} times; give each class another name.'
        )
    return names


def _require_name(name: object) -> None:
    if not isinstance(name, str) or not name or '.' in name or hasattr(nn.ModuleDict(), name):
        raise UserError(
            f'{shown(name)} names a set of tuners; allowed: a text without dots, such as "flowers".'
        )


def _require_tuners(tuners: Sequence[object]) -> None:
    if not tuners:
        raise UserError('no tuner is given; give one or more: vet.tune(net, vet.LoRA(rank=8)).')
    for tuner in tuners:
        if isinstance(tuner, type) and issubclass(tuner, Tuner):
            raise UserError(f'{tuner.__name__} is a class; give a tuner: vet.{tuner.__name__}(…).')
        if not isinstance(tuner, Tuner):
            raise UserError(f'a tuner is {shown(tuner)}; allowed: tuners of vet, such as vet.LoRA(rank=8).')
