"""Puts a trained model, with a model card, on the Hugging Face hub."""

import argparse

from vet.cli.command import run
from vet.hub.hub import push_to_hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='a model folder, or the work folder of a finished run')
    parser.add_argument(
        'repository',
        metavar='OWNER/NAME',
        help='made if it is not there; or a file:// URL or path of a folder',
    )
    parser.add_argument(
        '--private', action='store_true', default=None, help='make it private, if it is not there'
    )
    parser.add_argument('--revision', metavar='BRANCH', help='the branch to put it on (default: main)')
    parser.add_argument('--message', default='Add the model', help='of the commit')
    parser.add_argument('--license', metavar='ID', help='for the model card, such as apache-2.0')
    args = parser.parse_args()
    run(lambda: _push(args))


def _push(args: argparse.Namespace) -> None:
    url = push_to_hub(
        args.model,
        args.repository,
        private=args.private,
        commit_message=args.message,
        revision=args.revision,
        license=args.license,
    )
    print(url)
