"""``python -m benchmarks.load.bare FOLDER``: take bytes from a socket, hash them and keep them, and nothing else.

It writes through the service's own artifact store, so that what it lacks is HTTP. Each sender has a process of its own
here, and no interpreter lock to share; it sends until it closes its half of the connection, and is told the digest.
"""

from __future__ import annotations

import socketserver
import sys
from pathlib import Path

from jobs.artifacts import CHUNK_BYTES, FolderStore


class Bare(socketserver.ForkingTCPServer):
    """Listens on a free port of the loopback interface."""

    request_queue_size = 64
    max_children = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Writer)
        self.store = FolderStore(folder)


class Writer(socketserver.StreamRequestHandler):
    """One sender's bytes."""

    def handle(self) -> None:
        """Keep them."""
        assert isinstance(self.server, Bare)  # noqa: S101 - for the type checker
        with self.server.store.writer() as writer:
            while data := self.rfile.read(CHUNK_BYTES):
                writer.write(data)
            self.wfile.write(writer.commit().sha256.encode())


if __name__ == "__main__":
    with Bare(Path(sys.argv[1])) as server:
        sys.stderr.write(f"listening on {server.server_address[1]}\n")
        sys.stderr.flush()
        server.serve_forever()
