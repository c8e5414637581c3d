"""The names of vet, for editors and type checkers. vet/__init__.py reads them from here.

tests/library/test_namespace.py compares the tuners and registries with the registries.
"""

from vet.builders import build_trainer as build_trainer
from vet.core.tuner import Tuner as Tuner
from vet.errors import UserError as UserError
from vet.library import load as load
from vet.library import tune as tune
from vet.pipelines import pipeline as pipeline
from vet.register import register_backbone as register_backbone
from vet.register import register_dataset as register_dataset
from vet.register import register_head as register_head
from vet.register import register_hook as register_hook
from vet.register import register_loss as register_loss
from vet.register import register_metric as register_metric
from vet.register import register_objective as register_objective
from vet.register import register_optimizer as register_optimizer
from vet.register import register_sampler as register_sampler
from vet.register import register_transform as register_transform
from vet.register import register_tuner as register_tuner
from vet.registry import BACKBONES as BACKBONES
from vet.registry import DATASETS as DATASETS
from vet.registry import HEADS as HEADS
from vet.registry import HOOKS as HOOKS
from vet.registry import LOSSES as LOSSES
from vet.registry import METRICS as METRICS
from vet.registry import OBJECTIVES as OBJECTIVES
from vet.registry import OPTIMIZERS as OPTIMIZERS
from vet.registry import SAMPLERS as SAMPLERS
from vet.registry import TRANSFORMS as TRANSFORMS
from vet.registry import TUNERS as TUNERS
from vet.tuners.adalora import AdaLoRA as AdaLoRA
from vet.tuners.adapter import Adapter as Adapter
from vet.tuners.adapter import AdapterPlus as AdapterPlus
from vet.tuners.adapter import AdaptFormer as AdaptFormer
from vet.tuners.adapter import Houlsby as Houlsby
from vet.tuners.adapter import Intermediate as Intermediate
from vet.tuners.adapter import Pfeiffer as Pfeiffer
from vet.tuners.arc import ARC as ARC
from vet.tuners.boft import BOFT as BOFT
from vet.tuners.border import BorderPrompt as BorderPrompt
from vet.tuners.c3a import C3A as C3A
from vet.tuners.convpass import Convpass as Convpass
from vet.tuners.dylora import DyLoRA as DyLoRA
from vet.tuners.fact import FacT as FacT
from vet.tuners.fourierft import FourierFT as FourierFT
from vet.tuners.glora import GLoRA as GLoRA
from vet.tuners.gps import GPS as GPS
from vet.tuners.hira import HiRA as HiRA
from vet.tuners.hra import HRA as HRA
from vet.tuners.ladder import LadderSide as LadderSide
from vet.tuners.loha import LoHa as LoHa
from vet.tuners.lokr import LoKr as LoKr
from vet.tuners.lora import LoRA as LoRA
from vet.tuners.molora import MoLoRA as MoLoRA
from vet.tuners.oft import OFT as OFT
from vet.tuners.pace import PACE as PACE
from vet.tuners.pixels import PixelBranch as PixelBranch
from vet.tuners.prefix import Prefix as Prefix
from vet.tuners.prompt import VPT as VPT
from vet.tuners.randlora import RandLoRA as RandLoRA
from vet.tuners.repadapter import RepAdapter as RepAdapter
from vet.tuners.scaling import IA3 as IA3
from vet.tuners.scaling import RLRR as RLRR
from vet.tuners.scaling import SSF as SSF
from vet.tuners.sct import SCT as SCT
from vet.tuners.selection import BitFit as BitFit
from vet.tuners.selection import DiffFit as DiffFit
from vet.tuners.selection import Full as Full
from vet.tuners.selection import LinearProbe as LinearProbe
from vet.tuners.selection import NormTune as NormTune
from vet.tuners.selection import Partial as Partial
from vet.tuners.side import SideTuning as SideTuning
from vet.tuners.utuning import UTuning as UTuning

__version__: str
