"""Compares vet's training step with PEFT's on the same timm model: seconds, and memory kept for the backward
pass.

    python benchmarks/speed/steps.py
    python benchmarks/speed/steps.py --jobs vit-fp32 --rounds 21 --compile

The first command runs every job, on the best device of the machine. The second runs one job, with compiled
sides too. A job is a network with random weights, a dtype and a batch in memory. Its sides take turns, once
in each round. The order is drawn for each round, because a side that follows a large side finds warm memory.
The first two rounds do not count. The sides are:

- the untouched network's forward pass (the yardstick);
- the forward pass of a merged LoRA;
- full fine-tuning;
- PEFT's LoRA in a plain torch loop with AdamW;
- vet's Learner, which train.py runs.

All have the same rank, places, batch, dtype and memory layout, and batch norms in eval. On a CPU all keep
freed memory, as vet's trainer does (vet/engine/fast/freed_memory.py); the other sides are slower without
that. Each ratio is of one round; the table gives median and quartiles. In fp8 the other sides compute in
bf16. Utilisation is a quotient of two speeds, in operations per second: that of a step's products and
convolutions, and that of one product of square matrices in float32 or bf16. The product of square matrices
takes a turn in each round too. Writes the entry of this host, see
hosts.py, by job and device.
"""

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import hosts
import timm
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vet.benchmark import record
from vet.config import Schedule, Train
from vet.core.assemble import build_classifier
from vet.core.model import ImageClassifier
from vet.engine.device import make_accelerator
from vet.engine.fast.door import freed_memory_kept
from vet.engine.feed.door import Batch, Order
from vet.engine.learner import Learner
from vet.engine.meter import Meter
from vet.environment import describe
from vet.registry import BACKBONES

CLASSES = 100
RANK = 10
PRODUCT = 'a square product'
CONVOLUTIONS = ['conv1', 'conv2', 'conv3']


@dataclass(frozen=True)
class Job:
    model: str
    precision: str
    batch: int
    batch_on_gpu: int = 128
    # PEFT's names; vet finds the same by '*.name'
    targets: list[str] = field(default_factory=lambda: ['qkv'])

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.targets == CONVOLUTIONS else torch.contiguous_format


JOBS = {
    'vit-fp32': Job('vit_small_patch16_224', 'fp32', 8),
    'vit-bf16': Job('vit_small_patch16_224', 'bf16', 8),
    'vitb-bf16': Job('vit_base_patch16_224', 'bf16', 8),
    'vitb-fp8': Job('vit_base_patch16_224', 'fp8', 8),
    'resnet-fp32': Job('resnet50', 'fp32', 8, targets=CONVOLUTIONS),
    'resnet-bf16': Job('resnet50', 'bf16', 8, targets=CONVOLUTIONS),
}


def of_batch(job: Job, batch: int) -> Job:
    """The job with another batch, also on a GPU."""
    return replace(job, batch=batch, batch_on_gpu=batch)


