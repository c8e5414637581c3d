"""Every setting: its type, range, choices, default and meaning, all at the field.

The sections are plain dataclasses. pydantic reads them (`read.py`): the hint says the type, and the range in
`Annotated`. The text below a field is its meaning; `vet config`, docs/config.md and the JSON Schema show that text.
"""

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Interval, MinLen
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from vet.allowed import Count, Dropout, PluginOf, Rate, Seed, Share, Text
from vet.patterns import checked

Epochs = Annotated[int, Interval(ge=1, le=100_000)]
Steps = Annotated[int, Interval(ge=1, le=10**8)]
Threads = Annotated[int, Interval(ge=1, le=4096)]
Between = Annotated[float, Interval(gt=0, lt=1)]
Mixing = Annotated[float, Interval(ge=0, le=1000)]
Pattern = Annotated[Text, AfterValidator(checked)]

Plugin = dict[str, Any]  # dict(type=NAME, …): what a registry builds
Dataset = Annotated[Plugin, PluginOf('dataset')]
Transform = Annotated[Plugin, PluginOf('transform')]
Optimizer = Annotated[Plugin, PluginOf('optimizer')]
# a text below the field would not reach the subclass
WORKERS = (
    'Processes that read and transform images, for each GPU or process. 0: the process that trains does it itself. '
    'Results do not depend on this number.'
)
LINEAR = dict(type='Linear')
ADAMW = dict(type='AdamW', lr=2e-3, weight_decay=1e-4)


def completed_by(default: Plugin) -> BeforeValidator:
    """A dict that names no type changes the default: optimizer=dict(lr=0.01) is AdamW with that learning rate."""

    def completed(given: Any) -> Any:
        return {**default, **given} if isinstance(given, dict) and 'type' not in given else given

    return BeforeValidator(completed)


def fields_of(section: Any) -> dict[str, Any]:
    """The name and the hint of each field; of what is no section, nothing."""
    return get_type_hints(section, include_extras=True) if is_dataclass(section) else {}


def entry_section(hint: Any) -> Any:
    """The section that each entry of a list is, such as Stage; else None."""
    entry = get_args(hint)[0] if get_origin(hint) is list else None
    return entry if is_dataclass(entry) else None


class Section:
    """How pydantic reads a section: no key that it does not have, no value of another type."""

    __pydantic_config__ = ConfigDict(strict=True, extra='forbid', use_attribute_docstrings=True)


@dataclass
class Model(Section):
    """The network: a frozen backbone, the tuners that act on it, and a head."""

    backbone: Annotated[Plugin, PluginOf('backbone')]
    """The pretrained network. Short forms are understood here: lora_length=10 stands for the entry
    dict(type='LoRA', rank=10) of model.tuners."""
    tuners: list[Annotated[Plugin, PluginOf('tuner')]] = field(
        default_factory=lambda: [dict(type='LinearProbe')]
    )
    """What changes the backbone. The tuners are attached in this order, and stack. An empty list trains the head
    alone, as LinearProbe does."""
    head: Annotated[Plugin, PluginOf('head'), completed_by(LINEAR)] = field(
        default_factory=lambda: dict(LINEAR)
    )
    """What turns the backbone's features into one number for each class. num_classes comes from the dataset if it
    is left out."""
    tasks: dict[str, Plugin] = field(default_factory=dict)
    """Only for a dataset of type MultiTask: {task: dict(backbone=…, head=…)} says where a task differs from
    model.backbone and model.head. A task that is not named here uses those."""
    shared: Pattern = '.*'
    """Only for several tasks: a regular expression. The parameters of the tuners whose whole name fits are the same
    numbers in all tasks. '.*' shares all of them."""
    finetune: bool = True
    """Only if a run starts from a model folder. True: the tuners and the head start anew. False: training goes on
    from the folder's tuners and head."""


@dataclass
class Data(Section):
    """The images. Each split is a dataset, dict(type=NAME, …)."""

    train: Dataset | None = None
    """The images to learn from. None: you give the dataset to build_trainer in Python; `vet test` needs none."""
    val: Dataset | None = None
    """The official validation split. None: evaluation.holdout takes images out of train, if an epoch must be chosen
    or training may stop early."""
    test: Dataset | None = None
    """The images to report on. They are read only before the first step and after the last. None: nothing is
    reported."""


