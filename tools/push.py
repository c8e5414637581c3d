"""python tools/push.py: see `vet/cli/push.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('push')
