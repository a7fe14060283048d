"""Bodies that are not copied are the bodies that would have been."""

from __future__ import annotations

from collections.abc import Sequence

import h11
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http import h11_impl

from api.uncopied import Pieces, UncopiedBuffer, UncopiedCycle

HEAD = b"PUT /v1/files HTTP/1.1\r\nHost: x\r\n"

Seen = list[bytes | type[h11.Event]]


def whole(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def chunked(chunks: Sequence[bytes]) -> bytes:
    framed = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(framed) + b"0\r\n\r\n"


def seen_by(connection: h11.Connection, arriving: Sequence[bytes]) -> Seen:
    """Take what arrives and answer each request; neighbouring data is one."""
    seen: Seen = []
    for data in arriving:
        connection.receive_data(data)
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            assert isinstance(event, h11.Event)
            if isinstance(event, h11.Data) and seen and isinstance(seen[-1], bytes):
                seen[-1] += bytes(event.data)
            else:
                seen.append(bytes(event.data) if isinstance(event, h11.Data) else type(event))
            if isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
    return seen


bodies = st.binary(max_size=40) | st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
requests = st.lists(st.builds(whole, bodies) | st.builds(chunked, st.lists(bodies, max_size=3)), max_size=3)


@given(requests, st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_requests_are_understood_alike_however_they_arrive(sent: list[bytes], lengths: list[int]) -> None:
    data, arriving = b"".join(sent), []
    for length in lengths:
        arriving.append(data[:length])
        data = data[length:]
    arriving = [some for some in (*arriving, data) if some]  # nothing at all would be the end
    usual, ours = h11.Connection(h11.SERVER), h11.Connection(h11.SERVER)
    ours._receive_buffer = UncopiedBuffer()
    assert seen_by(ours, arriving) == seen_by(usual, arriving)
    assert bytes(ours._receive_buffer) == bytes(usual._receive_buffer)


def test_what_comes_alone_and_is_wanted_whole_is_the_same_object() -> None:
    buffer, data = UncopiedBuffer(), bytes(1000)
    buffer += data
    assert len(buffer) == 1000
    taken = buffer.maybe_extract_at_most(1000)
    assert taken is data
    assert not buffer
    pieces = Pieces()
    pieces += data
    assert bytes(pieces) is data


@given(st.lists(st.binary(max_size=5)))
def test_pieces_are_what_came(sent: list[bytes]) -> None:
    pieces = Pieces()
    for piece in sent:
        pieces += bytearray(piece)
    assert (bytes(pieces), len(pieces)) == (b"".join(sent), len(b"".join(sent)))


def test_uvicorn_makes_our_cycles() -> None:
    assert h11_impl.RequestResponseCycle is UncopiedCycle
