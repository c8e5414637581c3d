"""Every setting: its type, range, choices, default and meaning, all at the field.

The sections are plain dataclasses. pydantic checks them (`read.py`). The hint gives the type, and `Annotated`
the range. The text below a field is the meaning of the setting. `vet config`, docs/config.md and the JSON
Schema show that text.
"""

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Interval, MaxLen, MinLen
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from vet.allowed import Count, Dropout, PluginOf, Rate, Seed, Share, Text
from vet.patterns import checked

Epochs = Annotated[int, Interval(ge=1, le=100_000)]
Steps = Annotated[int, Interval(ge=1, le=10**8)]
Threads = Annotated[int, Interval(ge=1, le=4096)]
Between = Annotated[float, Interval(gt=0, lt=1)]
Mixing = Annotated[float, Interval(ge=0, le=1000)]
Pattern = Annotated[Text, AfterValidator(checked)]

Plugin = dict[str, Any]  # dict(type=NAME, …): a registry builds the plugin
Dataset = Annotated[Plugin, PluginOf('dataset')]
Transform = Annotated[Plugin, PluginOf('transform')]
Optimizer = Annotated[Plugin, PluginOf('optimizer')]
# a text below the field would not reach the subclass
WORKERS = (
    'Processes that read and transform images, for each GPU or process. 0: the training process reads '
    'the images. The training process also reads a single batch. Results do not depend on this number.'
)
LINEAR = dict(type='Linear')
ADAMW = dict(type='AdamW', lr=2e-3, weight_decay=1e-4)


def completed_by(default: Plugin) -> BeforeValidator:
    """A dict without a type changes the default: optimizer=dict(lr=0.01) is AdamW with that learning rate."""

    def completed(given: object) -> object:
        return {**default, **given} if isinstance(given, dict) and 'type' not in given else given

    return BeforeValidator(completed)


def fields_of(section: object) -> dict[str, Any]:
    """{name: hint} of the fields. Empty if `section` is no section."""
    return get_type_hints(section, include_extras=True) if is_dataclass(section) else {}


def entry_section(hint: object) -> Any:
    """The section of the entries of a list, such as Stage. None if the entries are no section."""
    entry = get_args(hint)[0] if get_origin(hint) is list else None
    return entry if is_dataclass(entry) else None


class Section:
    """pydantic refuses unknown keys of a section, and values of another type."""

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
    """The tuners change the backbone. vet attaches them in this order, and they act together. An empty list
    trains only the head, as LinearProbe does."""
    head: Annotated[Plugin, PluginOf('head'), completed_by(LINEAR)] = field(
        default_factory=lambda: dict(LINEAR)
    )
    """The head turns the backbone's features into a score for each class. If num_classes is left out, the
    dataset gives the number."""
    objective: Annotated[Plugin, PluginOf('objective')] | None = None
    """The question that the model answers about an image: SingleLabel, MultiLabel, Ordinal, Regression or
    Segmentation. None: the dataset decides. Most datasets have one class for each image, which is
    SingleLabel."""
    tasks: dict[str, Plugin] = field(default_factory=dict)
    """Only for a dataset of type MultiTask: {task: dict(backbone=…, head=…, objective=…)} gives the
    differences of a task from model.backbone, model.head and model.objective. A task without an entry here
    uses these."""
    shared: Pattern = '.*'
    """Only for several tasks: a regular expression. If the expression fits the whole name of a tuner's
    parameter, all tasks share the parameter. '.*' shares all parameters."""
    finetune: bool = True
    """Only if a run starts from a model folder. True: training starts with new tuners and a new head. False:
    training continues with the folder's tuners and head."""


@dataclass
class Data(Section):
    """The images. Each split is a dataset, dict(type=NAME, …)."""

    train: Dataset | None = None
    """The images to train on. None: you give the dataset to build_trainer in Python. `vet test` needs no such
    images."""
    val: Dataset | None = None
    """The official validation split. None: if an epoch must be chosen or training may stop early,
    evaluation.holdout takes images out of train."""
    test: Dataset | None = None
    """The test images. vet reads them only before the first step and after the last step. None: no test
    result is reported."""


@dataclass
class Dataloader(Section):
    """How images are read."""

    batch_size_per_gpu: Count = 64
    """Images in a batch, on each GPU or process. More images need more memory. With N processes and
    train.accumulate=A, one training step sees N x A batches."""
    workers_per_gpu: Annotated[int, Interval(ge=0, le=1024), Field(description=WORKERS)] = 2


