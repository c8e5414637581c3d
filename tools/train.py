"""python tools/train.py: see `vet/cli/train.py`."""

from vet.cli.train import main

if __name__ == '__main__':
    main()
