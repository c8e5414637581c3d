"""Writes a suite's jobs for Slurm: lists of jobs, and scripts for sbatch. vet starts nothing.

Results and work folders must lie in a folder that the cluster's machines share.
"""

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vet.benchmark.worker import Job
from vet.files import write_file
from vet.terminal import Terminal

MOST = 1000  # jobs of an array; Slurm's default limit is MaxArraySize = 1001, so 1000 is the largest number
SCRIPT = """\
#!/bin/bash
{directives}
set -eu
cd {folder}
job=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {jobs})
exec {python} -m vet.benchmark.worker "$job"
"""


class Slurm:
    """folder: where the files go. options: long options of sbatch: dict(partition='gpu', gpus=1,
    time='4:00:00').
    """

    def __init__(self, folder: Path, options: Mapping[str, object] | None = None):
        self.folder = folder.absolute()
        self.options = dict(options or {})

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Writes arrays of the jobs, and prints how to start them.

        A later call writes jobs that need their results.
        """
        for first in range(0, len(jobs), MOST):
            self._write(jobs[first : first + MOST])
        searches = sum(job.run.is_search for job in jobs)
        if searches:
            Terminal(highlight=False).print(
                f'{searches} of them are searches over a grid. When all are done, give this command again: '
                'it then writes the runs that count, at the points that were best on validation images.',
                soft_wrap=True,
            )

    def _write(self, jobs: Sequence[Job]) -> None:
        paths = '\n'.join(str(job.write()) for job in jobs) + '\n'
        name = f'array-{hashlib.sha256(paths.encode()).hexdigest()[:8]}'
        script, listed = self.folder / f'{name}.sh', self.folder / f'{name}.txt'
        options = (
            dict(array=f'0-{len(jobs) - 1}', output=f'{self.folder}/{name}-%a.log', **{'job-name': 'vet'})
            | self.options
        )
        write_file(listed, paths)
        write_file(
            script,
            SCRIPT.format(
                directives='\n'.join(
                    f'#SBATCH --{key}={shlex.quote(str(value))}' for key, value in options.items()
                ),
                folder=shlex.quote(os.getcwd()),
                jobs=shlex.quote(str(listed)),
                python=shlex.quote(sys.executable),
            ),
        )
        Terminal(highlight=False).print(
            f'{len(jobs)} jobs are written, and none is started: sbatch {shlex.quote(str(script))}',
            soft_wrap=True,
            markup=False,
        )
