"""Pushes a trained model, with a model card, to the Hugging Face hub."""

import argparse

from vet.cli.command import Parser, run
from vet.cli.signals import imports
from vet.hub.names import find_model


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('model', help='a model folder, or the work folder of a finished run')
    parser.add_argument(
        'repository',
        metavar='OWNER/NAME',
        help='a repository, which is created if it does not exist; or a file:// URL or path of a folder',
    )
    parser.add_argument(
        '--private', action='store_true', default=None, help='if the repository is new, make it private'
    )
    parser.add_argument('--revision', metavar='BRANCH', help='the branch to push to (default: main)')
    parser.add_argument('--message', default='Add the model', help='the message of the commit')
    parser.add_argument('--license', metavar='ID', help='for the model card, such as apache-2.0')
    args = parser.parse_args()
    run(lambda: _push(args))


def _push(args: argparse.Namespace) -> None:
    folder = find_model(args.model)
    with imports():
        from vet.hub.hub import push_to_hub
    url = push_to_hub(
        folder,
        args.repository,
        private=args.private,
        commit_message=args.message,
        revision=args.revision,
        license=args.license,
    )
    print(url)
