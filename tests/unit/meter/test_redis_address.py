"""REDIS_URL."""

import pytest

from services.meter.redis_address import RedisAddress


def test_a_url_names_user_password_host_port_and_database() -> None:
    address = RedisAddress.parse("redis://meter:p%40ss@redis.local:7000/2")
    assert (address.username, address.password) == ("meter", "p@ss")
    assert (address.host, address.port, address.database, address.tls) == ("redis.local", 7000, 2, False)


def test_the_port_is_6379_and_tls_comes_with_rediss() -> None:
    address = RedisAddress.parse("rediss://redis.local")
    assert (address.port, address.database, address.tls, address.password) == (6379, 0, True, "")


def test_a_socket_file_is_an_address() -> None:
    assert RedisAddress.parse("unix:///run/redis.sock").unix_path == "/run/redis.sock"


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://x", "redis://", "redis://x:no/0", "redis://x/y"]
)
def test_anything_else_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL must"):
        RedisAddress.parse(url)


def test_the_password_is_never_shown() -> None:
    assert "secret" not in repr(RedisAddress.parse("redis://meter:secret@localhost"))
