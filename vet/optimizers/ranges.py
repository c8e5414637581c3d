"""The ranges and meanings of the arguments of optimizers, where torch and timm do not say them."""

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
# for the optimizers whose docstrings leave out these arguments
MEANINGS = dict(
    beta2_cap='the largest share of the old second moment.',
    betas='the shares of the old value in the running means: of the gradient, and of its square.',
    betas_1d='the betas of vectors. None: those of matrices.',
    bias_correction='True corrects the running means for their start at zero.',
    capturable='True lets CUDA graphs capture a step.',
    caution='True leaves out entries of an update whose sign is not that of the gradient (arXiv:2411.16085).',
    clip_exp='step t limits the normalised gradient to (t - 1) ** clip_exp. None: no limit.',
    clipping_threshold='the largest root mean square of an update. None: no limit.',
    corrected_weight_decay='True multiplies the decay by lr / the largest lr (arXiv:2506.02285).',
    dampening='the share of the gradient that momentum leaves out.',
    decay_offset='the number of steps that the schedule of the second moment leaves out.',
    decay_rate='the power d of the share 1 - t ** -d of the old second moment, at step t.',
    decoupled='True decays the weights apart from the gradient, as AdamW does.',
    decoupled_decay='True decays the weights apart from the gradient, as AdamW does.',
    degenerated_to_sgd='True: steps whose variance is not known yet are steps of SGD. False: no such steps.',
    delta='a gradient is projected if its cosine with the weights is below delta / sqrt(size of the weight).',
    differentiable='True lets autograd differentiate through a step.',
    eps='a small number in the denominator, against a division by zero.',
    foreach='True updates all parameters in one call. None: the library chooses.',
    gamma='how strongly the difference of two gradients corrects a gradient.',
    lr='the learning rate.',
    lr_1d_factor='the factor of the learning rate of vectors.',
    mars_type="the update: 'adamw' or 'lion'.",
    maximize='True climbs instead of descending.',
    min_dim_size_to_factor='the second moment of a smaller matrix is not factored.',
    momentum='the share of the old direction that a step keeps.',
    momentum_dtype='the dtype of the momentum.',
    nesterov="True uses Nesterov's momentum.",
    optimize_1d='True also updates vectors by MARS. False: vectors take steps of AdamW.',
    unscaled_wd='True does not multiply the decay of the weights by the learning rate.',
    wd_ratio='the factor of the weight decay where a gradient is projected.',
    weight_decay='how much the weights shrink in each step.',
)
