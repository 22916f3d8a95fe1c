"""Endpoints elsewhere, in this process: over a real socket, and as badly behaved as a test asks."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.settings import BaseModelSettings, parse_settings
from deployments.engines.endpoint.endpoint_engine import EndpointEngine
from tests.conftest import until, wait_until

KEY = "sk-very-secret-0123456789"
# What the endpoint calls the model.
THERE = "far/Model-9b"
PATH = "/v1/chat/completions"


def certificate(folder: Path) -> Path:
    """One that 127.0.0.1 has signed for itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    parts = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = folder / "far.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, *parts) + made.public_bytes(pem))
    return file


@asynccontextmanager
async def served(app: Any, certificate: Path | None = None) -> AsyncIterator[str]:
    """The base URL of an application that is served on loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
            ssl_certfile=certificate,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await until(lambda: server.started)
        try:
            scheme = "https" if certificate else "http"
            yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            await serving


@contextmanager
def served_in_a_thread(app: Any, port: int) -> Iterator[None]:
    """For tests that are no coroutines."""
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


class Scripted:
    """An ASGI application that answers each request by the next of `answers`; the last one stays.

    Attributes:
        asked: the headers and the body of each request.
    """

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[dict[str, str], bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.asked.append((headers, body))
        status, sent, *chunks = self._answers.pop(0) if self._answers[1:] else self._answers[0]
        start = [(k.encode(), v.encode()) for k, v in sent.items()]
        await send({"type": "http.response.start", "status": status, "headers": start})
        for chunk in chunks:
            if callable(chunk):
                await chunk()
                continue
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def far_model(url: str, **endpoint: Any) -> dict[str, Any]:
    """A base model elsewhere, as settings have it; keyword arguments are its endpoint's."""
    return {"id": "far", "path": THERE, "engine": "openai", "endpoint": {"url": url} | endpoint}


def far_settings(url: str, **endpoint: Any) -> BaseModelSettings:
    return parse_settings({"models": [far_model(url, **endpoint)]}).models[0]


@asynccontextmanager
async def far_engine(url: str, **endpoint: Any) -> AsyncIterator[EndpointEngine]:
    """An engine that has started."""
    it = EndpointEngine(far_settings(url, **endpoint))
    await it.start()
    try:
        yield it
    finally:
        await it.stop()
