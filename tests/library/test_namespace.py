"""One namespace: vet's names are there, they are those of the registries, and none imports torch before
its use.
"""

import importlib.util

import pytest

import vet
from vet.errors import UserError
from vet.registry import REGISTRIES, TUNERS


def test_every_tuner_and_registry_is_a_name_of_vet():
    # another test of this process may have imported a tuner of an example
    found = {name: TUNERS.find(name) for name in TUNERS.names()}
    own = {name: tuner for name, tuner in found.items() if tuner.__module__.startswith('vet.')}
    assert len(own) > 30 and {name: getattr(vet, name) for name in own} == own
    plurals = {name: f'{name.upper()}S' for name in REGISTRIES} | dict(loss='LOSSES')
    assert {name: getattr(vet, plural) for name, plural in plurals.items()} == REGISTRIES
    assert all(callable(getattr(vet, f'register_{name}')) for name in REGISTRIES)
    assert all(hasattr(vet, name) for name in vet.__all__) and set(vet.__all__) <= set(dir(vet))


def test_names_are_listed_without_torch(python):
    done = python('-c', 'import sys, vet; print("LoRA" in dir(vet), vet.UserError, "torch" in sys.modules)')
    assert done.stdout == "True <class 'vet.errors.UserError'> False\n", done.stderr


def test_a_plugin_registers_by_a_decorator():
    @vet.register_tuner
    class Mine(vet.Tuner):
        def tune(self, site):
            self.thaw(site)

    @vet.register_head(name='my-head')
    def head(in_features, num_classes):
        return None

    assert vet.TUNERS.find('Mine') is Mine and vet.HEADS.find('my-head') is head
    with pytest.raises(UserError, match="the tuner 'LoRA' is registered already, by vet.tuners.lora"):
        vet.register_tuner(name='LoRA')(Mine)
    for registry, name in ((vet.TUNERS, 'Mine'), (vet.HEADS, 'my-head')):
        del registry.module_dict[name]


def test_no_public_name_is_hidden_by_a_module():
    """An import of vet.x makes x an attribute of vet, in place of a public name x."""
    specs = {name: importlib.util.find_spec(f'vet.{name}') for name in vet.__all__}
    assert not [name for name, spec in specs.items() if spec and spec.origin]
