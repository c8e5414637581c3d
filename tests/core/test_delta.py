"""The contract of deltas is declared in vet/core/delta.py, and nobody asks a delta in another way."""

import ast
from pathlib import Path

import torch
from torch import nn

from vet.core.delta import Delta, declared
from vet.core.deltas import LowRank
from vet.core.low_rank import DoRA, PiSSA

ROOT = Path(__file__).parents[2]
DECLARED = {name for name in vars(Delta) if not name.startswith('_')} - {'forward'}


def probes(source: str) -> list[str]:
    """The calls of hasattr, getattr and vars that ask a delta, or ask for a name of the contract."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ('hasattr', 'getattr', 'vars'):
            continue
        asked, *names = node.args
        is_declared = any(isinstance(name, ast.Constant) and name.value in DECLARED for name in names)
        if is_declared or 'delta' in ast.unparse(asked):
            found.append(ast.unparse(node))
    return found


def test_nobody_probes_a_delta():
    found = {str(path): probes(path.read_text()) for path in (ROOT / 'vet').rglob('*.py')}
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_a_probe_would_be_seen():
    assert probes(
        "getattr(edit.delta, 'x', 0)\nhasattr(thing, 'splits')\nvars(type(delta))\ngetattr(network, 'name')"
    ) == ["getattr(edit.delta, 'x', 0)", "hasattr(thing, 'splits')", 'vars(type(delta))']


def test_a_plain_module_has_the_defaults():
    plain = declared(nn.Linear(2, 2))
    assert (plain.dropout, plain.reads_weight, plain.linear_in, plain.bound_to_weight, plain.by_token) == (
        0.0,
        True,
        (),
        (),
        False,
    )
    assert not plain.splits(nn.Linear(2, 2)) and not plain.adds_product()


def test_a_delta_declares_itself():
    delta = LowRank(torch.Size((4, 3)), rank=2)
    assert declared(delta) is delta and delta.splits(nn.Linear(3, 4)) and delta.adds_product()


def test_linearity_is_not_inherited():
    class Squared(LowRank):
        def factors(self):
            A, B = super().factors()
            return A, B**2

    assert (
        LowRank.linear_in == ('B',)
        and PiSSA.linear_in == ('B', 'B0')
        and DoRA.linear_in == ()
        and Squared.linear_in == ()
    )
