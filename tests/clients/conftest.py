"""The stack of the end-to-end tests, and a fresh customer for each test."""

from __future__ import annotations

import pytest

from tests.clients.payer import Payer
from tests.e2e.conftest import emulator, http, own_folder, stack
from tests.e2e.stack import Stack

__all__ = ["emulator", "http", "own_folder", "stack"]


@pytest.fixture
def payer(stack: Stack) -> Payer:
    """Has $1."""
    return Payer.create(stack)


@pytest.fixture
def beggar(stack: Stack) -> Payer:
    """Has nothing."""
    return Payer.create(stack, usd=0)