class Sides:
    """Each method makes a step, a function without arguments, that starts from a network of its own."""

    def __init__(self, job: Job, device: torch.device):
        self.job = job
        self.device = device
        size = job.batch_on_gpu if device.type == 'cuda' else job.batch
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(size, 3, 224, 224, generator=generator)
        self.images = images.to(device, memory_format=job.layout)
        self.labels = torch.randint(CLASSES, (size,), generator=generator).to(device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision != 'fp32')

    def product(self) -> Callable[[], object]:
        """What the hardware can do."""
        matrix = torch.randn([8192 if self.device.type == 'cuda' else 2048] * 2, device=self.device)
        matrix = matrix if self.job.precision == 'fp32' else matrix.bfloat16()
        return lambda: matrix @ matrix

    def network(self, **options: object) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(self.job.model, **options).to(self.device, memory_format=self.job.layout)

    def forward(self) -> Callable[[], object]:
        network = self.network(num_classes=CLASSES).eval()

        def step() -> None:
            with torch.no_grad(), self.autocast():
                network(self.images)

        return step

    def merged(self) -> Callable[[], object]:
        """The forward pass of a trained LoRA, written into the weights."""
        model = self.tuned().eval()
        model.merge()

        def step() -> None:
            with torch.no_grad(), self.autocast():
                model(self.images)

        return step

    def full(self) -> Callable[[], object]:
        return self.loop(self.network(num_classes=CLASSES))

    def peft(self, compiled: bool = False) -> Callable[[], object]:
        head = 'fc' if self.job.targets == CONVOLUTIONS else 'head'
        model = get_peft_model(
            self.network(num_classes=CLASSES),
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=self.job.targets, modules_to_save=[head]),
        )
        return self.loop(model, compiled)

    def loop(self, model: nn.Module, compiled: bool = False) -> Callable[[], object]:
        """A plain torch loop's step."""
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        net = torch.compile(model) if compiled else model

        def step() -> None:
            with self.autocast():
                loss = nn.functional.cross_entropy(net(self.images), self.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def tuned(self, tuners: list[dict] | None = None) -> ImageClassifier:
        """With LoRA, or with other tuners."""
        lora = dict(type='LoRA', rank=RANK, at=[f'*.{name}' for name in self.job.targets])
        backbone = BACKBONES.build(dict(type='timm', name=self.job.model, pretrained=False))
        model = build_classifier(
            backbone, tuners or [lora], dict(type='Linear'), [str(i) for i in range(CLASSES)]
        )
        return model.to(self.device, memory_format=self.job.layout)

    def vet(
        self, compiled: bool | str = False, lean: bool = True, tuners: list[dict] | None = None
    ) -> Callable[[], object]:
        model = self.tuned(tuners)
        train = Train(
            optimizer=dict(type='AdamW', lr=1e-4),
            lr_scheduler=Schedule('ConstantLR', T_max=1),
            max_epochs=1,
            precision=self.job.precision,
            compile=compiled,
            shortcuts=lean,
        )
        accelerator = make_accelerator(str(self.device), self.job.precision)
        learner = Learner(model, train, Order(10**6, len(self.images), 1, seed=0), accelerator)
        batch = Batch(self.images, self.labels, torch.ones(len(self.images), device=self.device))
        meter = Meter(self.device)
        return lambda: learner.step([batch], 0, meter)


def saved_bytes(step: Callable[[], object]) -> int:
    """What autograd keeps of one step for its backward, each storage once, those that were there before
    it left out.
    """
    alive = [
        t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter) and t.layout == torch.strided
    ]
    before = {t.untyped_storage().data_ptr() for t in alive}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # or its address might be given to another
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks

    class Counted(hooks):  # of hooks within hooks, only the inner ones are called
        def __init__(self, pack: Callable, unpack: Callable):
            super().__init__(lambda tensor: keep(pack(tensor)), unpack)

    torch.autograd.graph.saved_tensors_hooks = Counted
    try:
        with hooks(keep, lambda tensor: tensor):
            step()
    finally:
        torch.autograd.graph.saved_tensors_hooks = hooks
    return sum(size for pointer, size in kept.items() if pointer not in before)


