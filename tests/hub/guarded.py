"""Opens hostile model folders, each in a process of its own that a guard watches. Prints one line of JSON for
each.

Faults are: an error that is no UserError; a limit of time or memory that was reached; a network connection; a
file that was written; a program that was started.
Run as a script: guarded.py GOOD_FOLDER EMPTY_FOLDER [PART_OF_THE_NAMES].
"""

import json
import os
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path

# processor time; the clock's time, for a process that waits without an end; memory
SECONDS, WAITS_SECONDS, BYTES = 60, 1200, 10 * 2**30
ENDS = ('socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.exec')


def watched(call):
    """What came of `call`: ('opened' | 'refused' | 'fault', what was said). In this process the guard
    stays for ever.
    """
    faults = []

    def guard(event, args):
        if event in ENDS:
            faults.append(f'{event} {args!r:.200}')
        if (
            event == 'open'
            and isinstance(args[0], (str, bytes))
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            if os.fsdecode(args[0]) != os.devnull:
                faults.append(f'wrote {args[0]!r}')

    from vet.errors import UserError

    sys.addaudithook(guard)
    try:
        call()
        came = 'opened', ''
    except UserError as error:
        came = 'refused', str(error)
    except BaseException as error:
        came = 'fault', f'{type(error).__name__}: {error}'
    return ('fault', '; '.join(faults)) if faults else came


def in_a_process(call):
    """What came of `call` in a copy of this process, within limits of time and memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.alarm(WAITS_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        used = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        os.write(writing, json.dumps([said[:300] for said in watched(call)]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, 'rb') as file:
        said = file.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(said) if said else ('fault', f'ended by signal {status & 127}')


def main():
    import torch

    from tests.hub.hostile import hostile_folders
    from vet import pipeline
    from vet.builders import find_config
    from vet.config import read_settings
    from vet.registry import BACKBONES, HEADS, TUNERS

    torch.set_num_threads(1)
    assert BACKBONES.names() and TUNERS.names() and HEADS.names()  # imported once, for all processes
    warnings.simplefilter('ignore')
    good, outside = (Path(path) for path in sys.argv[1:3])
    part = sys.argv[3] if len(sys.argv) > 3 else ''
    folder = outside / 'hostile'
    os.mkfifo(outside / 'pipe')
    shutil.copytree(good, folder)

    def opens():
        pipeline(model=folder, device='cpu')

    def begins_a_run():
        read_settings(find_config(folder))

    for what, spoil in hostile_folders(folder, outside):
        if part not in what:
            continue
        spoil()
        for call in (opens, begins_a_run):
            print(json.dumps([what, call.__name__, *in_a_process(call)]), flush=True)
        shutil.rmtree(folder)
        shutil.copytree(good, folder)
    left = sorted(path.name for path in outside.iterdir())
    print(
        json.dumps(
            ['what is left', '', 'refused' if left == ['hostile', 'pipe'] else 'fault', ' '.join(left)]
        )
    )


if __name__ == '__main__':
    main()
