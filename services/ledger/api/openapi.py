"""The OpenAPI 3.1 document, made from the endpoints themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from services.ledger.api.endpoint import PREFIX, Endpoint, ErrorAnswer, Nothing

_REF: Final = "#/components/schemas/{name}"
_VARIABLE: Final = re.compile(r"\{(\w+)\}")
_ERRORS: Final = {
    "400": "A field or parameter is not valid; `param` names it.",
    "401": "The operator's credential is missing or wrong.",
    "403": "The operator's role may not do that.",
    "404": "There is no such thing.",
    "409": "It conflicts with what is there.",
    "429": "Too many failed logins; wait for `Retry-After`.",
    "503": "The database or a meter can't answer; repeat the request.",
}


def openapi_document(endpoints: Sequence[Endpoint[Any, Any]], *, version: str) -> dict[str, Any]:
    types: list[type] = [ErrorAnswer]
    for endpoint in endpoints:
        types += [kind for kind in (endpoint.answer, endpoint.body, endpoint.query) if kind is not Nothing]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_type = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, by_type, components)
        paths.setdefault(PREFIX + endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Meterway operators' API",
            "version": version,
            "description": "Amounts in requests are decimal USD, as a string or a number; in answers they "
            "are integers of nanodollars (`*_nanos`), prices integers of micro-USD per 1M tokens.",
        },
        "security": [{"operator_token": []}, {"operator_password": []}],
        "paths": paths,
        "components": {
            "schemas": _with_decimals_as_numbers(components),
            "securitySchemes": {
                "operator_token": {"type": "http", "scheme": "bearer"},
                "operator_password": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _operation(
    endpoint: Endpoint[Any, Any], by_type: dict[type, dict[str, Any]], components: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _VARIABLE.findall(endpoint.path)
        ],
        "responses": {
            "200": _json_content("Done.", by_type[endpoint.answer]),
            **{status: _json_content(text, by_type[ErrorAnswer]) for status, text in _ERRORS.items()},
        },
    }
    if endpoint.query is not Nothing:
        operation["parameters"] += _query_parameters(components[endpoint.query.__name__])
    if endpoint.body is not Nothing:
        content = {"application/json": {"schema": by_type[endpoint.body]}}
        operation["requestBody"] = {"required": bool(_required(endpoint.body)), "content": content}
    return operation


def _json_content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query_parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": property_schema}
        for name, property_schema in schema["properties"].items()
    ]


def _required(body: type) -> list[str]:
    return [field.name for field in msgspec.structs.fields(body) if field.required]


def _with_decimals_as_numbers(schema: Any) -> Any:
    """A decimal may come as a JSON number too; msgspec's schema says only that it is a string."""
    if isinstance(schema, list):
        return [_with_decimals_as_numbers(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "decimal":
        return {**schema, "type": ["string", "number"]}
    return {name: _with_decimals_as_numbers(part) for name, part in schema.items()}