def operations(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one step. Attention is counted as
    the two products of its definition."""
    in_float8 = {torch.ops.aten._scaled_mm_v2: lambda x, W, *_, **__: 2 * x[0] * x[1] * W[1]}
    with FlopCounterMode(display=False, custom_mapping=in_float8) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


def in_rounds(steps: dict[str, Callable], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of each step, round by round, after two rounds that do not count.

    The order of the steps changes from round to round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in random.Random(number).sample(list(steps.items()), len(steps)):
            began = time.perf_counter()
            step()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            if number > 1:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(job: Job, device: torch.device, rounds: int, compiled: bool) -> dict:
    sides = Sides(job, device)
    makers: dict[str, Callable] = {
        PRODUCT: sides.product,
        'forward': sides.forward,
        'merged, forward': sides.merged,
        'full': sides.full,
        'peft': sides.peft,
        'vet': sides.vet,
        'vet, lean=False': lambda: sides.vet(lean=False),
    }
    if job.targets == CONVOLUTIONS:
        del makers['vet, lean=False']
    if compiled:
        makers |= {'peft, compiled': lambda: sides.peft(True), 'vet, compiled': lambda: sides.vet(True)}
        if device.type == 'cuda':
            makers['vet, compiled, CUDA graphs'] = lambda: sides.vet('reduce-overhead')
    steps = {name: make() for name, make in makers.items()}
    seconds = in_rounds(steps, rounds, device)
    flops = {name: operations(step) for name, step in steps.items() if 'compiled' not in name}
    eager = [name for name in flops if name != PRODUCT and 'forward' not in name]
    saved = {name: saved_bytes(steps[name]) for name in eager}
    del steps
    peak = {name: peak_bytes(make, device) for name, make in makers.items()} if device.type == 'cuda' else {}
    return dict(
        job=dict(
            model=job.model, precision=job.precision, batch=len(sides.images), targets=job.targets, rank=RANK
        ),
        rounds=rounds,
        seconds=seconds,
        operations=flops,
        saved_bytes=saved,
        peak_bytes=peak,
        environment=describe(device),
    )


def peak_bytes(make: Callable, device: torch.device) -> int:
    """The most memory that a side ever holds, alone on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    step = make()
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated(device) - held


def ratios(results: dict) -> dict[str, float]:
    """{job: the time of vet's step over that of PEFT's, the median over rounds}."""
    found = {}
    for job, one in results.items():
        pairs = zip(one['seconds']['vet'], one['seconds']['peft'])
        found[job] = statistics.median(own / other for own, other in pairs)
    return found


def shown(name: str, found: dict) -> Table:
    job = found['job']
    seconds = found['seconds']
    flops = found['operations']
    table = Table(
        'side',
        'ms / step, median',
        'x forward',
        'x PEFT (quartiles)',
        'images / s',
        'GFLOP',
        'utilisation',
        'kept for backward, MB',
        'peak, MB',
        title=f'{name}: {job["model"]}, {job["precision"]}, batch {job["batch"]}, LoRA rank {job["rank"]} on '
        f'{", ".join(job["targets"])}; {found["rounds"]} rounds; {found["environment"]["device"]}, '
        f'threads: {found["environment"]["threads"]}, torch {found["environment"]["packages"]["torch"]}, '
        f'{PRODUCT}: {flops[PRODUCT] / statistics.median(seconds[PRODUCT]) / 1e9:,.0f} GFLOP/s',
    )
    for side, times in [item for item in seconds.items() if item[0] != PRODUCT]:
        count = flops[side.partition(', compiled')[0]]
        used = statistics.median(
            count * whole / (flops[PRODUCT] * own) for own, whole in zip(times, seconds[PRODUCT])
        )
        ratios = [one / other for one, other in zip(times, seconds['peft'])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        over = statistics.median(one / other for one, other in zip(times, seconds['forward']))
        saved, peak = found['saved_bytes'].get(side), found['peak_bytes'].get(side)
        table.add_row(
            side,
            f'{1e3 * statistics.median(times):.1f}',
            f'{over:.2f}',
            f'{middle:.3f} ({low:.3f} to {high:.3f})',
            f'{job["batch"] / statistics.median(times):.1f}',
            f'{count / 1e9:.1f}',
            f'{used:.2f}',
            '' if saved is None else f'{saved / 1e6:.1f}',
            '' if peak is None else f'{peak / 1e6:.0f}',
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--jobs', nargs='+', choices=JOBS, default=[name for name in JOBS if not name.startswith('vitb')]
    )
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    path = record.output(args)
    results = hosts.read(path, 'steps')
    device = torch.device(args.device)
    for name in args.jobs:
        with freed_memory_kept(device):
            found = measure(JOBS[name], device, args.rounds, args.compile)
        results[f'{name}, {device.type}'] = found
        hosts.keep(path, 'steps', results)
        Console(width=150).print(shown(name, found))


if __name__ == '__main__':
    main()
