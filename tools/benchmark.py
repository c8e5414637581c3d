"""python tools/benchmark.py: see `vet/cli/benchmark.py`."""

from vet.cli.benchmark import main

if __name__ == '__main__':
    main()