@dataclass
class Dataloader(Section):
    """How images are read."""

    batch_size_per_gpu: Count = 64
    """Images in a batch, on each GPU or process. More images need more memory. With N processes and
    train.accumulate=A, one training step sees N x A batches."""
    workers_per_gpu: Annotated[int, Interval(ge=0, le=1024), Field(description=WORKERS)] = 2


@dataclass
class EvaluationDataloader(Dataloader):
    """How images are read for evaluation, where no gradient needs memory."""

    batch_size_per_gpu: Count = 128
    """Images in a batch, on each GPU or process. More images need more memory."""


@dataclass
class Schedule(Section):
    """How the learning rate goes over the epochs. It changes after every step."""

    type: Literal['CosineAnnealingLR', 'LinearLR', 'ConstantLR'] = 'CosineAnnealingLR'
    """How the learning rate falls after the warmup: along half a cosine, along a line, or not at all."""
    T_max: Epochs | None = None
    """Epochs, warmup included, after which the learning rate is at its lowest; it stays there. None: the length of
    the run, or of the stage."""
    warmup_epochs: Annotated[float, Interval(ge=0, le=100_000)] = 0.0
    """Epochs in which the learning rate rises from 0 along a line; fractions are allowed. 0: no warmup. At most the
    epochs of the run, and of each stage."""
    eta_min: Share = 0.0
    """The lowest learning rate, as a share of the highest. 0: it falls to zero. 1: it stays as it is."""


@dataclass
class Checkpoints(Section):
    """When a run saves what it needs to go on. A signal to stop always saves."""

    every_steps: Steps | None = None
    """Saves after so many steps, also within an epoch. None: only at the ends of epochs."""
    every_epochs: Epochs = 1
    """Saves at the end of so many epochs. The last epoch always saves. Choose more if an epoch takes little time."""
    keep: Count = 2
    """How many checkpoints stay on the disk. The oldest are deleted."""


@dataclass
class Stage(Section):
    """A part of the training with an optimizer and a schedule for itself: freeze first, then unfreeze."""

    epochs: Epochs
    """Epochs of this stage."""
    train: Pattern = '.*'
    r"""A regular expression. The parameters whose whole name fits train in this stage, such as r'head\..*'. '.*'
    trains all that the tuners and the head have."""
    optimizer: Annotated[Plugin, PluginOf('optimizer')] | None = None
    """The optimizer of this stage. A dict without a type changes train.optimizer. None: train.optimizer."""
    head_lr: Rate | None = None
    """The head's learning rate in this stage. None: train.head_lr."""


