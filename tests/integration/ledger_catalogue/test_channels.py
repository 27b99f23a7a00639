"""Channels, their secrets, and the routing that edges wait for."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import msgspec
import pytest

from services.common.contracts.catalogue import CredentialReport, EdgeRegistration
from services.common.ids import ChannelId, EdgeId
from services.common.settings import Secret
from services.ledger.app import LedgerApps, open_apps
from services.ledger.settings import LedgerSettings
from tests.integration.ledger_catalogue.conftest import Api, Edge, api_of, edge_of, new_encryption_key

PUBLIC = "http://93.184.216.34/v1"
SECRET = "sk-upstream-0123456789abcdef"


def channel(**changes: Any) -> dict[str, Any]:
    return {"name": "main", "base_url": PUBLIC, "credentials": [SECRET], **changes}


async def test_a_channel_reaches_a_waiting_edge_within_a_second(api: Api, edge: Edge) -> None:
    first = await edge.routing()
    assert first.channels == ()
    assert len(first.catalogue.models) > 50
    waiting = asyncio.create_task(edge.routing(first.revision))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    started = time.monotonic()
    made = await api.call(
        "POST", "/channels", channel(models={"gpt-4o": "gpt-4o-2024-08-06"}, headers={"X-Org": "7"})
    )
    second = await waiting
    assert time.monotonic() - started < 1
    assert second.revision > first.revision
    (found,) = second.channels
    assert (found.id, found.base_url, found.models) == (made["id"], PUBLIC, {"gpt-4o": "gpt-4o-2024-08-06"})
    assert found.headers == {"x-org": "7"}
    assert [credential.secret for credential in found.credentials] == [SECRET]


async def test_an_edge_that_waits_in_vain_gets_the_same_revision(edge: Edge) -> None:
    first = await edge.routing()
    assert (await edge.routing(first.revision, wait_ms=50)).revision == first.revision


async def test_an_edge_that_is_ahead_of_a_restored_database_is_answered_at_once(edge: Edge) -> None:
    first = await edge.routing()
    assert (await edge.routing(first.revision + 1_000)).revision == first.revision


async def test_a_price_change_wakes_the_edges_too(api: Api, edge: Edge) -> None:
    first = await edge.routing()
    waiting = asyncio.create_task(edge.routing(first.revision))
    await api.call("PUT", "/models/gpt-4o/price", {"input": 1, "output": 1})
    second = await asyncio.wait_for(waiting, 2)
    assert second.catalogue.revision > first.catalogue.revision


async def test_edges_hear_of_changes_again_after_the_listening_connection_was_lost(
    api: Api, edge: Edge, apps: LedgerApps
) -> None:
    first = await edge.routing()
    waiting = asyncio.create_task(edge.routing(first.revision))
    await asyncio.sleep(0.1)
    killed = await apps.ledger.database.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    assert len(killed) == 1
    await api.call("POST", "/channels", channel())
    assert (await asyncio.wait_for(waiting, 4)).channels


async def test_no_answer_ever_holds_a_secret(api: Api, apps: LedgerApps) -> None:
    made = await api.call("POST", "/channels", channel())
    changed = await api.call(
        "PATCH", f"/channels/{made['id']}", {"add_credentials": ["sk-another-9876543210"]}
    )
    listed = await api.call("GET", "/channels")
    audited = await api.call("GET", "/audit")
    for answer in (made, changed, listed, audited):
        text = msgspec.json.encode(answer).decode()
        assert SECRET not in text
        assert "sk-another" not in text
    assert [credential["hint"] for credential in changed["credentials"]] == ["…cdef", "…3210"]
    stored = await apps.ledger.database.fetch("SELECT secret FROM channel_credential")
    assert all(SECRET.encode() not in row["secret"] for row in stored)


async def test_a_stored_secret_that_is_moved_to_another_row_opens_nothing(
    api: Api, edge: Edge, apps: LedgerApps
) -> None:
    await api.call("POST", "/channels", channel(credentials=[SECRET, "sk-second-0123456789"]))
    await apps.ledger.database.execute(
        "UPDATE channel_credential SET secret = (SELECT min(secret::text)::bytea FROM channel_credential)"
    )
    (found,) = (await edge.routing()).channels
    assert len(found.credentials) == 1


async def test_a_refused_credential_is_set_aside_until_an_operator_activates_it(api: Api, edge: Edge) -> None:
    made = await api.call("POST", "/channels", channel(credentials=[SECRET, "sk-second-0123456789"]))
    before = await edge.routing()
    refused = before.channels[0].credentials[0]
    report = CredentialReport(
        channel_id=ChannelId(made["id"]), credential_id=refused.id, status=401, edge_id=EdgeId("edge-1")
    )
    assert await edge.post("/channels/credential_report", report) == {"set_aside": True}
    assert await edge.post("/channels/credential_report", report) == {"set_aside": False}
    after = await edge.routing(before.revision)
    assert refused.id not in {credential.id for credential in after.channels[0].credentials}
    (shown,) = (await api.call("GET", "/channels"))["channels"]
    states = {credential["id"]: credential for credential in shown["credentials"]}
    assert states[refused.id]["state"] == "set_aside"
    assert states[refused.id]["set_aside_status"] == 401
    entry = (await api.call("GET", "/audit"))["entries"][0]
    assert (entry["actor"], entry["action"]) == ("edge:edge-1", "channel.credential_set_aside")
    await api.call("PATCH", f"/channels/{made['id']}", {"activate_credentials": [refused.id]})
    assert len((await edge.routing(after.revision)).channels[0].credentials) == 2


async def test_a_status_that_refuses_no_credential_sets_none_aside(api: Api, edge: Edge) -> None:
    made = await api.call("POST", "/channels", channel())
    credential_id = made["credentials"][0]["id"]
    report = CredentialReport(
        channel_id=ChannelId(made["id"]), credential_id=credential_id, status=500, edge_id=EdgeId("e")
    )
    with pytest.raises(AssertionError, match="401, 402 and 403"):
        await edge.post("/channels/credential_report", report)
    assert (await api.call("GET", "/channels"))["channels"][0]["credentials"][0]["state"] == "active"


async def test_changing_disabling_and_deleting_a_channel(api: Api, edge: Edge) -> None:
    made = await api.call("POST", "/channels", channel(models=["gpt-4o", "o1"]))
    assert made["models"] == {"gpt-4o": "gpt-4o", "o1": "o1"}
    path = f"/channels/{made['id']}"
    changed = await api.call("PATCH", path, {"priority": 7, "models": None, "weight": 3})
    assert (changed["priority"], changed["models"], changed["weight"], changed["name"]) == (
        7,
        None,
        3,
        "main",
    )
    assert changed["revision"] == made["revision"] + 1
    assert (await edge.routing()).channels[0].priority == 7
    await api.call("PATCH", path, {"enabled": False})
    assert (await edge.routing()).channels == ()
    await api.call("DELETE", path)
    assert (await api.call("GET", "/channels"))["channels"] == []
    for method, body in (("PATCH", {"weight": 1}), ("DELETE", None)):
        assert (await api.call(method, path, body, status=404))["error"]["code"] == "not_found"
    actions = [entry["action"] for entry in (await api.call("GET", f"/audit?target={made['id']}"))["entries"]]
    assert actions == ["channel.delete", "channel.change", "channel.change", "channel.create"]


REFUSED_CHANNELS: list[tuple[dict[str, Any], str]] = [
    ({"base_url": "http://127.0.0.1:9/v1"}, "base_url"),
    ({"base_url": "http://localhost/v1"}, "base_url"),
    ({"base_url": "http://169.254.169.254/v1"}, "base_url"),
    ({"base_url": "http://10.1.2.3/v1"}, "base_url"),
    ({"base_url": "http://[::1]/v1"}, "base_url"),
    ({"base_url": "http://[::ffff:192.168.0.1]/v1"}, "base_url"),
    ({"base_url": "http://2130706433/v1"}, "base_url"),
    ({"base_url": "http://no-such-host.invalid/v1"}, "base_url"),
    ({"base_url": "ftp://93.184.216.34/v1"}, "base_url"),
    ({"base_url": "http://93.184.216.34"}, "base_url"),
    ({"base_url": "http://u:p@93.184.216.34/v1"}, "base_url"),
    ({"base_url": PUBLIC + "?a=b"}, "base_url"),
    ({"headers": {"Authorization": "Bearer x"}}, "headers"),
    ({"headers": {"Host": "x"}}, "headers"),
    ({"headers": {"content-length": "1"}}, "headers"),
    ({"headers": {"x": "a\r\nb: c"}}, "headers"),
    ({"headers": {"x y": "a"}}, "headers"),
    ({"credentials": []}, "credentials"),
    ({"credentials": ["with space"]}, "credentials"),
    ({"kind": "telnet"}, "kind"),
    ({"weight": 0}, "weight"),
    ({"priority": 100_000}, "priority"),
    ({"connect_timeout_ms": 0}, "connect_timeout_ms"),
    ({"models": {}}, "models"),
    ({"surprise": 1}, "surprise"),
    ({"name": " "}, "name"),
]


async def test_a_channel_that_cannot_be_is_refused(api: Api) -> None:
    for changes, param in REFUSED_CHANNELS:
        answer = await api.call("POST", "/channels", channel(**changes), status=400)
        assert answer["error"]["param"] == param, changes
    assert (await api.call("GET", "/channels"))["channels"] == []


async def test_a_private_address_is_allowed_when_the_operator_says_so(api: Api) -> None:
    made = await api.call(
        "POST", "/channels", channel(base_url="http://127.0.0.1:9/v1/", allow_private_addresses=True)
    )
    assert made["base_url"] == "http://127.0.0.1:9/v1"
    refused = await api.call(
        "PATCH", f"/channels/{made['id']}", {"allow_private_addresses": False}, status=400
    )
    assert refused["error"]["code"] == "invalid_base_url"


async def test_a_name_is_taken_once(api: Api) -> None:
    await api.call("POST", "/channels", channel())
    assert (await api.call("POST", "/channels", channel(), status=409))["error"]["param"] == "name"


async def test_the_last_credential_cannot_be_removed(api: Api) -> None:
    made = await api.call("POST", "/channels", channel())
    credential_id = made["credentials"][0]["id"]
    path = f"/channels/{made['id']}"
    await api.call("PATCH", path, {"remove_credentials": [credential_id]}, status=400)
    await api.call("PATCH", path, {"remove_credentials": ["cred_unknown"]}, status=404)
    replaced = await api.call(
        "PATCH", path, {"remove_credentials": [credential_id], "add_credentials": ["sk-new-0123456789"]}
    )
    assert [credential["hint"] for credential in replaced["credentials"]] == ["…6789"]


async def test_the_command_lines_channel_serves_only_what_no_other_serves(settings: LedgerSettings) -> None:
    given = dataclasses.replace(
        settings, upstream_base_url="http://127.0.0.1:9/v1", upstream_api_key=Secret("sk-command-line")
    )
    async with open_apps(given, database_wait_s=0) as apps, edge_of(apps) as edge, api_of(apps) as api:
        (alone,) = (await edge.routing()).channels
        assert (alone.id, alone.models) == ("command-line", None)
        assert alone.credentials[0].secret == "sk-command-line"
        made = await api.call("POST", "/channels", channel(models=["gpt-4o"], priority=-1000))
        found = {row.id: row for row in (await edge.routing()).channels}
        rest = found[ChannelId("command-line")]
        assert rest.models is not None
        assert "gpt-4o" not in rest.models
        assert "gpt-4o-mini" in rest.models
        assert rest.priority < found[made["id"]].priority
        # A channel whose credentials are all refused still owns its models.
        report = CredentialReport(
            channel_id=made["id"],
            credential_id=made["credentials"][0]["id"],
            status=403,
            edge_id=EdgeId("e"),
        )
        await edge.post("/channels/credential_report", report)
        (rest,) = (await edge.routing()).channels
        assert rest.id == "command-line"
        assert "gpt-4o" not in (rest.models or {})
        await api.call("PATCH", f"/channels/{made['id']}", {"models": None})
        assert (await edge.routing()).channels == ()
        await api.call("DELETE", f"/channels/{made['id']}")
        assert (await edge.routing()).channels == (alone,)


async def test_another_command_line_upstream_is_a_new_revision_and_the_same_one_is_not(
    settings: LedgerSettings,
) -> None:
    revisions = []
    for url in ("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1", ""):
        given = dataclasses.replace(settings, upstream_base_url=url)
        async with open_apps(given, database_wait_s=0) as apps, edge_of(apps) as edge:
            revisions.append((await edge.routing()).revision)
    assert revisions[0] == revisions[1] < revisions[2] < revisions[3]


async def test_a_rotated_key_still_opens_what_the_old_one_closed_and_encrypts_it_anew(
    settings: LedgerSettings,
) -> None:
    async with open_apps(settings, database_wait_s=0) as apps, api_of(apps) as api:
        await api.call("POST", "/channels", channel())
    key = Secret(new_encryption_key())
    rotated = dataclasses.replace(settings, encryption_key=key, encryption_keys_old=settings.encryption_key)
    async with open_apps(rotated, database_wait_s=0) as apps, edge_of(apps) as edge:
        assert (await edge.routing()).channels[0].credentials[0].secret == SECRET
    # The old key is not needed any more.
    alone = dataclasses.replace(settings, encryption_key=key)
    async with open_apps(alone, database_wait_s=0) as apps, edge_of(apps) as edge:
        assert (await edge.routing()).channels[0].credentials[0].secret == SECRET
    # Without its key a credential is left out, and counted; the ledger serves on.
    lost = dataclasses.replace(settings, encryption_key=Secret(new_encryption_key()))
    async with open_apps(lost, database_wait_s=0) as apps, edge_of(apps) as edge:
        assert (await edge.routing()).channels == ()
        assert apps.ledger.metrics.registry.get_sample_value("meterway_ledger_credentials_unreadable") == 1


async def test_an_edge_registers_and_registers_again(edge: Edge, apps: LedgerApps) -> None:
    for incarnation in ("one", "two"):
        body = EdgeRegistration(edge_id=EdgeId("edge-1"), incarnation=incarnation, internal_url="http://e:1")
        assert await edge.post("/edges", body) == {"edge_id": "edge-1"}
    rows = await apps.ledger.database.fetch("SELECT id, incarnation FROM edge")
    assert [tuple(row) for row in rows] == [("edge-1", "two")]


async def test_routing_needs_the_internal_credential(edge: Edge) -> None:
    async with edge.client.get("/internal/v1/routing") as response:
        assert response.status == 401
