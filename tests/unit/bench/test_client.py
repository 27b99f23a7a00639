import pytest

from tests.bench.client import ChunkedBody

_EVENTS = [b'data: {"a":1}\n\n', b"data: 2\n\n", b"data: [DONE]\n\n"]
_BODY = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in _EVENTS) + b"0\r\n\r\n"


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, 7, 1000])
def test_events_are_counted_wherever_the_network_cuts(piece_bytes: int) -> None:
    body = ChunkedBody()
    for start in range(0, len(_BODY), piece_bytes):
        assert not body.is_complete
        body.feed(_BODY[start : start + piece_bytes])
    assert body.is_complete
    assert body.events == 3


def test_an_event_cut_by_the_chunk_coding_counts_once() -> None:
    body = ChunkedBody()
    body.feed(b"3\r\nda\n\r\n")
    body.feed(b"2\r\nda\r\n8\r\nta: 1\n\n!\r\n0\r\n\r\n")
    assert body.events == 1
    assert body.is_complete


def test_a_body_without_its_last_chunk_is_not_complete() -> None:
    body = ChunkedBody()
    body.feed(_BODY[:-1])
    assert body.events == 3
    assert not body.is_complete


def test_bytes_after_the_last_chunk_are_an_error() -> None:
    with pytest.raises(ValueError, match="after the last chunk"):
        ChunkedBody().feed(_BODY + b"HTTP/1.1")


def test_what_is_no_chunk_is_an_error() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        ChunkedBody().feed(b"<html>\r\n")
