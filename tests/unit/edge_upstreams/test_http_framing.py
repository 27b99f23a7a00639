"""Heads and bodies of HTTP/1.1 replies, strictly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.upstreams.http_body import body_reader
from services.edge.upstreams.http_head import (
    BadReply,
    Framing,
    Origin,
    ReplyHead,
    read_head,
    request_head,
    target_of,
)

CHUNKED = ReplyHead(200, {}, Framing.CHUNKED, 0, True)


def head_of(*lines: str, status: str = "HTTP/1.1 200 OK") -> ReplyHead:
    return read_head("\r\n".join([status, *lines]).encode("latin-1"))


def test_a_head_is_read() -> None:
    head = head_of("Content-Type:text/event-stream ", "X-A: 1", "x-a:\t2", "Content-Length: 5")
    assert head.headers == {"content-type": "text/event-stream", "x-a": "1, 2", "content-length": "5"}
    assert (head.status, head.framing, head.body_bytes, head.keeps_alive) == (200, Framing.LENGTH, 5, True)


@pytest.mark.parametrize(
    ("status", "lines", "framing", "keeps_alive"),
    [
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: Chunked"], Framing.CHUNKED, True),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked", "Content-Length: 3"], Framing.CHUNKED, False),
        ("HTTP/1.1 200 OK", [], Framing.UNTIL_CLOSE, False),
        ("HTTP/1.1 204", ["Content-Length: 3"], Framing.NONE, True),
        ("HTTP/1.1 304 Not Modified", [], Framing.NONE, True),
        ("HTTP/1.1 200 OK", ["Content-Length: 0"], Framing.NONE, True),
        ("HTTP/1.1 200 OK", ["Content-Length: 3", "Connection: Close"], Framing.LENGTH, False),
        ("HTTP/1.0 200 OK", ["Content-Length: 3"], Framing.LENGTH, False),
        ("HTTP/1.0 200 OK", ["Content-Length: 3", "Connection: keep-alive"], Framing.LENGTH, True),
    ],
    ids=str,
)
def test_the_body_is_framed_as_the_standard_says(
    status: str, lines: list[str], framing: Framing, keeps_alive: bool
) -> None:
    head = head_of(*lines, status=status)
    assert (head.framing, head.keeps_alive) == (framing, keeps_alive)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 3, 3"],
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: -1"],
        ["Content-Length: +1"],
        ["Content-Length: 0x1"],
        ["Content-Length: "],
        ["Content-Length: 99999999999999999999"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: identity"],
        ["Content-Length : 3"],
        ["X: 1", " folded"],
        ["no colon"],
        [": no name"],
        ["X: a\nContent-Length: 3"],
    ],
    ids=str,
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(lines: list[str]) -> None:
    with pytest.raises(BadReply):
        head_of(*lines)


@pytest.mark.parametrize(
    "status", ["HTTP/2 200", "HTTP/1.1 20", "HTTP/1.1 abc", "SSH-2.0", "", "HTTP/1.1  200"]
)
def test_other_status_lines_are_refused(status: str) -> None:
    with pytest.raises(BadReply):
        head_of(status=status)


def chunked(pieces: list[bytes], extension: bytes, trailers: bytes) -> bytes:
    chunks = b"".join(b"%X%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces if piece)
    return chunks + b"000\r\n" + trailers + b"\r\n"


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=30), max_size=5),
    extension=st.sampled_from([b"", b";a=b", b" ; x"]),
    trailers=st.sampled_from([b"", b"X: 1\r\n"]),
    rest=st.sampled_from([b"", b"HTTP"]),
    size=st.integers(1, 40),
)
def test_a_chunked_body_comes_out_of_any_split(
    pieces: list[bytes], extension: bytes, trailers: bytes, rest: bytes, size: int
) -> None:
    stream = chunked(pieces, extension, trailers) + rest
    reader = body_reader(CHUNKED)
    body = left = b""
    for at in range(0, len(stream), size):
        assert (not reader.is_complete) or left or at >= len(stream) - len(rest)
        if reader.is_complete:
            left += stream[at : at + size]
            continue
        found, over = reader.feed(stream[at : at + size])
        body += found
        left += over
    assert (body, left, reader.is_complete) == (b"".join(pieces), rest, True)


@pytest.mark.parametrize(
    "stream",
    [
        b"zz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"1_0\r\n",
        b"0x1\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n\r",
        b"FFFFFFFFFFFFFFFFF\r\n",
        b"1" * 5_000,
        b"0\r\n" + b"X: 1\r\n" * 100,
    ],
    ids=range(11),
)
def test_a_chunked_body_that_is_none_is_refused(stream: bytes) -> None:
    with pytest.raises(BadReply):
        body_reader(CHUNKED).feed(stream)


def test_a_counted_body_ends_where_it_says() -> None:
    reader = body_reader(ReplyHead(200, {}, Framing.LENGTH, 5, True))
    assert reader.feed(b"abc") == (b"abc", b"")
    assert not reader.is_complete
    assert reader.feed(b"defg") == (b"de", b"fg")
    assert reader.is_complete


@pytest.mark.parametrize(
    ("base_url", "origin", "host", "path"),
    [
        ("https://api.openai.com/v1", Origin("api.openai.com", 443, True), "api.openai.com", "/v1/x"),
        ("http://127.0.0.1:8000/v1/", Origin("127.0.0.1", 8000, False), "127.0.0.1:8000", "/v1/x"),
        ("http://[::1]:8000", Origin("::1", 8000, False), "[::1]:8000", "/x"),
        (
            "https://bücher.example/a b",
            Origin("xn--bcher-kva.example", 443, True),
            "xn--bcher-kva.example",
            "/a%20b/x",
        ),
    ],
)
def test_addresses_are_read(base_url: str, origin: Origin, host: str, path: str) -> None:
    assert target_of(base_url, "/x") == (origin, host, path)


@pytest.mark.parametrize(
    "base_url", ["", "x", "ftp://a", "http://", "http://u:p@a", "http://a:99999", "file:///etc"]
)
def test_other_addresses_are_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        target_of(base_url, "/x")


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b", "€"])
def test_a_header_can_not_break_out_of_its_line(value: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        request_head(target_of("http://a", "/x"), {"x": value}, 0)
