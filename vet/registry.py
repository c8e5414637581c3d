"""The registries of all kinds of plugins, on mmengine's Registry.

A registry knows the files of its folder by their text (`plugin_index`), and imports a file when one of its
plugins is asked for. So a new plugin needs only a new file in that folder, and a wrong name is refused before
torch is imported. A plugin in the user's code needs an import, for example by `custom_imports` in a config.
"""

import errno
import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from vet.allowed import choices, fits, must_be
from vet.errors import UnknownNameError, UserError, shown
from vet.mmengine_parts import Registry as _Registry
from vet.plugin_index import Index, Listed, read_index

TASK = 'vision-efficient-tuning'  # the name of this task in ModelScope's registries
Entry = Mapping[str, Any]  # of a config: dict(type=NAME, …), from which a registry builds a plugin


def _build(cfg: object, *args: object, registry: 'Registry', **offered: object) -> object:
    """Calls the plugin `cfg['type']` with the rest of `cfg`. The names and values of the arguments are
    checked first.

    offered: further arguments. A plugin gets an offered argument if its signature has the argument, and if
        `cfg` does not give the argument.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise UserError(
            f'a {registry.name} is given as a dict with a "type", such as dict(type=…); given: {shown(cfg)}.'
        )
    if wrong := [key for key in cfg if not isinstance(key, str)]:
        raise UserError(
            f'{registry.name} {cfg["type"]!r} has the option {wrong[0]!r}; the names of options are texts.'
        )
    given = dict(cfg)
    plugin = registry.find(given.pop('type'))
    accepted = parameters_of(plugin)
    called = f'{registry.name} {cfg["type"]!r}'
    require_arguments(given, accepted, registry.hints(plugin), called, f'option of {called}')
    missing = [
        name
        for name, p in list(accepted.items())[len(args) :]
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in given
        and name not in offered
    ]
    if missing:
        raise UserError(f'{called} needs {", ".join(map(repr, missing))}; given: {shown(given)}.')
    takes_any = _takes_any(accepted)
    offered = {name: value for name, value in offered.items() if takes_any or name in accepted}
    try:
        return plugin(*args, **{**offered, **given})
    except UserError:
        raise
    except (TypeError, ValueError) as error:  # the plugin did not expect an argument's value
        raise UserError(
            f'the {registry.name} {cfg["type"]!r} cannot be made from {shown(given)}: {error}'
        ) from error
    except OSError as error:  # no file system takes the path, or the user may not read the file
        if error.errno not in (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.ENOTDIR):
            raise
        raise UserError(
            f'the {registry.name} {cfg["type"]!r} cannot be made from {shown(given)}: {error}'
        ) from error


def require_arguments(
    given: Mapping[str, object],
    accepted: Mapping[str, inspect.Parameter],
    hints: Mapping[str, object],
    plugin: str,
    argument: str,
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """UnknownNameError for an argument that is not accepted, UserError for a value that does not fit its
    hint.

    plugin: the plugin that gets the arguments, in words. argument: a word for each argument.
    elsewhere: {argument of another library: what vet has in its place}.
    """
    for key in given:
        if key not in accepted and not _takes_any(accepted):
            raise UnknownNameError(argument, key, accepted, (elsewhere or {}).get(key, ''))
    for key, value in given.items():
        if key in hints and not fits(value, hints[key]):
            if isinstance(value, str) and (names := choices(hints[key])):
                raise UnknownNameError(f'{key} of {plugin}', value, names)
            raise UserError(f'{key} is {shown(value)}; it must be {must_be(value, hints[key])} ({plugin}).')


def _takes_any(accepted: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())


def package_of(plugin: object) -> str:
    """The package of a class or function. '': it has no module, as the classes of a text that `exec` ran."""
    return (getattr(plugin, '__module__', None) or '').partition('.')[0]


def parameters_of(plugin: Any) -> dict[str, inspect.Parameter]:
    """{argument: its parameter}, of the arguments that a config can give by name.

    The `*args` and `**kwargs` of torch's Module take nothing. torch.compile replaces this `__init__`, so the
    class that has the `__init__` is looked at.
    """
    if inspect.isclass(plugin):
        owner = next(each for each in plugin.__mro__ if '__init__' in vars(each))
        if owner.__module__ == 'torch.nn.modules.module':
            return {}
    parameters = inspect.signature(plugin).parameters.values()
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind is not parameter.VAR_POSITIONAL
    }


def hints_of(called: object) -> Mapping[str, Any]:
    """{argument: hint, with its range} of a function. {} for names that only a type checker knows."""
    try:
        return typing.get_type_hints(called, include_extras=True)
    except (NameError, TypeError):
        return {}


class Registry(_Registry):
    """mmengine's Registry. `build` also checks arguments, and `find` explains an unknown name."""

    _imported: bool

    def __init__(self, name: str, home: str, **given: str):
        """given: {argument: the value that vet gives if a config does not, in words}."""
        super().__init__(name, build_func=_build, scope='vet')
        self._home = home
        self.given = given
        # {argument: hint with a range} for plugins of other libraries
        self.arguments: dict[str, Any] = {}
        # {argument: its meaning}, for docstrings that do not say the meaning
        self.meanings: dict[str, str] = {}

    def hints(self, plugin: object) -> Mapping[str, Any]:
        """{argument of the plugin: hint}, from the signature and `arguments`."""
        hints = hints_of(plugin.__init__ if inspect.isclass(plugin) else plugin)
        return hints if package_of(plugin) == 'vet' else {**hints, **self.arguments}

    @property
    def index(self) -> Index:
        """The plugins that the files of the registry's folder register."""
        return read_index(self._home)

    def import_from_location(self) -> None:
        """Imports every file that registers plugins, once."""
        if not self._imported:
            self._imported = True
            for module in sorted({plugin.module for plugin in self.index.plugins.values()}):
                importlib.import_module(module)
            self._import_computed()

    def _import_computed(self) -> None:
        for module in self.index.computed:
            importlib.import_module(module)

    def names(self) -> list[str]:
        """The names of all plugins, sorted: those of the folder, and those of imported code."""
        self._import_computed()
        return sorted({*self.index.plugins, *self.module_dict})

    def listed(self, name: str) -> Listed | None:
        """A plugin of the folder, as its file describes the plugin. None for a plugin of other code."""
        return None if name in self.module_dict else self.index.plugins.get(name)

    def require(self, name: object) -> None:
        """UnknownNameError, with the nearest names, if no plugin is called `name`.

        If `name` is a callable, it is a plugin itself.
        """
        if (
            callable(name)
            or isinstance(name, str)
            and (name in self.index.plugins or name in self.module_dict)
        ):
            return
        names = self.names()
        if not isinstance(name, str) or name not in names:
            raise UnknownNameError(
                self.name,
                name,
                names,
                'Your plugin registers when its module is imported: by custom_imports in a config, by '
                '--import MODULE of a command, or by import in Python.',
            )

    def find(self, name: object) -> Any:
        """The plugin called `name`, see `require`. If `name` is a callable, the callable is returned."""
        self.require(name)
        if not isinstance(name, str):
            return name
        if name not in self.module_dict:
            importlib.import_module(self.index.plugins[name].module)
        return self.module_dict[name]

    def called(self, made: object) -> str:
        """The name of the plugin that `made` is an object of. If the class has no name here, its own name."""
        names = (name for name, plugin in self.module_dict.items() if plugin is type(made))
        return next(names, type(made).__name__)


