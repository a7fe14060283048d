"""A body's bytes go from the socket to the application as they came.

h11 and uvicorn copy them five times on the way, while all other connections wait: it took half of the time
that hashing and writing them takes. Both are told here to hand on what came alone, whole. That hangs on private names
of libraries whose versions are pinned; where they change, the tests of bodies in pieces of any size say so.
"""

from __future__ import annotations

import asyncio

from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http import h11_impl

READ_BYTES = 1024**2
"""Read from a socket at once: four times what asyncio does, so that there is a fourth of the work around it."""


class UncopiedBuffer(ReceiveBuffer):
    """What has arrived and was not yet understood."""

    def __init__(self) -> None:
        self._arrived: bytes | None = None
        super().__init__()

    @property
    def _data(self) -> bytearray:  # as whatever looks for lines wants it
        if self._arrived is not None:
            self._kept += self._arrived
            self._arrived = None
        return self._kept

    @_data.setter
    def _data(self, data: bytearray) -> None:
        self._kept, self._arrived = data, None

    def __len__(self) -> int:
        return len(self._kept) + len(self._arrived or b"")

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iadd__(self, data: bytes | bytearray) -> UncopiedBuffer:
        if self:
            kept = self._data
            kept += data
        else:
            self._arrived = bytes(data)  # which bytes do not copy
        return self

    def maybe_extract_at_most(self, count: int) -> bytearray | bytes | None:  # type: ignore[override]
        """Take so many bytes; those that came alone, and are wanted whole, as they are."""
        if self._arrived is None or len(self._arrived) > count:
            return super().maybe_extract_at_most(count)
        whole, self._arrived = self._arrived, None
        self._next_line_search = self._multiple_lines_search = 0
        return whole


class Pieces:
    """What has come of a body since the application last asked for it."""

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []

    def __iadd__(self, piece: bytes | bytearray) -> Pieces:
        self._pieces.append(piece)
        return self

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def __bytes__(self) -> bytes:
        return bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)


class UncopiedCycle(h11_impl.RequestResponseCycle):
    """A request and its answer."""

    @property  # type: ignore[override]
    def body(self) -> Pieces:
        """What was not asked for yet; to set anything else makes it empty, as uvicorn does by a new bytearray."""
        return self._body

    @body.setter
    def body(self, body: Pieces | bytearray) -> None:
        self._body = body if isinstance(body, Pieces) else Pieces()


h11_impl.RequestResponseCycle = UncopiedCycle  # type: ignore[misc]  # the only way to have uvicorn make ours


def read_much(transport: asyncio.Transport) -> None:
    """Have a connection read ``READ_BYTES`` at once."""
    transport.max_size = READ_BYTES  # type: ignore[attr-defined]
