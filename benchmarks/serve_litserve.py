"""A server of LitServe for benchmarks/serve.py: the models of a folder, as LitServe's own examples do it.

    python benchmarks/serve_litserve.py FOLDER PORT

The route and the body are those of vet serve, so that one client asks both servers. Each model is a separate
`pipeline`. A batch has at most 32 images, and waits at most 5 ms, as in vet serve. Needs litserve.
"""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve

from vet import pipeline

BATCH = 32
SECONDS = 0.005


class Models(litserve.LitAPI):
    def setup(self, device: str) -> None:
        folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
        self.pipelines = {path.name: pipeline(str(path), device=device) for path in folders}

    def decode_request(self, request: dict[str, Any]) -> tuple[str, bytes]:
        return request['model'], base64.b64decode(request['images'][0])

    def predict(self, batch: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = [{}] * len(batch)
        for model in {model for model, _ in batch}:
            places = [place for place, (other, _) in enumerate(batch) if other == model]
            found = self.pipelines[model]([batch[place][1] for place in places], batch_size=BATCH)
            for place, answer in zip(places, found):
                answers[place] = answer
        return answers

    def encode_response(self, answer: dict[str, Any]) -> dict[str, Any]:
        return dict(answers=[answer])


if __name__ == '__main__':
    api = Models(max_batch_size=BATCH, batch_timeout=SECONDS, api_path='/v1/predict')
    server = litserve.LitServer(api, accelerator='cpu')
    server.run(port=int(sys.argv[2]), host='127.0.0.1', generate_client_file=False)
