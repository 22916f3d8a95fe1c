"""`python -m tests.small_ingress PORT`: an ingress as HAProxy sees one.

It answers with its port, after as many seconds as the header `x-wait` says, with the status of
`x-status`, and fills up to `x-size` bytes; `/held` tells how many answers it is at.
"""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        if self.path == "/held":
            self._send(str(_Handler.held).encode())
        elif self.path == "/-/healthz":
            self._send(b"success")
        else:
            self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer()

    def _answer(self) -> None:
        self._count(1)
        try:
            time.sleep(float(self.headers.get("x-wait", 0)))
            body = str(self.server.server_address[1]).encode()
            status = int(self.headers.get("x-status", 200))
            self._send(body.ljust(int(self.headers.get("x-size", 0))), status)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with _Handler.lock:
            _Handler.held += change

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients leave."""


if __name__ == "__main__":
    _Server(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