BACKBONES = Registry('backbone', 'vet.backbones')
TUNERS = Registry('tuner', 'vet.tuners')
HEADS = Registry(
    'head',
    'vet.heads',
    in_features="the number of the backbone's features",
    channels="the numbers of features of the backbone's maps, for a head that answers for each pixel",
    num_classes='the number of classes of the dataset',
    names='the names of the classes',
)
OBJECTIVES = Registry('objective', 'vet.objectives', names='the `classes` of the dataset')
LOSSES = Registry(
    'loss',
    'vet.losses',
    label_smoothing='the value of train.label_smoothing',
    kind='the kind of target of the objective',
    counts='a function that counts the training images of each class, and all of them',
)
DATASETS = Registry(
    'dataset', 'vet.datasets', root='the folder of --data-root, else of $VET_DATA_ROOT, else ./data'
)
TRANSFORMS = Registry(
    'transform',
    'vet.transforms',
    size="of the backbone's preprocessing",
    crop_pct="of the backbone's preprocessing",
    interpolation="of the backbone's preprocessing",
)
METRICS = Registry(
    'metric',
    'vet.metrics',
    scores='the scores of the model: (images, outputs)',
    labels='the targets: (images,), or (images, outputs)',
    objective='the objective of the model',
)
SAMPLERS = Registry(
    'sampler',
    'vet.samplers',
    images='the number of training images',
    targets='a function that returns the targets of all training images',
    names='the names of the classes',
    kind='the kind of target of the objective',
)
HOOKS = Registry('hook', 'vet.hooks')
OPTIMIZERS = Registry('optimizer', 'vet.optimizers', params='the parameters that train')

REGISTRIES = {
    registry.name: registry
    for registry in (
        BACKBONES,
        TUNERS,
        HEADS,
        OBJECTIVES,
        LOSSES,
        DATASETS,
        TRANSFORMS,
        METRICS,
        SAMPLERS,
        HOOKS,
        OPTIMIZERS,
    )
}
