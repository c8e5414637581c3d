# A server of tuned models. The folder /models holds model folders.
#
#     docker build -t vet .
#     docker build -t vet-cuda --build-arg TORCH=cu128 .
#     docker run --rm -p 127.0.0.1:8000:8000 -v ./models:/models:ro vet
#     docker run --rm -p 127.0.0.1:8000:8000 -v ./models:/models:ro --gpus all vet-cuda
#
# TORCH: the kind of PyTorch's wheels: cpu, or a version of CUDA such as cu128.

FROM python:3.11-slim

ARG TORCH=cpu
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MALLOC_ARENA_MAX=2 HOME=/home/vet

RUN useradd --uid 10001 --create-home --home-dir /home/vet vet && mkdir -p /home/vet/.cache && chown -R vet /home/vet
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/${TORCH} torch torchvision

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY vet ./vet
COPY configs ./configs
COPY benchmarks/suites ./benchmarks/suites
COPY examples ./examples
RUN pip install --no-cache-dir ".[serve]" && rm -rf /src/build

WORKDIR /home/vet
USER vet
EXPOSE 8000
VOLUME /home/vet/.cache
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["vet", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/models"]
