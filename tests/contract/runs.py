"""One short training of a case on a family, kept for all tests that only look at it."""

import functools
from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tests.contract.cases import CASES, Case
from tests.nets import DEFAULT_FAMILIES, FAMILIES, Mould, images, tiny
from vet.core.backbone import Backbone
from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.heads.linear import LinearHead

LABELS = torch.arange(6) % 3
STEPS = 3


@dataclass
class Run:
    """`model` after STEPS optimizer steps that trained the tuner under a random, fixed head."""

    model: ImageClassifier
    frozen: dict[str, torch.Tensor]  # the backbone's state before the tuner was attached
    frozen_features: torch.Tensor
    first_features: torch.Tensor  # with the tuner, before training
    losses: list[float]
    first_gradients: dict[str, torch.Tensor]
    last_gradients: dict[str, torch.Tensor]


@dataclass
class Refusal:
    """A tuner that said why it cannot act on the family."""

    error: UserError
    backbone: Backbone
    frozen: dict[str, torch.Tensor]


def pairs(*cases: Case) -> list[tuple[Case, str]]:
    """Every case on every family, or those of `cases`."""
    return [(case, family) for case in (cases or CASES) for family in FAMILIES]


def widest() -> dict[str, Case]:
    """Of each tuner's cases, the first of those that work on the most families."""
    by_tuner: dict[str, Case] = {}
    for case in CASES:
        best = by_tuner.setdefault(case.name, case)
        if len(case.on or FAMILIES) > len(best.on or FAMILIES):
            by_tuner[case.name] = case
    return by_tuner


def in_autocast(model: ImageClassifier) -> tuple[float, dict[str, torch.Tensor]]:
    """`gradients` of a batch in bf16 on a CPU."""
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        return gradients(model, images(6), LABELS)


def distance(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Of two gradients of all parameters, Euclidean."""
    return sum((found[name] - exact[name]).square().sum() for name in exact).sqrt().item()


@functools.cache
def default_pairs() -> set[tuple[Case, str]]:
    """The pairs of the default suite: every case on the ViT, and each tuner's widest case on two families on
    which it works, the ViT if possible. The tuners take turns with the other families. The widest cases are
    also tried on the default families where they must refuse.
    """
    turns = deque(family for family in FAMILIES if family != 'vit')
    chosen = {(case, 'vit') for case in CASES}
    for case in widest().values():
        works = [family for family in FAMILIES if case.on is None or family in case.on]
        for family in [family for family in turns if family in works][: 1 if 'vit' in works else 2]:
            chosen.add((case, family))
            turns.remove(family)
            turns.append(family)
        chosen |= {(case, family) for family in DEFAULT_FAMILIES if family not in works}
    return chosen


def is_default(case: Case, family: str) -> bool:
    """Whether the default suite runs it."""
    return (case, family) in default_pairs()


def classifier(case: Case, family: str) -> ImageClassifier:
    """The tuned model before training, in eval: the same at every call, in every process. UserError
    where it refuses.
    """
    backbone = tiny(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return with_head(backbone, [case.make(backbone)])


def with_head(backbone: Backbone, tuners: list) -> ImageClassifier:
    head = LinearHead(backbone.num_features, 3)
    return ImageClassifier(backbone, tuners, head, ['a', 'b', 'c']).eval()


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """The names at which two states are not bit for bit the same."""
    return [
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    ]


def leftovers(module: nn.Module) -> list[str]:
    """Modules that still bear marks of an edit: hooks, an instance's forward, reweights, parameters
    that train.
    """
    return [
        name
        for name, part in module.named_modules()
        if part._forward_hooks
        or part._forward_pre_hooks
        or 'forward' in part.__dict__
        or '_reweighted' in part.__dict__
        or any(p.requires_grad for p in part.parameters(recurse=False))
    ]


def gradients(
    model: ImageClassifier, x: torch.Tensor, labels: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradient by name of everything that trains."""
    names, parameters = zip(*model.trainable().items())
    loss = F.cross_entropy(model(x), labels)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.item(), {name: torch.zeros(()) if g is None else g for name, g in zip(names, found)}


@functools.cache
def run(case: Case, family: str) -> Run | Refusal:
    """Trains, or tells of the refusal. Look at the answer, change only copies of it."""
    pristine = tiny(family).eval()
    x = images(6)
    try:
        model = classifier(case, family)
    except UserError as error:
        backbone = tiny(family)
        try:
            case.make(backbone).attach(backbone)
        except UserError:
            pass
        return Refusal(error, backbone, snapshot(pristine.network))
    with torch.no_grad():
        frozen_features, first_features = pristine(x), model.backbone(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        nn.init.normal_(model.head.fc.weight, std=0.5)
        model.head.requires_grad_(not any(True for tuner in model.tuners for _ in tuner.trainable()))
        optimizer = torch.optim.Adam(model.trainable().values(), lr=1e-3)
        model.train()
        losses, all_gradients = [], []
        for _ in range(STEPS):
            loss, found = gradients(model, x, LABELS)
            losses.append(loss)
            all_gradients.append(found)
            for name, parameter in model.trainable().items():
                parameter.grad = found[name].expand_as(parameter).clone()
            optimizer.step()
        losses.append(gradients(model, x, LABELS)[0])
    return Run(
        model.eval(),
        snapshot(pristine.network),
        frozen_features,
        first_features,
        losses,
        all_gradients[0],
        all_gradients[-1],
    )


def trained(case: Case, family: str) -> ImageClassifier:
    """A copy of the trained model, to do with as one likes."""
    return _mould(case, family).copy()


@functools.cache
def _mould(case: Case, family: str) -> Mould:
    return Mould(run(case, family).model)


def logits(model: nn.Module, x: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(images(6) if x is None else x)