@dataclass
class EvaluationDataloader(Dataloader):
    """How images are read for evaluation. Evaluation computes no gradients, so it needs less memory."""

    batch_size_per_gpu: Count = 128
    """Images in a batch, on each GPU or process. More images need more memory."""


@dataclass
class Schedule(Section):
    """How the learning rate changes over the epochs. The learning rate changes after every step."""

    type: Literal['CosineAnnealingLR', 'LinearLR', 'ConstantLR'] = 'CosineAnnealingLR'
    """How the learning rate falls after the warmup: along half a cosine, along a line, or not at all."""
    T_max: Epochs | None = None
    """Epochs, warmup included, until the learning rate is at its lowest. It stays there. None: the length of
    the run, or of the stage."""
    warmup_epochs: Annotated[float, Interval(ge=0, le=100_000)] = 0.0
    """Epochs in which the learning rate rises from 0 along a line. Fractions are allowed. 0: no warmup. The
    warmup must not be longer than the run or a stage."""
    eta_min: Share = 0.0
    """The lowest learning rate, as a share of the highest. 0: the learning rate falls to zero. 1: the
    learning rate stays the same."""


@dataclass
class Checkpoints(Section):
    """When a run saves a checkpoint, from which the run can continue. A signal to stop always saves."""

    every_steps: Steps | None = None
    """The number of steps between two checkpoints, also within an epoch. None: saves only at the ends of
    epochs."""
    every_epochs: Epochs = 1
    """The number of epochs between two checkpoints. The last epoch always saves. Choose a larger number if
    an epoch takes little time."""
    keep: Count = 2
    """The number of checkpoints that stay on the disk. Older checkpoints are deleted."""


@dataclass
class Stage(Section):
    """A part of the training with a separate optimizer and a separate schedule: freeze first, then
    unfreeze.
    """

    epochs: Epochs
    """The number of epochs of this stage."""
    train: Pattern = '.*'
    r"""A regular expression, such as r'head\..*'. A parameter trains in this stage if the expression fits its
    whole name. '.*' trains all parameters of the tuners and the head."""
    optimizer: Annotated[Plugin, PluginOf('optimizer')] | None = None
    """The optimizer of this stage. A dict without a type changes train.optimizer. None: train.optimizer."""
    head_lr: Rate | None = None
    """The head's learning rate in this stage. None: train.head_lr."""


@dataclass
class ParameterGroup(Section):
    """Parameters that train with another learning rate or weight decay."""

    params: Pattern
    r"""A regular expression, such as r'.*\.bias'. The entry holds for the parameters whose whole name the
    expression fits. If several entries fit, the first entry counts."""
    lr_factor: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    """The learning rate of these parameters is the usual learning rate times this factor. The factor of
    train.layer_decay also counts."""
    weight_decay: Share | None = None
    """The weight decay of these parameters, also of biases, norms and scales. None: the usual weight
    decay."""


