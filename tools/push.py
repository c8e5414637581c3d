"""python tools/push.py: see `vet/cli/push.py`."""

from vet.cli.push import main

if __name__ == '__main__':
    main()
