"""TunedNetwork: a user's own network with tuners. It is an ordinary module, which computes what the network
computes.

library.py makes a TunedNetwork. hub/network_folder.py saves the numbers that train.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from vet.core.backbone import Description, FrozenNetwork, merged_error
from vet.core.caches import caches_recorded, clear_caches, forget_compiled_graphs
from vet.core.containers import ModuleDictOf, ModuleListOf
from vet.core.description import value_of
from vet.core.dry_run import dry_run
from vet.core.edits import FlowEdit
from vet.core.example import Example
from vet.core.forward_signature import class_with_signature
from vet.core.merge import Merged, merge_tuners, refuse_backward, refuse_training, unmerge_tuners
from vet.core.mixed import CannotMix, in_order, mixed, put, rows_by_name, take_off
from vet.core.modes import hold_statistics, release_statistics
from vet.core.preprocessing import Preprocessing
from vet.core.reweight import Reweight
from vet.core.site_map import Layout, SiteMap
from vet.core.table import table_of
from vet.core.tuner import Tuner
from vet.errors import UnknownNameError, UserError, error_text

FIRST = 'default'  # the name of the set that `vet.tune` makes, as in PEFT
MARK = '_is_tuned_by_vet'  # in the network's __dict__: True, or MERGED_HERE


class _MergedHere:
    """The mark of a network into which tuners are merged. Only there can `unmerge` take the tuners out again.

    A copy or a pickle of the network alone is a plain network: its mark is False.
    """

    def __reduce__(self) -> tuple[type[bool], tuple[()]]:
        return bool, ()


MERGED_HERE = _MergedHere()


class TunedNetwork(FrozenNetwork):
    """`tuned(*args, **kwargs)` gives `network(*args, **kwargs)`. The tuners edit the network in place.

    network: the user's network. Its class, its forward and the keys of its state_dict do not change.
    sets: named sets of tuners. The active set acts. Its last tuner is that of the parameters that train
        whole.
    whole: the names of the parameters that train whole: those of the classifier, and those that the user
        names.
    frozen: what the weights were before tuning, see hub/network_folder.py.
    takes: which inputs the network takes, in words, for the error about an example that does not fit.
    """

    def __init__(
        self, network: nn.Module, layout: Layout, example: Example, preprocessing: Preprocessing, takes: str
    ):
        super().__init__()
        self.training = network.training
        self.preprocessing = preprocessing
        self.sets: ModuleDictOf[ModuleListOf[Tuner]] = ModuleDictOf({FIRST: ModuleListOf()})
        self.active: str | None = FIRST
        self._names: list[str] | None = None
        self.whole: list[str] = []
        self.frozen: Description = {}
        self._example = example.of_images(1)
        self._merged: list[Merged] = []
        self._numbers = {
            f'{path}.{name}'.lstrip('.'): buffer.clone()
            for path, module in network.named_modules()
            for name, buffer in module.named_buffers(recurse=False)
        }
        self._flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        self.network = network
        kinds = {one.dtype for one in network.parameters() if one.is_floating_point()}
        self.delta_type = kinds.pop() if len(kinds) == 1 and kinds != {torch.float32} else None
        given = f'{example}, given as {example.told()}'
        example = self.example()
        try:
            with caches_recorded(network):
                calls = dry_run(network, *example.args, **example.kwargs)
        except UserError:
            raise
        except Exception as error:  # of the network, about its input
            raise UserError(
                f'{type(network).__name__} does not take {given} ({error_text(error)}). {takes}'
            ) from error
        if '' not in calls:
            raise UserError(f'{type(network).__name__} gives no tensor for {given}. {takes}')
        self.sites = SiteMap(network, layout, calls, family=type(network).__name__)
        network.requires_grad_(False)
        hold_statistics(network)
        network.__dict__[MARK] = True
        classes: tuple[Any, Any] = type(self), type(network)
        self.__class__ = class_with_signature(*classes)

    def forward(self, *args: object, **kwargs: object) -> Any:
        """The network's output. UserError while the network is merged and trains. UserError also if the
        network does not take the input, because the input has another form than the example.
        """
        refuse_training(self.tuners, self.training)
        if torch.compiler.is_compiling() and self._names is None:  # a graph holds no errors of vet
            return self.network(*args, **kwargs)
        given = Example(args, kwargs)
        try:
            output = self.network(*args, **kwargs) if self._names is None else self._mixed(self._names, given)
            refuse_backward(self, self.tuners, (args, kwargs), output)
            return output
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if differs := given.difference_to(self.example()):
                raise UserError(
                    f'{type(self.network).__name__} does not take this input: {differs} '
                    f'({error_text(error)}).'
                ) from error
            raise

    def __getattr__(self, name: str) -> Any:
        """The network's attribute, if this module has none of that name: `config`,
        `set_grad_checkpointing`, …
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'network' or name.startswith('__'):
                raise
        return getattr(super().__getattr__('network'), name)

    def __repr__(self) -> str:
        """A table of what trains, with the totals."""
        names = ', '.join(name if name == self.active else f'({name})' for name in self.sets)
        several = f', sets: {names}' if len(self.sets) > 1 else ''
        title = f'{type(self.network).__name__}, tuned{several}{", merged" * self.is_merged}'
        return table_of(self.network, self.tuners, title)

    def example(self) -> Example:
        """The input of the dry run, of one image, in the type and on the device of the network."""
        like = next(parameter for parameter in self.network.parameters() if parameter.is_floating_point())
        return self._example.to(like)

    @property
    def tuners(self) -> 'ModuleListOf[Tuner]':
        """The tuners of the active set, in order. Without an active set: none."""
        return self.sets[self.active] if self.active is not None else ModuleListOf()

    def use(self, name: str | None) -> None:
        """Makes the set `name` the active set. None: no set acts, and the network computes as before tuning.

        The numbers of the other sets stay. Graphs of torch.compile are forgotten.
        """
        if name is not None and not (isinstance(name, str) and name in self.sets):
            raise UnknownNameError('set of tuners', name, self.sets)
        if name == self.active:
            return
        if self.is_merged:
            raise merged_error('switched to another set')
        forget_compiled_graphs()
        for tuner in reversed(list(self.tuners)):
            tuner.rest()
        self.active = name
        try:
            for tuner in self.tuners:
                tuner.resume()
        except UserError:
            for tuner in reversed(list(self.tuners)):
                tuner.rest()
            self.active = None
            raise
        clear_caches(self.network.modules())
        self.renew_modes()

    def renew_modes(self) -> None:
        """Gives the active tuners the mode of this network, and reads again which norms train."""
        self.tuners.train(self.training)
        hold_statistics(self.network)

    @contextmanager
    def using(self, names: str | Sequence[str] | None) -> Iterator[None]:
        """Within, the set of that name acts; None: no set. A list has the name of a set for each image.

        A batch with a list of names is one forward, if the tuners of all sets act on each image by itself:
        low-rank updates, adapters, and the classifier. If not, the batch is one forward for each set. Such a
        batch is for inference.
        """
        active = self.active
        before = self._names
        try:
            if names is None or isinstance(names, str):
                self.use(names)
                self._names = None
            else:
                for name in dict.fromkeys(names):
                    if name not in self.sets:
                        raise UnknownNameError('set of tuners', name, self.sets)
                self._names = list(names)
            yield
        finally:
            self._names = before
            self.use(active)

    @torch.no_grad()
    def _mixed(self, names: list[str], example: Example) -> Any:
        """The outputs of a batch, each image by the set that is named for it.

        One forward, if the edits of all sets act on each image by itself. If not, one forward for each set.
        """
        if self.training:
            raise UserError(
                'a list of names is for inference; call eval() first, or train one set after another.'
            )
        if len(names) != example.images:
            raise UserError(f'{len(names)} names for {example.images} images; give one for each image.')
        if self.is_merged:
            raise merged_error('switched to another set')
        active = self.active
        rows = rows_by_name(names)
        self._names = None
        try:
            order = [image for images in rows.values() for image in images]
            return in_order(self._outputs(rows, example), torch.tensor(order).argsort())
        finally:
            self.use(active)
            self._names = names

    def _outputs(self, rows: dict[str, list[int]], example: Example) -> list[Any]:
        """The outputs for the images of each set: those of one forward, or of one forward for each set."""
        if len(rows) > 1:
            with suppress(CannotMix):
                return [self._in_one_forward(rows, example)]
        outputs = []
        for name, images in rows.items():
            self.use(name)
            outputs.append(example.of_rows(images).call(self.network))
        return outputs

    def _in_one_forward(self, rows: dict[str, list[int]], example: Example) -> Any:
        """CannotMix if an edit does not act on each image by itself."""
        self.use(None)
        placed: list[Reweight | FlowEdit] = []
        try:
            for name in rows:
                self.sets[name].eval()
                edits = [edit for tuner in self.sets[name] for edit in tuner._edits]
                placed += put(name, edits, self.network, self.sites)
            with mixed(rows) as (order, _):
                return example.of_rows(order).call(self.network)
        finally:
            take_off(placed)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by their names in files. An optimizer takes `trainable().values()`."""
        return {
            f'tuners.{i}.{name}': parameter
            for i, tuner in enumerate(self.tuners)
            for name, parameter in tuner.trainable()
        }

    def trained_state(self) -> dict[str, torch.Tensor]:
        """All numbers that training made, with buffers and thawed values, by their names in files."""
        return {
            f'tuners.{i}.{name}': value
            for i, tuner in enumerate(self.tuners)
            for name, value in tuner.state().items()
        }

    @property
    def is_attached(self) -> bool:
        """Whether `detach` was not called."""
        return MARK in self.network.__dict__

    def merge(self) -> nn.Module:
        """Writes all reweights into plain weights, which cost nothing at inference. Returns the network.

        A deep copy or a pickle of the returned network is a plain network, which can be tuned. UserError if a
        tuner edits the flow through the network, because no weight can hold that. Until `unmerge`, a
        UserError refuses training, saving and detaching. Call `unmerge` before an average of weights, such as
        torch's AveragedModel, reads the parameters. Otherwise the average, which is not merged, counts each
        update twice. vet cannot see that.
        """
        self._merged += merge_tuners(self, self.tuners)
        self._mark()
        return self.network

    def unmerge(self) -> nn.Module:
        """Undoes `merge`, bit for bit. Returns the network."""
        unmerge_tuners(self, self.tuners, self._merged)
        self._mark()
        return self.network

    def _mark(self) -> None:
        if self.is_attached:
            self.network.__dict__[MARK] = MERGED_HERE if self.is_merged else True

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, whose network has the mark of a plain network."""
        super().__setstate__(state)
        self._mark()

    def _whole_tensors(self) -> dict[str, torch.Tensor]:
        """The parameters that train whole, and the running statistics that train with them."""
        tensors = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        return {name: tensors[name] for name in self.whole if name in tensors}

    def changed_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers of the network's state_dict that its forward has changed since `vet.tune`, such as a
        counter. Buffers in the states of the tuners are left out.
        """
        of_tuners = {name.partition('.thawed.')[2] for name in self.trained_state()}
        changed = {}
        for name, value in self.network.state_dict().items():
            was = self._numbers.get(name)
            if was is None or name in of_tuners or was.shape != value.shape:
                continue
            if value_of(was.to(value)) != value_of(value):
                changed[name] = value
        return changed

    def detach(self, keep_whole: bool = False) -> nn.Module:
        """Takes all tuners off. Returns the network, bit for bit as it was before `vet.tune`.

        Its parameters require gradients as before.
        keep_whole: True keeps the trained classifier, and the other parameters that trained whole, as PEFT's
            `unload` does.
        UserError on a merged network.
        """
        if self.is_merged:
            raise merged_error('detached')
        kept = {name: tensor.data for name, tensor in self._whole_tensors().items() if keep_whole}
        for tuners in self.sets.values():
            for tuner in reversed(list(tuners)):
                tuner.detach()
        self.sets = ModuleDictOf({FIRST: ModuleListOf()})
        self.active = FIRST
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self._flags.get(name, True))
        release_statistics(self.network)
        clear_caches(self.network.modules())
        for name, buffer in self.network.named_buffers():
            was = self._numbers.get(name)
            if was is not None and was.shape == buffer.shape:
                buffer.data.copy_(was)
        for name, tensor in self._whole_tensors().items():
            if name in kept:
                tensor.data = kept[name]
        self.network.__dict__.pop(MARK, None)
        return self.network
