"""An S3 server on this machine that can be slow, fail or be full."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "studies"
KEYS = {
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "AWS_DEFAULT_REGION": "us-east-1",
}
ERROR = "<Error><Code>{}</Code><Message>{}</Message></Error>"


class Server:
    """Moto's S3 behind what may go wrong.

    Attributes:
        delay: Seconds before each answer.
        failing: Whether nothing is answered but that it is overrun.
        full: Whether nothing can be written.
        requests: How many came.
    """

    def __init__(self) -> None:
        self.delay, self.failing, self.full, self.requests = 0.0, False, False, 0
        self._real = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.address = f"127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.requests += 1
        time.sleep(self.delay)
        if self.failing:
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [ERROR.format("SlowDown", "Reduce your request rate").encode()]
        if self.full and request["REQUEST_METHOD"] in ("PUT", "POST"):
            start("507 Insufficient Storage", [("Content-Type", "application/xml")])
            return [ERROR.format("XMinioStorageFull", "Storage backend is full").encode()]
        answer: Iterable[bytes] = self._real(request, start)
        return answer

    @property
    def uri(self) -> str:
        """A folder in a bucket that is there, as pyarrow names it."""
        return f"s3://{BUCKET}/all?endpoint_override={self.address}&scheme=http"

    def close(self) -> None:
        self._server.shutdown()


@contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server with an empty bucket, with keys in this process's variables."""
    for name, value in KEYS.items():
        patch.setenv(name, value)
    server = Server()
    client = boto3.client("s3", endpoint_url=f"http://{server.address}")
    for found in client.list_buckets()["Buckets"]:
        # Moto's memory is the process's.
        empty(client, found["Name"])
    client.create_bucket(Bucket=BUCKET)
    yield server
    server.close()


def empty(client: Any, bucket: str) -> None:
    for found in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        client.delete_object(Bucket=bucket, Key=found["Key"])
    client.delete_bucket(Bucket=bucket)
