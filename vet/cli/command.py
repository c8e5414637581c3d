"""What all commands share: how they report a user's mistake, and the options with one meaning everywhere."""

import argparse
import os
import sys
from collections.abc import Callable

from mmengine.config import DictAction

from vet.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a UserError becomes one message and exit code 2, Ctrl-C exit code 130."""
    try:
        main()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def add_common(parser: argparse.ArgumentParser) -> None:
    """--device and --data-root."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best there is)')
    parser.add_argument('--data-root', metavar='DIR', help='where the datasets are (default: $VET_DATA_ROOT, else ./data)')


def add_options(parser: argparse.ArgumentParser) -> None:
    """--cfg-options key=value …"""
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config: train.max_epochs=5 model.backbone.lora_length=4')
