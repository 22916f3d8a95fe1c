"""Object stores on loopback, for tests: moto's S3 server, and an emulator of Google's."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def s3_server() -> Iterator[None]:
    """An S3 server, which everything in this process and its children then uses."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            environment.setenv("AWS_ACCESS_KEY_ID", "test")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            yield
    finally:
        server.stop()


@contextlib.contextmanager
def gcs_server(port: int, bucket: str) -> Iterator[None]:
    """A Google Cloud Storage server with one bucket, likewise."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            environment.setenv("FSSPEC_GS_TOKEN", "anon")
            yield
    finally:
        server.stop()
