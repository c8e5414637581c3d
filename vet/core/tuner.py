"""Tuner: the base class of every plugin that edits a frozen backbone, by thaw, reweight, before and after.

Tuner files import this file. Nothing else in a tuner file touches a network.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from vet.allowed import Places
from vet.config import Plugin
from vet.core.attention import Rows, find_parts
from vet.core.backbone import FrozenNetwork
from vet.core.caches import clear_caches, forget_compiled_graphs
from vet.core.coverage import Coverage, coverage, paths_of, reaches_features, shortfalls, stand_ins
from vet.core.delta import declared
from vet.core.edits import FlowEdit, Thaw, places_of, statistics
from vet.core.guarded import Guarded, merged_tuners
from vet.core.noted_arguments import NOTED, noted
from vet.core.proof import prove
from vet.core.reweight import Reweight
from vet.core.site import Site
from vet.core.site_map import NEAREST, SiteMap
from vet.errors import NoSiteError, UserError, error_text
from vet.registry import Entry

AGAIN = re.compile(r'#\d+')  # marks a further delta of one site, see Tuner._take_in


class Tuner(Guarded):
    """Edits a backbone at the sites that `at` names.

    A method writes `tune(site)`. A method may also write the hooks below.
    at: a role ('attn.qkv'), a sliced role ('block[-2:]'), a module path with wildcards, or a list of these.
        'mlp or block' is the first of these places that the network has.
    """

    identity_at_start = True  # before training, the tuned backbone computes exactly what the frozen does
    head_only = False  # the tuner edits nothing, on purpose; any other tuner without edits is an error
    # why some parameters may get no gradient; without this text, a parameter without a gradient is an error
    no_gradient: str | None = None
    # consistency(first, second) -> (B,): a term of the loss, from the outputs (B, …) of two passes with other
    # random draws. With it, each training batch passes twice; the loss itself is that of the first pass.
    consistency: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    # what a network must be so that it runs with the edits, in words; a refusal says it
    needs = 'a network that runs with its edits'
    may_miss: tuple[str, ...] = ()  # roles of `at` that a network may lack, if it has another of them
    # ('lora_length', 'rank', 'r'): the short form in model.backbone, the argument, and aliases of the
    # argument
    length_key: tuple[str, ...] | None = None
    # arguments beside the defaults that `vet tune` tries; (): vet tune does not try the tuner unless asked
    candidates: Sequence[Entry] = ()
    learning_rates = (2e-4, 2e-2)  # the lowest and the highest rate of AdamW that `vet tune` tries
    # {argument of another library: what vet has in its place}, for the error about an unknown argument
    elsewhere: Mapping[str, str] = {}
    is_resting = False  # whether `rest` has taken the edits out of the network

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if '__init__' in vars(cls):
            setattr(cls, '__init__', noted(vars(cls)['__init__']))  # noqa: B010, mypy refuses an assignment

    def __init__(self, at: Places):
        super().__init__()
        self.at = at
        self.deltas = nn.ModuleDict()
        self._edits: list[Thaw | Reweight | FlowEdit] = []
        self._finds_trained = False  # whether a parameter at the sites trains already, by another tuner
        self._tied: dict[int, list[tuple[nn.Module, str]]] = {}  # see places_of; of tied parameters

    # What a method writes -----------------------------------------------------------------------------------

    def tune(self, site: Site) -> None:
        """Edits one site, by calling thaw, reweight, before or after."""
        raise NotImplementedError(f'{type(self).__name__} must write tune(site)')

    def shared(self, sites: list[Site]) -> None:
        """Before the first `tune`: makes what several sites share."""

    def prepare(self, batches: Iterable) -> None:
        """Before step 0: sees training batches (images (B, 3, H, W), labels), for methods that start from
        data.
        """

    def on_step(self, progress: float) -> None:
        """After each optimizer step, while the gradients of the step are there.

        `progress` goes from 0 to 1.
        """

    def penalty(self) -> torch.Tensor | None:
        """A term that is added to the loss, or None."""
        return None

    # The four edits -----------------------------------------------------------------------------------------

    def thaw(self, site: Site, params: str = '.*') -> None:
        """Trains whole parameters of the site's module, if their path below the module matches `params`.

        A parameter that trains already is left alone.
        """
        for path, parameter in list(site.module.named_parameters()):
            if not re.fullmatch(params, path):
                continue
            if parameter.requires_grad:
                self._finds_trained = True
                continue
            owner_path, _, name = path.rpartition('.')
            owner = site.module.get_submodule(owner_path)
            key = ''.join(f'{place}.' for place in (site.name, owner_path) if place)
            self._edits.append(Thaw.of(owner, name, key + name, self._tied.get(id(parameter), ())))
            if name == 'weight':
                self._edits += [Thaw.of(owner, buffer, key + buffer) for buffer in statistics(owner)]

    def thaw_buffer(self, site: Site, path: str) -> None:
        """Keeps the changes of a buffer of the site's module, which the network's forward makes."""
        owner_path, _, name = path.rpartition('.')
        key = f'{site.name}.{path}'.lstrip('.')
        self._edits.append(Thaw.of(site.module.get_submodule(owner_path), name, key))

    def reweight(self, site: Site, delta: nn.Module) -> None:
        """The module's weight and bias become `delta(weight, bias)`, a pair of the same shapes."""
        placed = self._take_in(site, delta, like=site.weight)
        edit = Reweight(site.host, site.weight_name, site.bias_name, placed)
        edit.apply()
        self._edits.append(edit)

    def before(self, site: Site, delta: nn.Module, argument: str = '') -> None:
        """The module's input x becomes `delta(x)`. argument: the name of x, if x is not the first input."""
        module = self._called(site)
        if not site.call.reads:
            raise refuse(self, site, 'a module that computes with the first tensor it takes')
        self._edits.append(
            FlowEdit.before(module, self._take_in(site, delta), argument or site.call.argument)
        )

    def after(self, site: Site, delta: nn.Module, of: Site | None = None) -> None:
        """The module's output y becomes `delta(x, y)`.

        If the module gives several tensors, y is the one tensor that other modules read.
        of: the site that names the delta in the state, if another than `site`.
        """
        module = self._called(site)
        if site.call.gives:
            raise refuse(
                self, site, f'a module that gives one tensor to the others (this one gives {site.call.gives})'
            )
        placed = self._take_in(of or site, delta)
        self._edits.append(FlowEdit.after(module, placed, site.call.place, site.call.argument))

    def result(self, site: Site, module: nn.Module, method: str, delta: nn.Module) -> None:
        """The result r of `module.method()` becomes `delta(r)`. An example is a bias of positions. The module
        lies below the site. method: 'forward', or a method without arguments.
        """
        self._edits.append(FlowEdit.result(module, self._take_in(site, delta), method))

    def share(self, module: nn.Module, device: torch.device | None = None) -> None:
        """Owns a module that several deltas use, so that the module is saved once.

        A delta keeps the module with `object.__setattr__`, so that the delta does not own it too.
        """
        self.deltas['shared'] = module.to(device, self.backbone.delta_type if self.backbone else None)

    def rows_of_parts(self, site: Site) -> dict[str, Rows]:
        """The rows of the site's weight that make the queries 'q', the keys 'k' and the values 'v'.

        {} if nothing shows the rows.
        """
        assert self.backbone is not None
        known = self.backbone.sites.parts
        if site.name not in known:
            alike = [name for name in site.found if name.rpartition('.')[2] == site.name.rpartition('.')[2]]
            sites = self.backbone.sites.find(alike)
            known |= dict.fromkeys(alike, {}) | find_parts(
                self.backbone.network, sites, self.backbone.sites, self.backbone.example()
            )
        return known[site.name]

    def entry(self) -> Plugin:
        """The entry of model.tuners that makes this tuner: its type, and the arguments that were given."""
        return dict(type=type(self).__name__, **vars(self)[NOTED])

    # What holds for every tuner -----------------------------------------------------------------------------

    @property
    def mergeable(self) -> bool:
        """Whether all edits are thaws and reweights, so that they can be written into plain weights."""
        return all(edit.mergeable for edit in self._edits)

    def attach(self, backbone: FrozenNetwork) -> None:
        """Edits `backbone`, and proves by a forward and a backward that the tuned network runs.

        If a site refuses, or the network does not run, all edits are undone. The NoSiteError names a place
        that works, if there is one. UserError on a merged backbone, and if the tuner is attached already.
        """
        if self.backbone is not None:
            kind = type(self).__name__
            raise UserError(
                f'this {kind} is attached to a network already. Make a separate tuner for each network and '
                f'each place: {kind}(…), {kind}(…).'
            )
        try:
            self._attach(backbone)
        except NoSiteError as error:
            if place := self._place_that_works(backbone):
                raise NoSiteError(f'{error} Of this network, at={place!r} works.') from error
            raise

    def _attach(self, backbone: FrozenNetwork) -> None:
        if backbone.is_merged:
            raise merged_tuners(backbone.sites.family, 'attached')
        forget_compiled_graphs()
        object.__setattr__(self, 'backbone', backbone)
        of_parameters = places_of(backbone.network).items()
        self._tied = {number: places for number, places in of_parameters if len(places) > 1}
        try:
            sites = backbone.sites.find(self.at, self.may_miss)
            self.shared(sites)
            for site in sites:
                self.tune(site)
            if not (self._edits or self._finds_trained or self.head_only):
                raise NoSiteError(
                    f'{type(self).__name__} has nothing to train at the {len(sites)} sites of {self.at!r} in '
                    f'{backbone.sites.family}, the first being {sites[0]}; choose other sites with at=….'
                )
            self._tied = {}
            clear_caches(backbone.network.modules())
            if not all(isinstance(edit, Thaw) for edit in self._edits):  # which changes no shape
                self._prove(backbone)
        except BaseException:
            self.detach()
            raise

    def _place_that_works(self, backbone: FrozenNetwork) -> str:
        """The nearest place to `at` that takes this tuner, or '', if none does."""
        if 'at' not in inspect.signature(type(self)).parameters:
            return ''
        given = backbone.sites.places(self.at, self.may_miss)
        at = self.at
        near = [place for role in given for place in NEAREST.get(role, ())]
        try:
            for place in dict.fromkeys((*given, *near)):
                self.at = place
                if place != at and self._takes(backbone):
                    return place
        finally:
            self.at = at
        return ''

    def _takes(self, backbone: FrozenNetwork) -> bool:
        try:
            self._attach(backbone)
        except UserError:
            return False
        self.detach()
        return True

    def detach(self) -> None:
        """Undoes every edit: the network is bit for bit the network before `attach`.

        UserError while the tuner is merged.
        """
        self.refuse_merged('detached')
        forget_compiled_graphs()
        while self._edits:
            self._edits.pop().undo()
        self.is_resting = False
        self.deltas.clear()
        if self.backbone is not None:
            clear_caches(self.backbone.network.modules())
        object.__setattr__(self, 'backbone', None)

    def rest(self) -> None:
        """Takes the edits out of the network, and keeps their numbers for `resume`.

        Does nothing while the tuner rests. UserError while the tuner is merged.
        """
        self.refuse_merged('taken out')
        if not self.is_resting:
            for edit in reversed(self._edits):
                edit.rest()
        self.is_resting = True

    def resume(self) -> None:
        """Makes the edits again, if the tuner rests. UserError if that would undo a merge."""
        if self.is_resting:
            for thaw in self._thaws():
                thaw.refuse_merged()
            for edit in self._edits:
                edit.resume()
        self.is_resting = False

    def _prove(self, backbone: FrozenNetwork) -> None:
        try:
            flows = any(isinstance(edit, FlowEdit) for edit in self._edits)
            prove(backbone, [parameter for _, parameter in self.trainable()] if flows else [])
        except UserError:
            raise
        except Exception as error:  # of the network or of a delta, about what the edits made of its input
            raise NoSiteError(
                f'{type(self).__name__} at {self.at!r} cannot act on {backbone.sites.family}: the tuner '
                f'needs {self.needs}, but the network does not run on {backbone.example()} '
                f'({error_text(error)}). Choose other sites with at=…, or another tuner.'
            ) from error

    def coverage(self) -> Coverage:
        """How much of the network the edits of this attached tuner reach."""
        sites = self._sites()
        return coverage(sites, paths_of(self._edits, sites.network))

    def reaches_features(self) -> bool:
        """Whether an edit of this attached tuner lies outside of the kept classifier."""
        return reaches_features(self._sites(), paths_of(self._edits, self._sites().network))

    def shortfalls(self) -> list[str]:
        """Sentences about places that this attached tuner misses, although `at` seems to name them all."""
        return list(shortfalls(self._sites(), self.at, thaws=any(self._thaws())))

    def stand_ins(self) -> list[str]:
        """The places at which this tuner, which is attached, acts because the network lacks the first."""
        return list(stand_ins(self._sites(), self.at))

    def _sites(self) -> SiteMap:
        if self.backbone is None:
            raise UserError(
                f'{type(self).__name__} is not attached to a backbone; call attach(backbone) first.'
            )
        return self.backbone.sites

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The names and parameters that train, with the parameters that are thawed in the network."""
        for name, parameter in self.deltas.named_parameters():
            if parameter.requires_grad:
                yield f'deltas.{name.replace("/", ".")}', parameter
        for edit in self._thaws():
            if isinstance(edit.value, nn.Parameter):
                yield f'thawed.{edit.key}', edit.value

    def depths(self) -> dict[str, int]:
        """{name in `trainable`: the number of the block in which the parameter lies}, see SiteMap.depth."""
        sites = self._sites()
        paths = {name: AGAIN.sub('', name.partition('.')[2]) for name, _ in self.trainable()}
        return {name: sites.depth(path) for name, path in paths.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that training made: the deltas' parameters and buffers, and the thawed values."""
        deltas = {
            f'deltas.{name.replace("/", ".")}': value for name, value in self.deltas.state_dict().items()
        }
        return deltas | {f'thawed.{edit.key}': edit.value.detach() for edit in self._thaws()}

    def training_state(self) -> dict[str, torch.Tensor]:
        """The state, beside `state`, that only further training needs.

        Checkpoints hold it, model folders do not.
        """
        return {}

    def bound_to_weights(self) -> set[str]:
        """The names in `state` of parameters that mean something only beside this backbone.

        Tasks never share them.
        """
        names = set()
        for key, delta in self.deltas.items():
            names |= {f'deltas.{key.replace("/", ".")}.{name}' for name in declared(delta).bound_to_weight}
        return names

    def _thaws(self) -> Iterator[Thaw]:
        return (edit for edit in self._edits if isinstance(edit, Thaw))

    def _take_in(self, site: Site, delta: nn.Module, like: torch.Tensor | None = None) -> nn.Module:
        name = site.name.replace('.', '/') or 'backbone'
        taken = sum(key.partition('#')[0] == name for key in self.deltas)
        self.deltas[f'{name}#{taken}' if taken else name] = delta
        return delta.to(
            dtype=self.backbone.delta_type if self.backbone else None,
            device=(like if like is not None else next((self.backbone or site.module).parameters())).device,
        )

    def _called(self, site: Site) -> nn.Module:
        if not site.called and site.name:
            raise NoSiteError(
                f'{type(self).__name__} edits what flows through a module, but {site} is never called: its '
                f'{site.weight_name!r} is read by {type(site.host).__name__}. Choose the module around it.'
            )
        if site.call.takes:
            raise refuse(self, site, f'a module that takes a tensor first (this one takes {site.call.takes})')
        return site.module


def refuse(tuner: Tuner, site: Site, needs: str) -> UserError:
    """The error of a tuner that cannot act on a site: what the tuner needs, and what the site is."""
    return NoSiteError(
        f'{type(tuner).__name__} needs {needs}, but {site} is none; choose other sites with at=….'
    )
