"""Evaluates a work folder or model folder on the dataset of its training, or on another dataset."""

import argparse
import json
from typing import Any

from vet.changes import modified
from vet.cli.command import Parser, add_backbone, add_common, add_import, add_options, import_plugins, run
from vet.cli.signals import imports
from vet.config import Settings, read_settings
from vet.errors import UserError
from vet.hub.names import find_model
from vet.source import find_config


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('model', help='a work folder, a model folder, or an id OWNER/NAME of a hub')
    parser.add_argument('--split', default='test', choices=('train', 'val', 'test'))
    add_backbone(parser)
    parser.add_argument(
        '--knn',
        nargs='?',
        const=20,
        type=int,
        metavar='K',
        help='also: the accuracy when the K nearest training images vote (default: %(const)s)',
    )
    add_import(parser)
    add_common(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: print(json.dumps(evaluate(args), indent=1)))


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """The metrics of a saved model on one split."""
    if args.knn is not None and (args.knn < 1 or args.split == 'train'):
        raise UserError(
            f'--knn is {args.knn}, with --split {args.split}; K must be at least 1, and the split must be '
            'test or val: a training image would find itself.'
        )
    model, dataset, views, accelerator, settings = prepared(args)
    with imports():
        from vet.builders import build_datasets
        from vet.datasets.base import follow_models
        from vet.engine.evaluate import knn_accuracy, measure
    found = measure(model, dataset, views, accelerator, settings.evaluation)
    if args.knn is None:
        return found
    gallery = build_datasets(settings, args.data_root)['train']
    follow_models(gallery, model.tasks)
    return found | knn_accuracy(model, gallery, dataset, views, accelerator, settings.evaluation, args.knn)


def prepared(args: argparse.Namespace) -> tuple[Any, Any, Any, Any, Settings]:
    """The model, the dataset of args.split, the transforms by task, the accelerator and the settings."""
    import_plugins(args.imports)
    folder = find_model(args.model)
    with imports():
        from vet.builders import build_dataset, build_datasets, check_classes, class_names, names_of
        from vet.core.augmented import refuse_unfit_tta
        from vet.datasets.base import follow_models
        from vet.engine.device import make_accelerator
        from vet.engine.feed.door import refuse_two_normalisations, refuse_unfit_views
        from vet.hub.model_folder import load_model
        from vet.transforms.torchvision import build_transform
    settings = read_settings(modified(find_config(folder), None, args.cfg_options))
    accelerator = make_accelerator(args.device, settings.train.precision)
    model = load_model(folder, args.backbone).to(accelerator.device)
    if args.split == 'val':  # may be a part of train that is held out
        dataset = build_datasets(settings, args.data_root)['val']
    else:
        dataset = build_dataset(getattr(settings.dataset, args.split), args.data_root)
    if dataset is None:
        raise UserError(
            f'there is no {args.split!r} split; give one with --cfg-options dataset.{args.split}.type=….'
        )
    check_classes(names_of(dataset), model.classes, 'the dataset', 'the model')
    follow_models(dataset, model.tasks)
    class_names(dataset)
    views = {
        task: build_transform(
            classifier.objective.evaluation_transform(settings.evaluation.transform),
            **vars(classifier.backbone.preprocessing),
        )
        for task, classifier in model.tasks.items()
    }
    for task, classifier in model.tasks.items():
        trained = build_transform(settings.train.transform, **vars(classifier.backbone.preprocessing))
        refuse_two_normalisations(trained, views[task])
    for classifier in model.tasks.values():
        refuse_unfit_tta(settings.evaluation.tta, classifier.objective)
    refuse_unfit_views(model, dataset, 'evaluation.transform', views, accelerator)
    return model, dataset, views, accelerator, settings
