import pytest

from services.ledger.queries import load_queries, parse_queries


def test_statements_are_found_by_name_without_their_semicolon() -> None:
    found = parse_queries("-- name: one\nSELECT 1;\n\n-- name: two\n-- $1 a number\nSELECT $1;\n")
    assert found == {"one": "SELECT 1", "two": "-- $1 a number\nSELECT $1"}


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_queries("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")


def test_a_name_without_a_statement_is_refused() -> None:
    with pytest.raises(ValueError, match="no statement"):
        parse_queries("-- name: one\n-- name: two\nSELECT 2;\n")


def test_the_posting_statements_are_there() -> None:
    assert "FOR NO KEY UPDATE" in load_queries("posting")["lock_escrows"]
