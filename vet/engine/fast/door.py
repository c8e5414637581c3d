"""The door of the tricks for speed. The page lists the tricks, the order in which they are entered, and why.

With a trick, a training computes the same in less time or memory. No file outside this folder imports another
file of the folder.

| | trick | file | of | entered |
|---|---|---|---|---|
| 1 | freed memory stays with the process | freed_memory.py | a CPU with glibc | around the whole run |
| 2 | frozen linear layers multiply in float8 | fp8.py | `train.precision='fp8'` | for the training |
| 3 | frozen weights are stored in bf16 | frozen_in_bf16.py | bf16 and fp8 | for the training |
| 4 | frozen norms keep their input in bf16 | frozen_in_bf16.py | bf16 and fp8 | for the training |
| 5 | blocks skip work that nobody reads | core/model.py: `features_only` | `train.shortcuts` | in each step |
| 6 | attention by products of bf16 | attention_in_bf16.py | `train.shortcuts`, bf16, CPU | in each step |
| 7 | blocks are computed again | recompute.py | `train.gradient_checkpointing` | in each step |
| 8 | low-rank updates take the fastest route | routes.py | `train.routes` | for the training |
| 9 | frozen batch norms keep no input | frozen_batch_norm.py | `train.shortcuts` | for the training |

frozen_norms.py finds the norms of 4 and 9.

Why this order:
- 1 is before all others, so that the memory that the other tricks free also stays.
- 2 is before 3, because the products in float8 are rounded from the exact weights, which 3 puts aside.
- 3, 4 and 9 stay for the whole training. They change the frozen network once, and not in each step.
- 5 to 7 are around the forward and the backward pass of a step, because 7 calls blocks in the backward pass.
  Evaluation comes between two steps, and does not use them.
- 7 is after 5: a block that is computed again is the block that 5 has made.
- 8 changes no module. The first step shows which routes must be measured. So the first step takes the rule.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator

from vet.config import Train
from vet.core.multitask import Classifier
from vet.engine.device import precision_of
from vet.engine.fast.attention_in_bf16 import AttentionByProducts, is_faster_by_products
from vet.engine.fast.fp8 import products_in_fp8, refuse_without_fp8
from vet.engine.fast.freed_memory import freed_memory_kept, give_back_freed_memory
from vet.engine.fast.frozen_batch_norm import batch_norm_inputs_forgotten
from vet.engine.fast.frozen_in_bf16 import norm_inputs_kept_in, weights_stored_in
from vet.engine.fast.recompute import blocks_recomputed
from vet.engine.fast.routes import Routes
from vet.errors import UserError

__all__ = ['Tricks', 'freed_memory_kept', 'give_back_freed_memory', 'refuse_without_fp8']


class Tricks:
    """The tricks of one training of `model`, as `train` asks for them.

    routes: {module: route} of a run that continues. None: a new run, which may measure.
    UserError if a setting does not fit the network or another setting.
    """

    def __init__(
        self,
        model: Classifier,
        train: Train,
        accelerator: Accelerator,
        routes: Mapping[str, str] | None = None,
    ):
        self._model = model
        self._train = train
        self.routes = Routes(model, train, accelerator, routes)
        self._is_bf16 = precision_of(accelerator) == 'bf16'
        self._by_products = (
            self._is_bf16
            and train.shortcuts
            and not train.compile
            and is_faster_by_products(accelerator.device)
        )
        if train.gradient_checkpointing:
            if train.compile:
                raise UserError(
                    'train.gradient_checkpointing and train.compile are both on, but a compiler itself '
                    'chooses the tensors to keep and to compute again; set one of the two to False.'
                )
            with blocks_recomputed(model):  # raises the error for a network without blocks
                pass

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Within, tricks 2 to 4, 8 and 9 are on. Afterwards, the network is as before, bit for bit."""
        with ExitStack() as tricks:
            if self._train.precision == 'fp8':
                tricks.enter_context(products_in_fp8(self._model))
            if self._is_bf16:
                tricks.enter_context(weights_stored_in(torch.bfloat16, self._model))
                tricks.enter_context(norm_inputs_kept_in(torch.bfloat16, self._model))
            if self._train.shortcuts:
                tricks.enter_context(batch_norm_inputs_forgotten(self._model))
            tricks.enter_context(self.routes.in_training())
            yield

    @contextmanager
    def in_a_step(self) -> Iterator[None]:
        """Within this context, tricks 5 to 7 are on, for the forward and the backward pass."""
        with ExitStack() as tricks:
            if self._train.shortcuts:
                for classifier in self._model.tasks.values():
                    tricks.enter_context(classifier.features_only())
            if self._by_products:
                tricks.enter_context(AttentionByProducts())
            if self._train.gradient_checkpointing:
                tricks.enter_context(blocks_recomputed(self._model))
            tricks.enter_context(self.routes.noted())
            yield
