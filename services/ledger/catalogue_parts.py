"""What the catalogue's, the channels' and the operators' routes share; opened after the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from services.common import logs
from services.ledger.catalogue import load_catalogue
from services.ledger.channels import reencrypt_credentials
from services.ledger.context import Ledger
from services.ledger.credentials import CredentialVault
from services.ledger.meters import MeterNotConfirmed
from services.ledger.operators import Operators
from services.ledger.routing import RoutingFeed
from services.ledger.seed.seed import seed_catalogue

LOG = logs.get("ledger.catalogue")


@dataclass(frozen=True, kw_only=True)
class CatalogueParts:
    vault: CredentialVault
    operators: Operators
    routing: RoutingFeed


CATALOGUE_PARTS = web.AppKey("catalogue_parts", CatalogueParts)


@contextlib.asynccontextmanager
async def open_catalogue_parts(ledger: Ledger) -> AsyncIterator[CatalogueParts]:
    """Seed an empty catalogue, create the first operator that the settings name, bring the stored
    credentials under the current key, and listen for changes until it is closed.

    Raises InvalidEncryptionKey, BadRequest for an operator that can't be, DatabaseUnavailable.
    """
    settings = ledger.settings
    vault = CredentialVault(settings.encryption_key, settings.encryption_keys_old)
    operators = Operators(ledger.database)
    if await seed_catalogue(ledger.database):
        await _tell_meters(ledger)
    moved, unreadable = await reencrypt_credentials(ledger.database, vault)
    ledger.metrics.credentials_unreadable.set(unreadable)
    if moved:
        LOG.info("channel credentials encrypted anew", credentials=moved)
    if settings.admin_email and settings.admin_password:
        await operators.create_admin_once(settings.admin_email, settings.admin_password.value)
    routing = RoutingFeed(
        ledger.database,
        vault,
        database_url=settings.database_url,
        upstream_base_url=settings.upstream_base_url,
        upstream_api_key=settings.upstream_api_key,
        metrics=ledger.metrics,
    )
    await routing.note_command_line_channel()
    listening = asyncio.create_task(routing.listen())
    try:
        yield CatalogueParts(vault=vault, operators=operators, routing=routing)
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


async def _tell_meters(ledger: Ledger) -> None:
    try:
        await ledger.meters.catalogue(await load_catalogue(ledger.database))
    except MeterNotConfirmed:
        # A meter that is up asks for the catalogue by itself, too.
        LOG.warning("the seeded catalogue did not reach every meter")
