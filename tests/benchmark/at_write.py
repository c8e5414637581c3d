"""The moments of a process, counted by what the process writes: they are the same on a fast and on a
slow machine.
"""

import itertools
import os
import sys
import threading

CHANGES = ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir')


def at_write(folder, number, do):
    """do() in this process right before its `number`-th change of a file or folder below `folder`.
    Imports nothing of vet.
    """
    changes = itertools.count(1)

    def look(event, args):
        is_change = event in CHANGES or event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR)
        if is_change and str(args[0]).startswith(str(folder)) and next(changes) == number:
            do()

    sys.addaudithook(look)


def wait_for_ever(mark):
    """Writes the file `mark`, and waits until another process ends this one."""
    open(mark, 'w').close()
    threading.Event().wait()
