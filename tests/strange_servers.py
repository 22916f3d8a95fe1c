"""Web servers on loopback that do what they please, for tests of what is fetched."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Strange:
    """One that answers by a function.

    Attributes:
        asked: the paths so far.
        gone: set when the test is over, for answers that wait.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.asked: list[str] = []
        self.gone = threading.Event()


@contextlib.contextmanager
def strange_server(answer: Answer) -> Iterator[Strange]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            it.asked.append(self.path)
            with contextlib.suppress(ConnectionError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        it = Strange(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield it
        finally:
            it.gone.set()
            server.shutdown()
            thread.join()


def redirect(to: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("location", to)
        request.send_header("content-length", "0")
        request.end_headers()

    return answer


def say(body: bytes, length: int | None = None) -> Answer:
    """The same to all; its length may be a lie."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-length", str(len(body) if length is None else length))
        request.end_headers()
        request.wfile.write(body)

    return answer
