"""python tools/train.py: see `vet/cli/train.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('train')
