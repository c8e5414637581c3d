"""python -m vet: the command `vet`. torchrun -m vet starts the command in several processes."""

from vet.cli.vet import program

if __name__ == '__main__':
    program()