@dataclass
class Train(Section):
    """How the tuners and the head are trained."""

    max_epochs: Annotated[int, Interval(ge=0, le=100_000)] = 20
    """How many times training goes over the images of dataset.train. 0: nothing trains. With train.stages it is the
    sum of their epochs."""
    stages: list[Stage] = field(default_factory=list)
    """Parts of the training, one after the other. An empty list: one part, in which everything trains."""
    optimizer: Annotated[Optimizer, completed_by(ADAMW)] = field(default_factory=lambda: dict(ADAMW))
    """The optimizer, by the name of its class in torch.optim, and its arguments. A dict without a type changes the
    default. Biases, norms and scales get no weight decay."""
    lr_scheduler: Schedule = field(default_factory=Schedule)
    """How the learning rate goes over the epochs."""
    head_lr: Rate | None = None
    """The head's learning rate. None: the learning rate of train.optimizer, as the tuners."""
    dataloader: Dataloader = field(default_factory=Dataloader)
    """How the images to train on are read."""
    transform: list[Transform] = field(
        default_factory=lambda: [dict(type='RandomResizedCrop'), dict(type='RandomHorizontalFlip')]
    )
    """What is done to an image before training sees it, in this order. Sizes come from the backbone's preprocessing
    if they are left out. Images are normalised at the end, as the backbone wants it."""
    mixup: Mixing = 0.0
    """Mixes two images and their labels by MixUp; alpha of the Beta distribution that draws the shares. 0: off. 1:
    every share is as likely. Small values mix little. If train.cutmix is on too, each batch draws one of the two."""
    cutmix: Mixing = 0.0
    """Puts a rectangle of one image into another by CutMix, and mixes their labels; alpha of the Beta distribution
    that draws the area. 0: off."""
    label_smoothing: Dropout = 0.0
    """The share of the target that is spread evenly over all classes. 0: none. Near 1, the labels say almost
    nothing."""
    ema: Between | None = None
    """Evaluates and saves an average of what trains over the steps, not the last step; its decay per step. Near 1,
    the average reaches back over many steps: about 1 / (1 - ema). After step s (0, 1, …) the decay is at most
    (1 + s) / (10 + s), so that the average forgets the start. None: no average."""
    accumulate: Count = 1
    """Batches whose gradients are added up for one step of the optimizer. The step is that of a batch so many times
    as large, and needs no more memory."""
    clip_norm: Annotated[float, Interval(ge=1e-8, le=1e8)] | None = None
    """The largest norm that the gradient of a step may have; a larger gradient is made shorter. None: any."""
    precision: Literal['auto', 'fp32', 'bf16', 'fp8'] = 'auto'
    """The numbers in which the network computes. 'auto': bf16 on a GPU that has it, else fp32. 'fp8': bf16, and the
    products of frozen linear layers in float8."""
    compile: bool | Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] = (
        False
    )
    """Compiles the network with torch.compile: the first step takes long, and the others less. True is the mode
    'default'. 'reduce-overhead' and 'max-autotune' replay CUDA graphs, and need train.accumulate=1."""
    gradient_checkpointing: bool = False
    """Computes the blocks again in the backward pass: less memory, more time, the same result."""
    lean: bool = True
    """Skips work whose result is not used. Results differ only by rounding. If only the class token is pooled, the
    last block computes only that token. In bf16 on a CPU, the gradient of attention is computed from whole
    products."""
    cache_features: bool = False
    """Computes once for each image what reaches the first block that a tuner changes, and keeps it on the disk, in
    $VET_CACHE_DIR or ~/.cache/vet, for all epochs and runs. Needs a transform without randomness, and no tuner in
    the first block."""
    transform_on: Literal['pil', 'tensor', 'device'] = 'pil'
    """Where the part of train.transform that follows Resize and CenterCrop computes. 'pil': on PIL images. 'tensor':
    on uint8 tensors, which takes less time; resized pixels differ by rounding, and edges of rotated images by more.
    'device': on tensors, on the device that trains; a GPU then also holds the images of train.cache_images, if its
    memory has room."""
    cache_images: bool = False
    """Decodes each image once, and keeps it on the disk, in $VET_CACHE_DIR or ~/.cache/vet, for all epochs and runs.
    If the transform begins with a Resize, it keeps the small image. Results are equal."""
    deterministic: bool = False
    """Lets torch use only algorithms that give the same bits each time. They may take more time; an operation that
    has none raises an error."""
    threads: Threads | None = None
    """Threads of each process on a CPU. None: torch's choice, mostly all cores. 1 is best for a tiny network."""
    early_stop: Epochs | None = None
    """Stops after so many epochs without a better result on the validation images. None: never."""
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    """When the run saves what it needs to go on."""
    log_every: Steps = 10
    """Steps between two lines of the log. 1 writes every step."""


@dataclass
class Evaluation(Section):
    """How the model is judged."""

    metrics: Text | Annotated[list[Text], MinLen(1)] = 'accuracy'
    """One metric or several, by name; `vet list metrics` shows them. The first one chooses the best epoch."""
    dataloader: EvaluationDataloader = field(default_factory=EvaluationDataloader)
    """How the images to evaluate are read."""
    transform: Annotated[list[Transform], MinLen(1)] | None = None
    """What is done to an image before evaluation. None: resize and centre crop, as the backbone was evaluated."""
    select: Literal['last', 'best'] = 'last'
    """Which epoch is saved and reported: the last, or the best on the validation images."""
    holdout: Between = 0.1
    """The share of train that becomes the validation images, drawn in each class, if dataset.val is None and an
    epoch must be chosen or training may stop early. Near 0, the choice rests on few images; near 1, few are left to
    train on."""
    every: Epochs = 1
    """Epochs between two validations. The last epoch is always validated."""
    before: bool = True
    """Also reports the test result before the first step. False saves that time."""


@dataclass
class Settings(Section):
    """The sections of a config."""

    model: Model
    """The network."""
    dataset: Data
    """The images."""
    train: Train = field(default_factory=Train)
    """How the tuners and the head are trained."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How the model is judged."""
    seed: Seed = 0
    """Where all random numbers come from. The same seed on the same machine gives the same result; on a GPU
    only with train.deterministic."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to config.json."""
        return asdict(self)