@dataclass
class Train(Section):
    """How the tuners and the head are trained."""

    max_epochs: Annotated[int, Interval(ge=0, le=100_000)] = 20
    """How many times training goes over the images of dataset.train. 0: nothing trains. With train.stages,
    the number is the sum of the stages' epochs."""
    stages: list[Stage] = field(default_factory=list)
    """Parts of the training, in this order. An empty list: one part, in which all parameters train."""
    optimizer: Annotated[Optimizer, completed_by(ADAMW)] = field(default_factory=lambda: dict(ADAMW))
    """The optimizer: the name of a class in torch.optim, or the name of an optimizer of timm in lower case,
    such as 'lion', and its arguments. A dict without a type changes the default. Biases, norms and scales get
    no weight decay. `vet list optimizers` shows the names."""
    groups: list[ParameterGroup] = field(default_factory=list)
    """Parameters with another learning rate or weight decay, by patterns for their names. A parameter without
    an entry trains as usual."""
    layer_decay: Between | None = None
    """The learning rate falls with the distance from the head: the factor is layer_decay ** (N - d) in block
    d = 0, 1, … of N, and layer_decay ** (N + 1) before the blocks. Behind the blocks and in the head, the
    factor is 1. 0.65 to 0.9 is usual if whole blocks train. None: one learning rate for all blocks."""
    loss: Annotated[Plugin, PluginOf('loss')] | None = None
    """The loss. `vet list losses` shows the names. None: the usual loss of the objective. For SingleLabel,
    this is cross-entropy."""
    lr_scheduler: Schedule = field(default_factory=Schedule)
    """How the learning rate changes over the epochs."""
    head_lr: Rate | None = None
    """The head's learning rate. None: the learning rate of train.optimizer, as for the tuners."""
    sampler: Annotated[Plugin, PluginOf('sampler')] | None = None
    """Which images an epoch trains on, and in which order: dict(type='ClassBalanced'), Weighted,
    PerClass, RepeatedAugmentation, or a sampler of your own. `vet list samplers` shows the names. None: each
    image comes once in an epoch, shuffled."""
    dataloader: Dataloader = field(default_factory=Dataloader)
    """How the training images are read."""
    transform: list[Transform] = field(
        default_factory=lambda: [dict(type='RandomResizedCrop'), dict(type='RandomHorizontalFlip')]
    )
    """The transforms of a training image, in this order. If a size is left out, the backbone's preprocessing
    gives the size. After the transforms, images are normalised for the backbone."""
    mixup: Mixing = 0.0
    """Mixes two images and their labels by MixUp. The value is alpha of the Beta distribution that draws the
    shares. 0: off. 1: every share is as likely. Small values mix little. If train.cutmix is on too, each
    batch draws MixUp or CutMix."""
    cutmix: Mixing = 0.0
    """Puts a rectangle of an image into another image by CutMix, and mixes their labels. The value is alpha
    of the Beta distribution that draws the area. 0: off."""
    label_smoothing: Dropout = 0.0
    """The share of the target that is spread evenly over all classes. 0: nothing is spread. Near 1, the
    labels say almost nothing."""
    ema: Between | None = None
    """Evaluates and saves an average of the trained parameters over the steps, not the parameters of the last
    step. The value is the decay per step. Near 1, the average reaches back over many steps: about 1 / (1 -
    ema). After step s (0, 1, …) the decay is at most (1 + s) / (10 + s), so that the average forgets the
    start. None: no average."""
    sam: Annotated[float, Interval(gt=0, le=100)] | None = None
    """Sharpness-aware minimization: the gradient of a step is taken at the worst weights within this distance
    of the weights. 0.05 is usual. A step takes twice the time. None: the gradient is taken at the weights."""
    accumulate: Count = 1
    """The number of batches in one step. The optimizer adds up their gradients. The step equals the step of
    one large batch, and needs only the memory of a small batch."""
    clip_norm: Annotated[float, Interval(ge=1e-8, le=1e8)] | None = None
    """The largest norm that the gradient of a step may have. A larger gradient is scaled down to this norm.
    None: gradients keep their norm."""
    precision: Literal['auto', 'fp32', 'bf16', 'fp8'] = 'auto'
    """The type of numbers in which the network computes. 'auto': bf16 on a GPU that supports bf16, else fp32.
    'fp8': bf16, with the products of frozen linear layers in float8."""
    compile: bool | Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] = (
        False
    )
    """Compiles the network with torch.compile: the first step takes long, and each further step takes less
    time. True is the mode 'default'. 'reduce-overhead' and 'max-autotune' replay CUDA graphs, and need
    train.accumulate=1."""
    gradient_checkpointing: bool = False
    """Computes the blocks again in the backward pass. Training needs less memory and more time, and the
    result is the same."""
    shortcuts: bool = True
    """Takes three shortcuts. Results differ only by rounding. If only the class token is pooled, the last
    block computes only that token. Frozen batch norms keep no input. In bf16 on a CPU, the gradient of
    attention is computed from whole products."""
    routes: Literal['measure', 'rule', 'fused', 'split', 'convolved', 'plain'] = 'measure'
    """How low-rank updates such as LoRA's are computed. Results differ only by rounding. 'measure': after the
    first step, vet times all routes of each kind of layer on this machine, and keeps the fastest, in
    $VET_CACHE_DIR or ~/.cache/vet and in the checkpoints of the run. 'rule': vet decides by the shapes, as
    always with train.deterministic and train.compile. 'fused': one product with W + B A, only in float32.
    'split': B A x is added to the output of the layer. 'convolved': the same, with another gradient of B for
    convolutions. 'plain': separate products and a sum, as in PEFT."""
    cache_features: bool = False
    """Each image goes only once through the blocks before the first block that a tuner changes. The results
    are kept on the disk, in $VET_CACHE_DIR or ~/.cache/vet, for all epochs and runs. Needs a transform
    without randomness, and no tuner in the first block."""
    transform_on: Literal['pil', 'tensor', 'device'] = 'pil'
    """Where the transforms after Resize and CenterCrop of train.transform compute. 'pil': on PIL images.
    'tensor': on uint8 tensors, which takes less time; resized pixels differ by rounding, and edges of rotated
    images by more. 'device': on tensors, on the device that trains. A GPU then also holds the images of
    train.cache_images, if its memory has room."""
    cache_images: bool = False
    """Decodes each image once, and keeps the decoded image on the disk, in $VET_CACHE_DIR or ~/.cache/vet,
    for all epochs and runs. If the transform begins with a Resize, the resized image is kept. Results do not
    change."""
    deterministic: bool = False
    """Lets torch use only algorithms that give the same bits each time. These algorithms may take more time.
    An operation without such an algorithm raises an error."""
    threads: Threads | None = None
    """The number of threads of each process on a CPU. None: torch chooses, mostly all cores. 1 is best for a
    tiny network."""
    early_stop: Epochs | None = None
    """The number of epochs without a better result on the validation images, after which the run stops.
    None: never stops early."""
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    """When the run saves a checkpoint."""
    trackers: list[Literal['aim', 'comet', 'comet_ml', 'mlflow', 'tensorboard', 'wandb']] = field(
        default_factory=list
    )
    """The experiment trackers that get the config and the numbers of the log, such as ['mlflow']. Their
    packages must be installed. log.jsonl and TensorBoard's events are always written."""
    log_every: Steps = 10
    """The number of steps between two lines of the log. 1 writes a line for every step."""


