"""The Ray cluster that `--launcher ray` uses. The package ray is optional: the extra `ray`."""

from collections.abc import Iterator
from contextlib import contextmanager

from vet.errors import UserError


@contextmanager
def needs_ray(package: str = 'Ray', otherwise: str = '') -> Iterator[None]:
    """Around imports of ray. UserError if ray is not installed.

    otherwise: what the user can do without ray.
    """
    try:
        yield
    except ImportError as error:
        advice = f'; or {otherwise}' if otherwise else ''
        raise UserError(
            f'--launcher ray needs {package}, which is not installed: pip install '
            f'"vision-efficient-tuning[ray]"{advice}.'
        ) from error


def join_cluster(device: str | None) -> int:
    """Joins a cluster, and counts the GPUs of the cluster. For the device cpu, the count is 0.

    The cluster is that of RAY_ADDRESS, or the cluster that runs on this machine, or a new cluster of this
    machine alone. A process that has joined a cluster stays there.
    """
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    return 0 if device == 'cpu' else int(ray.cluster_resources().get('GPU', 0))
