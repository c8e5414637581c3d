"""Trainer: trains an ImageClassifier on a dataset. Begins with a work folder or a checkpoint, ends with a
model folder.

builders.build_trainer makes the Trainer. The Trainer knows no tuner, head or dataset by name.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torchvision.transforms import v2

from vet.config import Settings
from vet.core.augmented import averaged
from vet.core.head import FittedHead, StartedHead
from vet.core.multitask import Classifier
from vet.core.objective import Answer, build_objective, refuse_counts
from vet.core.tensor_file import read_tensors
from vet.datasets.base import Datasets, errors_named, follow_models
from vet.engine.device import make_accelerator
from vet.engine.fast.door import freed_memory_kept, refuse_without_fp8
from vet.engine.feed.door import (
    Feed,
    opened,
    refuse_masks_on_device,
    refuse_two_normalisations,
    refuse_unfit_views,
)
from vet.engine.judge import Judge
from vet.engine.run import Run
from vet.engine.saving.door import WorkFolder, identity_of, list_checkpoints, on_main
from vet.errors import TrainingError, UserError
from vet.failures import failures_named
from vet.files import JsonObject, read_json
from vet.hooks.base import Hook
from vet.hooks.runner import Hooks, Runner
from vet.log import warn
from vet.transforms.torchvision import build_transform, on_tensors


class Trainer:
    """Trains `model` on data['train'], validates on data['val'] if there is one, reports on data['test'].

    save_output(model, folder, facts): writes the model folder when training ends.
    is_prepared: whether the model was trained before, so that its tuners are not prepared again.
    how_to_go_on: the command that continues the run after a stop. The message ends with it. None: the caller
        tells how to go on.
    """

    how_to_go_on: object | None = 'build_trainer(…, work_dir=…, resume="auto").train()'

    def __init__(
        self,
        model: Classifier,
        data: Datasets,
        settings: Settings,
        folder: WorkFolder,
        save_output: Callable[[Classifier, Path, JsonObject], None],
        device: str | None = None,
        is_prepared: bool = False,
    ):
        self.settings = settings
        self.data = data
        self.folder = folder
        self._save_output = save_output
        if settings.train.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS needs this
            torch.use_deterministic_algorithms(True)
        if settings.train.threads is not None:
            torch.set_num_threads(settings.train.threads)
        unused = len(model.tasks) > 1 or any(tuner.no_gradient for tuner in model.tuners)
        self.accelerator = make_accelerator(device, settings.train.precision, some_unused=unused)
        self.model = model.to(self.accelerator.device)
        self._augment, self._view = {}, {}
        for task, classifier in model.tasks.items():
            needs = vars(classifier.backbone.preprocessing)
            objective = classifier.objective
            self._augment[task] = build_transform(settings.train.transform, **needs, on_masks=objective.dense)
            self._view[task] = build_transform(
                objective.evaluation_transform(settings.evaluation.transform), **needs
            )
        self._prepare_datasets()
        for task in model.tasks:
            refuse_two_normalisations(self._augment[task], self._view[task])
        if settings.train.transform_on == 'device':
            refuse_masks_on_device(model)
        if settings.train.transform_on != 'pil':
            self._augment = {task: on_tensors(transform) for task, transform in self._augment.items()}
        self._feed = Feed(data, settings, self.accelerator)
        self._judge = Judge(self.model, settings, self.accelerator, self._feed, self._view)
        self._hooks = Hooks(settings.custom_hooks, Runner(self.model, settings, self.accelerator))
        self._training = False
        self._is_prepared = is_prepared

    def _prepare_datasets(self) -> None:
        for dataset in self.data.values():
            if dataset is not None:
                follow_models(dataset, self.model.tasks)

    def add_hook(self, hook: Hook) -> None:
        """Adds a hook to those of the config, before `train`."""
        self._hooks.add(type(hook).__name__, hook)

    def train(self) -> JsonObject:
        """Trains to the end, from the start or a checkpoint, and writes the model folder.

        Returns the summary: the test metrics ('accuracy': 0..1, …), 'before', 'parameters', 'train_seconds',
        'selected', 'output', ….

        At SIGINT (Ctrl-C), SIGTERM or SIGHUP the run finishes the step and writes a checkpoint. Then the
        handler from before `train` gets the signal: Ctrl-C raises KeyboardInterrupt. A second signal reaches
        this handler at once.
        """
        summary = on_main(
            self.accelerator,
            lambda: self.folder.finished(self.settings, lambda: identity_of(self.model, self.data)),
        )
        if summary is not None:
            self._load_output()
            return summary
        self._training = True
        self._tell_of_untrained_heads()
        try:
            with failures_named(self.folder.how_to_continue), freed_memory_kept(self.accelerator.device):
                if self.settings.train.precision == 'fp8':
                    refuse_without_fp8(self.accelerator.device)
                summary, stop = self._run().train()
        except (KeyboardInterrupt, SystemExit):
            self._tell_of_stop()
            raise
        finally:
            self._training = False
            self._feed.forget()
            self.folder.close()
        return summary if summary is not None else stop.redeliver()

    def _tell_of_untrained_heads(self) -> None:
        """Warns if no epoch trains a head that is not computed either."""
        if self.settings.train.max_epochs or self._is_prepared or not self.accelerator.is_main_process:
            return
        for classifier in self.model.tasks.values():
            head = classifier.head
            if list(head.parameters()) and not isinstance(head, FittedHead | StartedHead):
                warn(
                    f'warning: train.max_epochs is 0, so nothing trains the head {type(head).__name__}. Its '
                    'answers come from the numbers that it began with.'
                )

    def _tell_of_stop(self) -> None:
        """After a signal outside of the steps, or a second signal: says how to go on."""
        if self.how_to_go_on is None or not self.accelerator.is_main_process:
            return
        if saved := list_checkpoints(self.folder.checkpoints):
            warn(f'The newest checkpoint is {str(saved[-1])!r}. To go on: {self.how_to_go_on}')
        else:
            warn('The run had no checkpoint yet, so nothing is saved. Begin the run again.')

    def _run(self) -> Run:
        return Run(
            self.model,
            self.data,
            self.settings,
            self.folder,
            self.accelerator,
            self._feed,
            self._judge,
            self._hooks,
            self._augment,
            self._save_output,
            self._is_prepared,
            self.how_to_go_on,
        )

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics, as the config says, else as the objectives of the tasks say."""
        return self._judge.metrics

    def evaluate(self, split: str = 'test') -> dict[str, float]:
        """The metrics of the present model: {'accuracy': 0..1, …}. TrainingError while a training runs."""
        if self._training:
            raise TrainingError(
                'evaluate() is refused while a training runs, because a user could choose by its result. '
                'Call evaluate() before train() or after train().'
            )
        refuse_unfit_views(
            self.model, self.data['train'], 'evaluation.transform', self._view, self.accelerator
        )
        return self._judge.measure(split)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the present model as a model folder, without metrics. An old model folder is replaced.

        UserError for a folder that holds something else.
        """
        folder = Path(folder)
        if (
            folder.exists()
            and not (folder / 'tuner.safetensors').is_file()
            and (folder.is_file() or any(folder.iterdir()))
        ):
            raise UserError(f'{str(folder)!r} exists and is no model folder; give a new or an empty folder.')
        if self.accelerator.is_main_process:
            self._save_output(self.model, folder, dict(metrics={}, settings=self.settings.to_dict()))
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def predict(
        self, images: Sequence[object], topk: int | None = None, task: str | None = None
    ) -> list[Answer]:
        """The answer of the objective for each image, as `pipeline` gives it. images: a list, as for
        `pipeline`.

        topk: the largest number of labels of an image. None: one, or for several labels: all.
        """
        refuse_counts(topk=1 if topk is None else topk)
        model = self.model.for_task(task).eval()
        views: list[torch.Tensor] = []
        sizes: list[tuple[int, int]] = []
        for number, image in enumerate(images):
            with errors_named(f'image {number} of those given'.format):
                seen = opened(image, model.backbone.preprocessing.gray_range)
                height, width = v2.functional.get_size(seen)
                sizes.append((height, width))
                views.append(self._view[task](seen))
        if not views:
            return []
        net = model.of_any_size if model.objective.dense else model
        is_alone = model.objective.dense or len({view.shape for view in views}) > 1
        together = 1 if is_alone else len(views)
        found = []
        for start in range(0, len(views), together):
            batch = torch.stack(views[start : start + together]).to(self.accelerator.device)
            with self.accelerator.autocast():
                outputs = averaged(net, batch, self.settings.evaluation.tta, model.objective)
            fitted = model.objective.fitted(outputs.float(), sizes[start])
            found += model.objective.answers(fitted, topk, usual=1)
        return found

    def _load_output(self) -> None:
        """Loads the output of a finished run into the model. DataError for a damaged file."""
        path = self.folder.output / 'tuner.safetensors'
        saved = read_json(self.folder.output / 'configuration.json')
        sha256 = (saved.get('sha256') or {}).get(path.name)
        tensors = read_tensors(path, 'Start the run again in another work folder.', sha256)
        self.model.load_trained_state(tensors, str(path))
        # thresholds, for example, are in the configuration
        for task, classifier in self.model.tasks.items():
            entry = saved['model']['tasks'][task] if task else saved['model']
            if entry.get('objective'):
                classifier.objective = build_objective(entry['objective'], classifier.classes)
        self._prepare_datasets()