@dataclass
class Views(Section):
    """Test-time augmentation: the model sees several views of each image, and scores are means over the
    views. `vet test` and pipeline see the same views. Without any of these settings, the model sees one view.
    """

    flip: bool = False
    """Also shows each view mirrored, left to right."""
    five_crops: Between | None = None
    """Shows five parts in place of the whole: the four corners and the centre, each of this share of the
    sides, and enlarged to the whole. 0.875 is usual. None: the whole."""
    scales: Annotated[list[Annotated[float, Interval(ge=1, le=4)]], MaxLen(8)] = field(default_factory=list)
    """Shows the centre of the image, enlarged by each of these factors. 1 is the whole image. With
    five_crops, each enlarged image has five parts. An empty list: the whole image."""


@dataclass
class Evaluation(Section):
    """How the model is judged."""

    metrics: Text | Annotated[list[Text], MinLen(1)] | None = None
    """The name of a metric, or a list of names. `vet list metrics` shows the names. The first metric chooses
    the best epoch. None: the usual metrics of the objective. For SingleLabel, this is 'accuracy'."""
    dataloader: EvaluationDataloader = field(default_factory=EvaluationDataloader)
    """How the images of the evaluation are read."""
    transform: Annotated[list[Transform], MinLen(1)] | None = None
    """The transforms of an image before evaluation. None: resize and centre crop, as in the backbone's
    evaluation."""
    select: Literal['last', 'best'] = 'last'
    """The epoch that is saved and reported: the last epoch, or the best epoch on the validation images."""
    holdout: Between = 0.1
    """The share of the training images that becomes the validation images, drawn in each class. Used only if
    dataset.val is None, and if an epoch must be chosen or training may stop early. Near 0, there are few
    validation images. Near 1, few training images are left."""
    calibrate: bool = False
    """When training ends, chooses a temperature for the scores on the validation images. The scores then say
    how often answers are right. The answers stay the same. Needs validation images."""
    every: Epochs = 1
    """The number of epochs between two validations. The last epoch is always validated."""
    tta: Views = field(default_factory=Views)
    """Several views of each image."""
    before: bool = True
    """Also reports the test result before the first step. False saves the time of this test."""
    report: bool = True
    """Writes report.html, predictions.csv and curves.png into the work folder when training ends. They show
    what the model says about each test image. Only the 24 worst images go through the network again, for the
    places where the network looked."""


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
    custom_hooks: list[Annotated[Plugin, PluginOf('hook')]] = field(default_factory=list)
    """Hooks, called in this order at the points of the training: before and after the run, each epoch, each
    step and each validation. `vet list hooks` shows the names; register your own with
    `@vet.register_hook`."""
    seed: Seed = 0
    """The start of all random numbers. The same seed on the same machine gives the same result. On a GPU,
    this needs train.deterministic."""

    def to_dict(self) -> Plugin:
        """Plain values, as in config.json."""
        return asdict(self)
