"""The operators' API: accounts, keys, who may call it, and its own description."""

from __future__ import annotations

import base64
import dataclasses
import re
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from argon2 import PasswordHasher

from services.common.errors import BadRequest
from services.common.money import PriceVector
from services.common.settings import Secret
from services.ledger.api.routes import ENDPOINTS
from services.ledger.app import LedgerApps, open_apps
from services.ledger.operators import LoginThrottle, Operators
from services.ledger.settings import LedgerSettings
from tests.integration.ledger_catalogue.conftest import TOKEN, Api, Meter, api_of

PASSWORD = "correct horse battery"
# The strength of the hash is not what these tests are about.
QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


def basic(email: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{email}:{password}".encode()).decode()}


async def test_an_account_is_created_credited_and_looked_at(api: Api) -> None:
    account_id = (await api.call("POST", "/accounts", {"email": "Ann@Example.com"}))["account_id"]
    assert (await api.call("GET", f"/accounts/{account_id}"))["email"] == "ann@example.com"
    credited = await api.call(
        "POST", f"/accounts/{account_id}/credits", {"usd": "1.500000001", "reason": "gift", "ref": "r1"}
    )
    assert credited["balance_nanos"] == credited["available_nanos"] == 1_500_000_001
    again = await api.call(
        "POST", f"/accounts/{account_id}/credits", {"usd": "1.500000001", "reason": "gift", "ref": "r1"}
    )
    assert (again["is_new"], again["balance_nanos"]) == (False, 1_500_000_001)
    taken = await api.call("POST", f"/accounts/{account_id}/credits", {"usd": -0.5, "reason": "error"})
    assert taken["balance_nanos"] == 1_000_000_001
    balance = await api.call("GET", f"/accounts/{account_id}/balance")
    assert {
        name: balance[name] for name in ("account_id", "balance_nanos", "held_nanos", "available_nanos")
    } == {
        "account_id": account_id,
        "balance_nanos": 1_000_000_001,
        "held_nanos": 0,
        "available_nanos": 1_000_000_001,
    }
    journal = (await api.call("GET", f"/journal?account={account_id}"))["transactions"]
    assert len(journal) == 2
    for transaction in journal:
        assert sum(entry["amount_nanos"] for entry in transaction["entries"]) == 0
        assert transaction["actor"] == "token"
    assert journal == (await api.call("GET", "/journal"))["transactions"]
    assert (await api.call("GET", f"/accounts/{account_id}/usage"))["rows"] == []
    assert [row["account_id"] for row in (await api.call("GET", "/accounts"))["accounts"]] == [account_id]


async def test_lists_are_paged(api: Api) -> None:
    made = sorted([(await api.call("POST", "/accounts", {}))["account_id"] for _ in range(3)])
    first = await api.call("GET", "/accounts?limit=2")
    rest = await api.call("GET", f"/accounts?limit=2&after={first['next_after']}")
    assert [row["account_id"] for row in (*first["accounts"], *rest["accounts"])] == made
    assert rest["next_after"] is None
    entries = await api.call("GET", "/audit?limit=2")
    older = await api.call("GET", f"/audit?limit=2&before={entries['next_before']}")
    assert [row["id"] for row in entries["entries"]] > [row["id"] for row in older["entries"]]


async def test_a_key_is_made_changed_disabled_and_enabled_and_the_meters_know(api: Api, meter: Meter) -> None:
    account_id = (await api.call("POST", "/accounts"))["account_id"]
    made = await api.call(
        "POST",
        f"/accounts/{account_id}/keys",
        {
            "name": "phone",
            "quota_usd": "2.5",
            "models": ["gpt-4o"],
            "addresses": ["10.0.0.0/8"],
            "requests_per_minute": 60,
            "expires_at": "2030-01-01T00:00:00Z",
        },
    )
    assert made["api_key"].startswith("sk-")
    (snapshot,) = meter.configured[-1].keys
    assert snapshot.key_id == made["key_id"]
    assert snapshot.limits.quota_nanos == 2_500_000_000
    assert snapshot.limits.expires_at_ms == 1_893_456_000_000
    path = f"/keys/{made['key_id']}"
    changed = await api.call("PATCH", path, {"quota_usd": None, "concurrency": 3})
    assert changed["limits"]["quota_nanos"] is None
    assert changed["limits"]["requests_per_minute"] == 60
    (after,) = meter.configured[-1].keys
    assert (after.limits.quota_nanos, after.limits.concurrency, after.limits.models) == (None, 3, ("gpt-4o",))
    assert after.revision > snapshot.revision
    await api.call("POST", f"{path}/disable")
    assert meter.configured[-1].keys[0].key_state == "disabled"
    await api.call("POST", f"{path}/enable", {})
    assert meter.configured[-1].keys[0].key_state == "active"
    (listed,) = (await api.call("GET", f"/accounts/{account_id}/keys"))["keys"]
    assert (listed["key_id"], listed["name"], listed["state"]) == (made["key_id"], "phone", "active")
    assert made["api_key"] not in str(listed)
    await api.call("POST", f"/accounts/{account_id}/suspend")
    assert meter.configured[-1].keys[0].account_state == "suspended"
    assert (await api.call("POST", f"/accounts/{account_id}/resume"))["state"] == "active"
    actions = {row["action"] for row in (await api.call("GET", f"/audit?target={made['key_id']}"))["entries"]}
    assert actions == {"key.create", "key.change_limits", "key.set_state"}


REFUSED_REQUESTS: list[tuple[str, str, Any, str]] = [
    ("POST", "/accounts", {"email": "nobody"}, "email"),
    ("POST", "/accounts", {"e_mail": "a@b.c"}, "e_mail"),
    ("POST", "/accounts/{}/credits", {"usd": "1"}, "reason"),
    ("POST", "/accounts/{}/credits", {"usd": "0.0000000001", "reason": "x"}, "usd"),
    ("POST", "/accounts/{}/credits", {"usd": "Infinity", "reason": "x"}, "usd"),
    ("POST", "/accounts/{}/credits", {"usd": True, "reason": "x"}, "usd"),
    ("POST", "/accounts/{}/credits", {"usd": "10000000", "reason": "x"}, "usd"),
    ("POST", "/accounts/{}/keys", {"quota_usd": "-1"}, "quota_usd"),
    ("POST", "/accounts/{}/keys", {"quota_usd": "1", "unlimited": True}, "unlimited"),
    ("POST", "/accounts/{}/keys", {"concurrency": 1.5}, "concurrency"),
    ("POST", "/accounts/{}/keys", {"addresses": ["here"]}, "addresses"),
    ("POST", "/accounts/{}/keys", {"expires_at": "tomorrow"}, "expires_at"),
    ("GET", "/accounts/{}/usage?limit=0", None, "limit"),
    ("GET", "/accounts/{}/usage?before=x", None, "before"),
    ("GET", "/accounts?page=2", None, "page"),
    ("GET", "/journal?before=x", None, "before"),
]


async def test_what_is_not_valid_is_refused_and_the_field_named(api: Api) -> None:
    account_id = (await api.call("POST", "/accounts"))["account_id"]
    for method, path, body, param in REFUSED_REQUESTS:
        answer = await api.call(method, path.format(account_id), body, status=400)
        assert answer["error"]["param"] == param, body
        assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_a_body_that_is_no_object_is_refused(api: Api) -> None:
    for body in (b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'"x"'):
        answer = await api.call("POST", "/accounts", body, status=400)
        assert answer["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    answer = await api.call("POST", "/accounts", b" " * 1_100_000, status=413)
    assert answer["error"]["code"] == "request_too_large"


MISSING: list[tuple[str, str]] = [
    ("GET", "/accounts/acct_none"),
    ("GET", "/accounts/acct_none/balance"),
    ("GET", "/accounts/acct_none/usage"),
    ("GET", "/accounts/acct_none/keys"),
    ("POST", "/accounts/acct_none/suspend"),
    ("POST", "/accounts/acct_none/keys"),
    ("POST", "/keys/key_none/disable"),
    ("PATCH", "/keys/key_none"),
    ("GET", "/journal?account=acct_none"),
    ("GET", "/nothing/here"),
]


async def test_what_does_not_exist_is_404_in_the_apis_shape(api: Api) -> None:
    for method, path in MISSING:
        answer = await api.call(method, path, {} if method != "GET" else None, status=404)
        assert answer["error"]["code"].endswith("not_found")


async def test_a_wrong_method_is_405_and_says_which_are_right(api: Api) -> None:
    answer = await api.call("DELETE", "/accounts", status=405)
    assert answer["error"]["code"] == "method_not_allowed"


async def test_an_email_has_one_account(api: Api) -> None:
    await api.call("POST", "/accounts", {"email": "a@example.com"})
    assert (await api.call("POST", "/accounts", {"email": "A@example.com"}, status=409))["error"][
        "param"
    ] == "email"


WRONG_CREDENTIALS = ["", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Basic !!!", TOKEN]


async def test_without_the_operators_credential_nothing_is_answered(api: Api) -> None:
    for authorization in (*WRONG_CREDENTIALS, "Bearer \xff"):
        for endpoint in ENDPOINTS:
            path = re.sub(r"\{\w+\}", "x", endpoint.path)
            answer = await api.call(
                endpoint.method, path, status=401, headers={"Authorization": authorization}
            )
            assert answer["error"]["code"] == "invalid_credential"


async def test_a_page_of_another_site_can_do_nothing(api: Api) -> None:
    answer = await api.call("GET", "/accounts", status=403, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer["error"]["code"] == "cross_site_request"


async def test_an_operator_logs_in_by_email_and_password(api: Api, apps: LedgerApps) -> None:
    operators = Operators(apps.ledger.database)
    assert await operators.create_or_reset_admin("Boss@Example.com", PASSWORD)
    assert not await operators.create_or_reset_admin("boss@example.com", PASSWORD + "2")
    account = await api.call("POST", "/accounts", {}, headers=basic("boss@example.com", PASSWORD + "2"))
    (entry,) = (await api.call("GET", f"/audit?target={account['account_id']}"))["entries"]
    assert entry["actor"] == "operator:boss@example.com"
    await api.call("GET", "/accounts", status=401, headers=basic("boss@example.com", PASSWORD))
    await api.call("GET", "/accounts", status=401, headers=basic("nobody@example.com", PASSWORD))
    stored = await apps.ledger.database.fetchval("SELECT password_hash FROM operator")
    assert stored.startswith("$argon2id$")
    assert "password" not in str(
        (await api.call("GET", "/audit?target=boss@example.com"))["entries"][0]["detail"]
    )


async def test_guessing_a_password_is_stopped(apps: LedgerApps) -> None:
    now = 0.0
    operators = Operators(apps.ledger.database, LoginThrottle(clock=lambda: now), hasher=QUICK)
    await operators.create_or_reset_admin("boss@example.com", PASSWORD)
    for _ in range(10):
        with pytest.raises(Exception, match="missing or wrong"):
            await operators.verify("boss@example.com", "wrong password", client_address="192.0.2.1")
    with pytest.raises(Exception, match="Too many failed logins"):
        await operators.verify("boss@example.com", PASSWORD, client_address="192.0.2.1")
    # From elsewhere the operator still gets in, and later from here, too.
    assert (await operators.verify("boss@example.com", PASSWORD, client_address="192.0.2.2")).role == "owner"
    now = 901.0
    assert (await operators.verify("boss@example.com", PASSWORD, client_address="192.0.2.1")).role == "owner"


async def test_a_role_may_do_what_is_its_own_and_read_all(api: Api, apps: LedgerApps) -> None:
    operators = Operators(apps.ledger.database, hasher=QUICK)
    account_id = (await api.call("POST", "/accounts"))["account_id"]
    credit = {"usd": "1", "reason": "x"}
    for role, may_credit, may_make_keys in (
        ("finance", 200, 403),
        ("support", 403, 200),
        ("read_only", 403, 403),
        ("owner", 200, 200),
    ):
        await operators.create_or_reset_admin(f"{role}@example.com", PASSWORD, role=role)
        login = basic(f"{role}@example.com", PASSWORD)
        await api.call("POST", f"/accounts/{account_id}/credits", credit, status=may_credit, headers=login)
        await api.call("POST", f"/accounts/{account_id}/keys", {}, status=may_make_keys, headers=login)
        await api.call("GET", f"/accounts/{account_id}/balance", headers=login)
        price = {"input": 1, "output": 1}
        expected = 200 if role == "owner" else 403
        await api.call("PUT", "/models/gpt-4/price", price, status=expected, headers=login)


async def test_reconcile_finds_nothing_wrong_after_a_credit(api: Api) -> None:
    account_id = (await api.call("POST", "/accounts"))["account_id"]
    await api.call("POST", f"/accounts/{account_id}/credits", {"usd": "3", "reason": "x"})
    answer = await api.call("POST", "/reconcile", {})
    assert (answer["is_clean"], answer["differences"]) == (True, [])


async def test_the_exception_list_shows_what_is_open(api: Api, apps: LedgerApps) -> None:
    await apps.ledger.database.execute(
        "INSERT INTO exception_list (kind, ref, detail, resolved_at)"
        " VALUES ('a', '1', '{\"x\": 1}', NULL), ('b', '2', '{}', now())"
    )
    (open_one,) = (await api.call("GET", "/exceptions"))["exceptions"]
    assert (open_one["kind"], open_one["detail"]) == ("a", {"x": 1})
    assert len((await api.call("GET", "/exceptions?all=true"))["exceptions"]) == 2


async def test_the_openapi_document_is_true_to_the_routes(
    api: Api, console: TestClient[web.Request, web.Application]
) -> None:
    api.token = None
    document = await api.call("GET", "/openapi.json")
    described = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, operations in document["paths"].items()
        for method in operations
    }
    served = set()
    for route in console.app.router.routes():
        path = route.resource.canonical if route.resource else ""
        if path.startswith("/api/v1/") and path != "/api/v1/openapi.json" and route.method != "HEAD":
            served.add((route.method, re.sub(r"\{\w+(:[^}]*)?\}", "{}", path)))
    assert described == served
    assert document["openapi"] == "3.1.0"


async def test_every_reference_of_the_openapi_document_leads_somewhere_and_names_its_fields(api: Api) -> None:
    document = await api.call("GET", "/openapi.json")
    schemas = document["components"]["schemas"]
    references = re.findall(r"'#/components/schemas/([^']+)'", str(document))
    assert references
    assert set(references) <= set(schemas)
    assert set(schemas["SetPrice"]["properties"]) == {*PriceVector.__struct_fields__, "starts_at"}
    assert schemas["SetPrice"]["properties"]["input"]["type"] == ["string", "number"]
    assert schemas["SetPrice"]["additionalProperties"] is False


async def test_the_settings_first_operator_is_created_once_and_keeps_a_changed_password(
    settings: LedgerSettings,
) -> None:
    named = dataclasses.replace(settings, admin_email="root@example.com", admin_password=Secret(PASSWORD))
    async with open_apps(named, database_wait_s=0) as apps, api_of(apps) as api:
        await api.call("GET", "/accounts", headers=basic("root@example.com", PASSWORD))
        await Operators(apps.ledger.database).create_or_reset_admin("root@example.com", "another password")
    async with open_apps(named, database_wait_s=0) as apps, api_of(apps) as api:
        await api.call("GET", "/accounts", headers=basic("root@example.com", "another password"))
        await api.call("GET", "/accounts", status=401, headers=basic("root@example.com", PASSWORD))


async def test_a_first_operator_with_a_short_password_stops_the_start(settings: LedgerSettings) -> None:
    named = dataclasses.replace(settings, admin_email="root@example.com", admin_password=Secret("short"))
    with pytest.raises(BadRequest, match="12 to 200"):
        async with open_apps(named, database_wait_s=0):
            pass
