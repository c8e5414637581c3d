"""python tools/predict.py: see `vet/cli/predict.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('predict')
