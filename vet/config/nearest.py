"""Finds the settings that a user may have meant by an unknown name."""

import difflib
from collections.abc import Iterator

from vet.config.sections import Model, Settings, Train, fields_of
from vet.config.short_forms import short_forms
from vet.registry import BACKBONES

# other projects' names
ELSEWHERE = dict(
    learning_rate='lr', num_workers='workers_per_gpu', wd='weight_decay', num_epochs='max_epochs'
)
# of torch.optim.AdamW and SGD, written here because torch imports slowly
OF_OPTIMIZERS = (
    'lr',
    'betas',
    'eps',
    'weight_decay',
    'amsgrad',
    'maximize',
    'foreach',
    'capturable',
    'differentiable',
    'fused',
    'momentum',
)


def nearest_settings(name: str) -> list[str]:
    """The full paths of the settings that a wrong path may mean.

    First come the settings whose path ends with `name`, then the settings whose last part is similar.
    """
    paths = list(dict.fromkeys(_paths(Settings)))
    ends = [path for path in paths if path.endswith(f'.{name}')]
    last = name.rpartition('.')[2].lower()
    last = ELSEWHERE.get(last, last)
    words = [path for path in paths if f'_{last}_' in f'_{path.rpartition(".")[2].lower()}_']
    by_last_word = {path.rpartition('.')[2].lower(): path for path in reversed(paths)}
    alike = [by_last_word[key] for key in difflib.get_close_matches(last, by_last_word, n=2, cutoff=0.75)]
    return (ends or words or alike)[:3]


def _paths(section: type, above: str = '') -> Iterator[str]:
    """The dotted path of each setting, and of the plugins' arguments that most configs give."""
    for name, hint in fields_of(section).items():
        yield f'{above}{name}'
        if fields_of(hint):
            yield from _paths(hint, f'{above}{name}.')
    if section is Model:
        backbone = BACKBONES.index.plugins['timm'].arguments or ()
        yield from (f'{above}backbone.{name}' for name in ('type', *backbone, *short_forms()))
        yield from (f'{above}head.{name}' for name in ('type', 'num_classes', 'dropout'))
    if section is Train:
        yield from (f'{above}optimizer.{name}' for name in ('type', *OF_OPTIMIZERS))
