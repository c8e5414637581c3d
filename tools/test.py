"""python tools/test.py: see `vet/cli/test.py`."""

from vet.cli.test import main

if __name__ == '__main__':
    main()
