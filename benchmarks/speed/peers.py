"""Compares the step of each tuner with PEFT's step, or, if PEFT has no such tuner, with full fine-tuning.

    python benchmarks/speed/peers.py
    python benchmarks/speed/peers.py --only LoRA OFT --rounds 21

Both sides tune the same layers of the same timm model, in a plain loop (PEFT) and in vet's Learner. Sides
take turns, once in each round. The first two rounds do not count. A ratio compares two times of one round.
Memory is what autograd keeps for the backward pass, as in steps.py, and on a GPU the peak. Writes the entry
of this host, see hosts.py.
"""

import argparse
import gc
import statistics
from collections.abc import Callable

import hosts
import peft
import torch
from rich.console import Console
from rich.table import Table
from steps import CLASSES, Job, Sides, in_rounds, peak_bytes, saved_bytes

from vet.benchmark import record
from vet.engine.fast.door import freed_memory_kept
from vet.environment import describe

ATTENTION = ['qkv', 'proj']
PLACES = ['attn.qkv', 'attn.proj']
TARGETS = r'.*attn\.(qkv|proj)'


def lora(**options: object) -> peft.PeftConfig:
    return peft.LoraConfig(target_modules=TARGETS, **options)


# {name: (vet's tuner, PEFT's config)}; both at qkv and proj of each attention
PEERS: dict[str, tuple[dict, Callable[[], peft.PeftConfig]]] = {
    'LoRA': (dict(type='LoRA', rank=8, at=PLACES), lambda: lora(r=8, lora_alpha=8)),
    'LoRA, dropout': (
        dict(type='LoRA', rank=8, dropout=0.1, at=PLACES),
        lambda: lora(r=8, lora_alpha=8, lora_dropout=0.1),
    ),
    'rsLoRA': (
        dict(type='LoRA', rank=8, variant='rslora', at=PLACES),
        lambda: lora(r=8, lora_alpha=8, use_rslora=True),
    ),
    'DoRA': (
        dict(type='LoRA', rank=8, variant='dora', at=PLACES),
        lambda: lora(r=8, lora_alpha=8, use_dora=True),
    ),
    'PiSSA': (
        dict(type='LoRA', rank=8, variant='pissa', at=PLACES),
        lambda: lora(r=8, lora_alpha=8, init_lora_weights='pissa'),
    ),
    'VeRA': (
        dict(type='LoRA', rank=64, variant='vera', at='attn.qkv'),
        lambda: peft.VeraConfig(r=64, target_modules=r'.*attn\.qkv'),
    ),
    'LoHa': (
        dict(type='LoHa', rank=4, at=PLACES),
        lambda: peft.LoHaConfig(r=4, alpha=4, target_modules=TARGETS),
    ),
    'LoKr': (
        dict(type='LoKr', rank=4, at=PLACES),
        lambda: peft.LoKrConfig(r=4, alpha=4, target_modules=TARGETS),
    ),
    'IA3': (
        dict(type='IA3', at=('attn.qkv', 'mlp.fc2')),
        lambda: peft.IA3Config(target_modules=r'.*(qkv|fc2)', feedforward_modules=r'.*fc2'),
    ),
    'AdaLoRA': (
        dict(type='AdaLoRA', rank=12, target=8, at=PLACES),
        lambda: peft.AdaLoraConfig(init_r=12, target_r=8, total_step=10**6, target_modules=TARGETS),
    ),
    'LN': (dict(type='NormTune'), lambda: peft.LNTuningConfig(target_modules=r'norm|blocks\.\d+\.norm[12]')),
    'HiRA': (dict(type='HiRA', rank=8, at=PLACES), lambda: peft.HiraConfig(r=8, target_modules=TARGETS)),
    'HRA': (dict(type='HRA', rank=8, at=PLACES), lambda: peft.HRAConfig(r=8, target_modules=TARGETS)),
    'OFT': (
        dict(type='OFT', block=32, at=PLACES),
        lambda: peft.OFTConfig(oft_block_size=32, target_modules=TARGETS),
    ),
    'FourierFT': (
        dict(type='FourierFT', count=1000, at=PLACES),
        lambda: peft.FourierFTConfig(n_frequency=1000, target_modules=TARGETS),
    ),
    'C3A': (
        dict(type='C3A', block=64, at=PLACES),
        lambda: peft.C3AConfig(block_size=64, target_modules=TARGETS),
    ),
    'RandLoRA': (
        dict(type='RandLoRA', rank=32, at=PLACES),
        lambda: peft.RandLoraConfig(r=32, target_modules=TARGETS),
    ),
    'BOFT': (
        dict(type='BOFT', block=8, factors=1, at=PLACES),
        lambda: peft.BOFTConfig(boft_block_size=8, target_modules=TARGETS),
    ),
    'GLoRA': (dict(type='GLoRA', rank=8, at=PLACES), lambda: peft.GloraConfig(r=8, target_modules=TARGETS)),
}
# those that PEFT has not, with their defaults
OTHERS = (
    'ARC AdaptFormer Adapter AdapterPlus BitFit Convpass DiffFit DyLoRA FacT GPS Houlsby '
    'Compacter DTL Hydra Intermediate LadderSide LinearProbe MLAE MoLoRA Mona PACE Partial Pfeiffer '
    'PixelBranch Prefix RLRR RepAdapter ResTuningBypass SCT SNELL SSF SideTuning UTuning VPT'
).split()


