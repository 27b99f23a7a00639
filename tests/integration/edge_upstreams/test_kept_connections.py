"""Connections: kept, reused, dropped, encrypted."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.common.contracts.catalogue import Channel
from services.edge.upstreams.direct_transport import DirectTransport, TransportLimits
from services.edge.upstreams.transport import TransportError
from tests.integration.edge_upstreams.conftest import StartUpstream
from tests.integration.edge_upstreams.raw_server import raw_upstream
from tests.unit.edge_upstreams.channels import channel

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
async def direct() -> AsyncIterator[DirectTransport]:
    transport = DirectTransport(TransportLimits(keep_alive_seconds=0.3))
    yield transport
    await transport.close()


async def ask(transport: DirectTransport, to: Channel, body: bytes = b"{}") -> bytes:
    reply = await transport.send(to, to.credentials[0], "/chat/completions", body, {})
    return await reply.read_bounded(1_000_000)


class Counting:
    """A server that counts its connections and answers every request with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(self.reply)
        writer.close()


@contextlib.asynccontextmanager
async def counting(reply: bytes, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Counting]:
    found = Counting(reply)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    found.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield found
    finally:
        server.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("reply", "connections"),
    [
        (OK, 1),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", 3),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 3),
        (OK + b"HTTP/1.1 200 OK\r\n", 3),
    ],
    ids=["length", "chunked", "early hints", "close", "HTTP/1.0", "bytes after the reply"],
)
async def test_a_connection_is_used_again_when_it_may_be(
    direct: DirectTransport, reply: bytes, connections: int
) -> None:
    async with counting(reply) as server:
        for _ in range(3):
            assert await ask(direct, channel("a", base_url=server.url)) == b"{}"
        assert server.connections == connections


async def test_an_old_connection_is_dropped(direct: DirectTransport) -> None:
    async with counting(OK) as server:
        to = channel("a", base_url=server.url)
        await ask(direct, to)
        await asyncio.sleep(0.7)
        assert await ask(direct, to) == b"{}"
        assert server.connections == 2


async def test_a_body_without_length_ends_with_its_connection(direct: DirectTransport) -> None:
    async with raw_upstream(b"HTTP/1.1 200 OK\r\n\r\ndata: one\n\n") as url:
        assert await ask(direct, channel("a", base_url=url)) == b"data: one\n\n"


async def test_an_abandoned_reply_gives_no_connection_back(
    direct: DirectTransport, start_upstream: StartUpstream
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 3_000_000)

    upstream = await start_upstream(answer)
    to = upstream.channel()
    reply = await direct.send(to, to.credentials[0], "/chat/completions", b"{}", {})
    await reply.read_some()
    reply.close()
    assert (
        len(await (await direct.send(to, to.credentials[0], "/x", b"{}", {})).read_bounded(3_000_000))
        == 3_000_000
    )


async def test_too_many_connections_are_refused_and_not_waited_for() -> None:
    transport = DirectTransport(TransportLimits(connections_max=1))
    async with raw_upstream(b"HTTP/1.1 200 OK\r\n\r\n", hold=True) as url:
        to = channel("a", base_url=url)
        first = await transport.send(to, to.credentials[0], "/x", b"{}", {})
        with pytest.raises(TransportError) as caught:
            await transport.send(to, to.credentials[0], "/x", b"{}", {})
        assert caught.value.kind == "refused"
        first.close()
        await asyncio.sleep(0.05)
        (await transport.send(to, to.credentials[0], "/x", b"{}", {})).close()
    await transport.close()


async def test_an_endless_head_is_refused(direct: DirectTransport) -> None:
    async with raw_upstream(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000) as url:
        with pytest.raises(TransportError) as caught:
            await ask(direct, channel("a", base_url=url))
        assert caught.value.kind == "broken"


async def test_a_request_body_that_nobody_reads_does_not_keep_a_connection_open(
    direct: DirectTransport,
) -> None:
    gone = asyncio.Event()

    async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(never_reads, "127.0.0.1", 0)
    to = channel("a", base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    reply = await direct.send(to, to.credentials[0], "/x", b"x" * 50_000_000, {})
    assert reply.status == 413
    assert await reply.read_bounded(10) == b""
    await asyncio.wait_for(gone.wait(), 2)
    server.close()


def self_signed(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and that of a client who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "upstream.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


async def test_tls_connections_are_verified_used_and_kept(tmp_path: Path, direct: DirectTransport) -> None:
    server_context, client_context = self_signed(tmp_path)
    trusting = DirectTransport(tls=client_context)
    async with counting(OK, tls=server_context) as server:
        to = channel("a", base_url=server.url)
        for _ in range(3):
            assert await ask(trusting, to) == b"{}"
        assert server.connections == 1
        with pytest.raises(TransportError) as caught:
            await ask(direct, to)
        assert caught.value.kind == "refused"
        await trusting.close()
