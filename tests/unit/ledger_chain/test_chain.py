"""The canonical encoding and the blocks: pure."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger import chain
from services.ledger.chain import Block, DamagedContent, Entry, Transaction
from services.ledger.chain_check import Fault, Link, SealedBlock, check_block, check_link

pytestmark = pytest.mark.slow

INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
# Short, from few letters, so that fields often run into one another where a length is forgotten.
TEXTS = st.none() | st.text(alphabet="a:\x00é1", max_size=4) | st.text(max_size=20)
FEW = st.none() | st.integers(min_value=-2, max_value=2)
ENTRIES = st.builds(Entry, TEXTS, FEW | INT64, TEXTS, FEW | INT64)
TRANSACTIONS = st.builds(
    Transaction,
    st.integers(min_value=-3, max_value=3) | INT64,
    INT64,
    TEXTS,
    TEXTS,
    TEXTS,
    TEXTS,
    st.lists(ENTRIES, max_size=4).map(tuple),
)
JOURNALS = st.lists(TRANSACTIONS, max_size=4)


def same(one: list[Transaction], other: list[Transaction]) -> bool:
    """Equal, the entries of each transaction as they have no order."""

    def key(entry: Entry) -> str:
        return repr(tuple(entry))

    return [t._replace(entries=tuple(sorted(t.entries, key=key))) for t in one] == [
        t._replace(entries=tuple(sorted(t.entries, key=key))) for t in other
    ]


@given(JOURNALS)
def test_a_journal_can_be_read_back_from_its_bytes(journal: list[Transaction]) -> None:
    """Whatever can be read back is injective: two journals with the same bytes read back as the same."""
    assert same(chain.decode_all(chain.encode_all(journal)), journal)


@given(JOURNALS, JOURNALS)
def test_no_two_different_journals_give_the_same_bytes(
    one: list[Transaction], other: list[Transaction]
) -> None:
    assert (chain.encode_all(one) == chain.encode_all(other)) == same(one, other)


@given(TRANSACTIONS, st.data())
def test_changing_any_one_field_changes_the_bytes(transaction: Transaction, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(["id", "created_at_us", "kind", "ref", "reason", "actor"]))
    value = data.draw(INT64 if field in ("id", "created_at_us") else TEXTS)
    changed = transaction._replace(**{field: value})
    assert (chain.encode(changed) == chain.encode(transaction)) == (changed == transaction)


@given(TRANSACTIONS, st.data())
def test_the_order_of_entries_does_not_matter_and_their_number_does(
    transaction: Transaction, data: st.DataObject
) -> None:
    shuffled = transaction._replace(entries=tuple(data.draw(st.permutations(transaction.entries))))
    assert chain.encode(shuffled) == chain.encode(transaction)
    if transaction.entries:
        twice = transaction._replace(entries=(*transaction.entries, transaction.entries[0]))
        assert chain.encode(twice) != chain.encode(transaction)


@given(TRANSACTIONS, TRANSACTIONS)
def test_compare_names_a_difference_exactly_when_there_is_one(one: Transaction, other: Transaction) -> None:
    other = other._replace(id=one.id)
    assert bool(chain.compare(one, other)) == (chain.encode(one) != chain.encode(other))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_content_are_refused_or_are_their_own_encoding(raw: bytes) -> None:
    try:
        found = chain.decode_all(raw)
    except DamagedContent:
        return
    assert same(chain.decode_all(chain.encode_all(found)), found)


@pytest.mark.parametrize(
    "packed", [b"", b"nonsense", zlib.compress(b"x" * 50)[:-4], zlib.compress(b"x") + b"more"]
)
def test_a_damaged_packing_is_refused(packed: bytes) -> None:
    with pytest.raises(DamagedContent):
        chain.unpack(packed)


def transaction(number: int, *, nanos: int = 5, **changes: object) -> Transaction:
    entries = (
        Entry("platform:credit", -nanos, None, None),
        Entry("account:a:available", nanos, "a", None),
    )
    made = Transaction(number, 1_000 + number, "credit", f"r{number}", "gift", "token", entries)
    return made._replace(**changes)  # type: ignore[arg-type]


def sealed(*transactions: Transaction, number: int = 1, first_id: int = 1) -> tuple[Block, bytes]:
    return chain.seal(
        transactions, number=number, first_id=first_id, prev_hash=chain.GENESIS_HASH, sealed_at_us=7
    )


START = Link(0, 0, frozenset({chain.GENESIS_HASH}))


def faults(block: Block, packed: bytes, *found: Transaction) -> list[Fault]:
    return check_block(SealedBlock(block, packed), START, found)


def test_a_block_counts_what_it_holds() -> None:
    block, packed = sealed(transaction(1), transaction(3, nanos=7))
    assert (block.first_id, block.last_id, block.transactions, block.entries) == (1, 3, 2, 4)
    assert block.moved_nanos == 12
    assert faults(block, packed, transaction(1), transaction(3, nanos=7)) == []


def test_every_field_of_a_block_is_in_its_hash() -> None:
    block, packed = sealed(transaction(1))
    for field in ("number", "first_id", "last_id", "transactions", "entries", "moved_nanos", "sealed_at_us"):
        changed = Block(**{**_fields(block), field: getattr(block, field) + 1})
        assert not SealedBlock(changed, packed).is_intact, field
        assert faults(changed, packed, transaction(1)), field
    for value in (b"\x01" + bytes(31), bytes(31), b""):
        assert faults(Block(**{**_fields(block), "prev_hash": value}), packed, transaction(1))
    assert faults(Block(**{**_fields(block), "hash": bytes(32)}), packed, transaction(1))


def test_an_amount_changed_afterwards_is_named() -> None:
    block, packed = sealed(transaction(1), transaction(2))
    [first, second] = faults(block, packed, transaction(1), transaction(2, nanos=6))
    assert {fault.what for fault in (first, second)} == {"transaction altered"}
    assert (first.transaction_id, first.field, first.block) == (2, "entry", 1)
    assert first.expected == "-5 nanodollars at platform:credit" or first.expected.startswith("5 ")
    assert "6 nanodollars" in first.found


def test_when_only_the_sealed_copy_was_changed_the_journal_is_not_blamed() -> None:
    block, _packed = sealed(transaction(1))
    other = zlib.compress(chain.encode_all([transaction(1, nanos=9)]))
    for packed in (other, b"damaged"):
        [fault] = faults(block, packed, transaction(1))
        assert (fault.what, fault.subject, fault.field) == ("block altered", "block 1", "content")


def test_a_gap_in_the_numbers_is_one_fault_and_the_chain_goes_on_behind_it() -> None:
    block, packed = sealed(transaction(9), number=3, first_id=9)
    found, link = check_link(START, block)
    assert [(fault.what, fault.subject) for fault in found] == [("block deleted", "blocks 1 to 2")]
    assert check_block(SealedBlock(block, packed), link, [transaction(9)]) == []


def _fields(block: Block) -> dict[str, object]:
    return {name: getattr(block, name) for name in Block.__slots__}