class Peers(Sides):
    """The sides of one tuner: see Sides."""

    def peft_of(self, config: peft.PeftConfig) -> Callable[[], object]:
        return self.loop(peft.get_peft_model(self.network(num_classes=CLASSES), config))


def compared(makers: dict[str, Callable], rounds: int, device: torch.device) -> dict:
    """The seconds of each side, round by round, and what each side keeps."""
    steps = {name: make() for name, make in makers.items()}
    seconds = in_rounds(steps, rounds, device)
    saved = {name: saved_bytes(step) for name, step in steps.items() if name != 'forward'}
    del steps
    gc.collect()
    peak = {name: peak_bytes(make, device) for name, make in makers.items()} if device.type == 'cuda' else {}
    return dict(seconds=seconds, saved_bytes=saved, peak_bytes=peak)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='vit_tiny_patch16_224')
    parser.add_argument('--precision', default='fp32', choices=['fp32', 'bf16'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--only', nargs='+', choices=[*PEERS, *OTHERS], default=[*PEERS, *OTHERS])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    path = record.output(args)
    device = torch.device(args.device)
    job = Job(args.model, args.precision, args.batch, batch_on_gpu=args.batch)
    found = hosts.read(path, 'peers').get(args.precision, {})
    sides = Peers(job, device)
    for name in args.only:
        if name in PEERS:
            tuner, config = PEERS[name]
            makers = {
                'peft': lambda config=config: sides.peft_of(config()),
                'vet': lambda tuner=tuner: sides.vet(tuners=[tuner]),
            }
        else:
            makers = {
                'forward': sides.forward,
                'full': sides.full,
                'vet': lambda name=name: sides.vet(tuners=[dict(type=name)]),
            }
        with freed_memory_kept(device):
            made = compared(makers, args.rounds, device)
        found[name] = made | dict(model=args.model, batch=args.batch, environment=describe(device))
        hosts.keep(path, 'peers', hosts.read(path, 'peers') | {args.precision: found})
        print(f'{name}: {ratio(made, "peft" if name in PEERS else "full"):.2f}', flush=True)
    for table in shown(args.precision, found):
        Console(width=150).print(table)


def ratio(found: dict, other: str) -> float:
    """The time of vet's step over that of another side, the median over rounds."""
    return statistics.median(a / b for a, b in zip(found['seconds']['vet'], found['seconds'][other]))


def shown(precision: str, found: dict) -> list[Table]:
    """The tuners that PEFT has, and those that PEFT has not."""
    first = next(iter(found.values()))
    what = f'{first["model"]}, {precision}, batch {first["batch"]}'
    both = Table('tuner', 'PEFT, ms', 'vet, ms', 'x PEFT', 'PEFT keeps, MB', 'vet keeps, MB', title=what)
    own = Table(
        'tuner', 'vet, ms', 'x full', 'x forward', 'keeps, MB', title=f'{what}; PEFT has none of these'
    )
    for name, one in found.items():
        times = {side: 1e3 * statistics.median(spent) for side, spent in one['seconds'].items()}
        saved = {side: f'{count / 1e6:.1f}' for side, count in one['saved_bytes'].items()}
        if 'peft' in times:
            both.add_row(
                name,
                f'{times["peft"]:.0f}',
                f'{times["vet"]:.0f}',
                f'{ratio(one, "peft"):.2f}',
                saved['peft'],
                saved['vet'],
            )
        else:
            own.add_row(
                name,
                f'{times["vet"]:.0f}',
                f'{ratio(one, "full"):.2f}',
                f'{ratio(one, "forward"):.2f}',
                saved['vet'],
            )
    return [table for table in (both, own) if table.row_count]


if __name__ == '__main__':
    main()
