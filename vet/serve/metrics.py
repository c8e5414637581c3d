"""Metrics of a server in the form of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server. Labels have known values: routes, statuses and names of served models."""

    def __init__(self) -> None:
        self._all = made = CollectorRegistry()
        self.requests = Counter('vet_requests_total', 'Requests', ['route', 'status'], registry=made)
        self.seconds = Histogram(
            'vet_request_seconds', 'Seconds of a request', ['route'], buckets=SECONDS, registry=made
        )
        self.images = Counter('vet_images_total', 'Images with an answer', ['model'], registry=made)
        self.waiting = Gauge('vet_images_waiting', 'Images that wait or compute', registry=made)
        self.batch_images = Histogram('vet_batch_images', 'Images of a batch', buckets=IMAGES, registry=made)
        self.batch_seconds = Histogram(
            'vet_batch_seconds', 'Seconds of a batch', buckets=SECONDS, registry=made
        )
        self.loads = Counter('vet_loads_total', 'Models that were loaded', ['result'], registry=made)
        self.loaded = Gauge('vet_models_loaded', 'Models in memory', registry=made)
        self.memory = Gauge('vet_models_bytes', 'Memory of the models, with their backbones', registry=made)

    def text(self) -> bytes:
        return generate_latest(self._all)
