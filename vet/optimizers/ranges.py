"""The ranges of the arguments of optimizers. The signatures of torch and timm say no ranges."""

from typing import Annotated

from annotated_types import Interval

from vet.allowed import Count, Dropout, Rate, Share

Between = Annotated[float, Interval(gt=0, lt=1)]
Numbers = Annotated[float, Interval(ge=0, le=1e6)]
RANGES = dict(
    alpha=Share,
    amsgrad=bool,
    betas=tuple[Dropout, Dropout],
    centered=bool,
    dampening=Share,
    decoupled_weight_decay=bool,
    eps=Annotated[float, Interval(ge=0, le=0.1)] | tuple[Share | None, Share],
    etas=tuple[Between, Annotated[float, Interval(gt=1, le=1000)]],
    initial_accumulator_value=Numbers,
    lambd=Share,
    lr=Rate,
    lr_decay=Share,
    momentum=Dropout,
    momentum_decay=Share,
    nesterov=bool,
    ns_steps=Count,
    rho=Share,
    step_sizes=tuple[Numbers, Numbers],
    t0=Numbers,
    weight_decay=Share,
)
