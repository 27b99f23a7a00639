"""Functions and tools as the TypeScript namespace that OpenAI's models are shown.

Two dialects, told apart by billed counts (docs/token-counts.md): `functions` are indented and lose the
descriptions of nested properties; `tools` are flat, keep them, and put an object whose one property has
no description on one line. Total over any JSON value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.meter.counting.json_text import scalar_json

# Deeper levels are shown as `any`, and indented no further: keeps text and time linear in the schema.
_DEPTH_MAX = 64
_INDENT_MAX = 8


@dataclass(frozen=True)
class Dialect:
    indent_step: int
    single_property_inline: bool


FUNCTIONS = Dialect(indent_step=2, single_property_inline=False)
TOOLS = Dialect(indent_step=0, single_property_inline=True)


def format_namespace(functions: list[dict[str, Any]], dialect: Dialect) -> str:
    """The namespace of these functions; each has a string `name`."""
    lines = ["namespace functions {", ""]
    for function in functions:
        if description := _text(function.get("description")):
            lines.append(f"// {description}")
        parameters = function.get("parameters")
        name = function["name"]
        if isinstance(parameters, dict) and _properties(parameters):
            lines.append(f"type {name} = (_: {_format_object(parameters, 0, 0, dialect)}) => any;")
        else:
            lines.append(f"type {name} = () => any;")
        lines.append("")
    lines.append("} // namespace functions")
    return "\n".join(lines)


def _format_object(schema: dict[str, Any], indent: int, depth: int, dialect: Dialect) -> str:
    """`indent` is the properties' own; the closing brace stands one step further out."""
    properties = _properties(schema)
    required = schema.get("required")
    required_names = (
        {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    )
    blanks = " " * min(indent, _INDENT_MAX)
    lines: list[str] = []
    described = False
    for name, inner in properties.items():
        description = _text(inner.get("description")) if isinstance(inner, dict) else ""
        # So what is nested loses its description where nesting is indented, and keeps it where it is flat.
        if description and indent < 2:
            lines.append(f"{blanks}// {description}")
            described = True
        optional = "" if name in required_names else "?"
        lines.append(f"{blanks}{name}{optional}: {_format_type(inner, indent, depth + 1, dialect)},")
    if dialect.single_property_inline and len(lines) == 1 and not described:
        return "{ " + lines[0].removesuffix(",") + " }"
    closing = " " * min(max(0, indent - dialect.indent_step), _INDENT_MAX)
    return "{\n" + "\n".join(lines) + f"\n{closing}}}"


def _format_type(schema: Any, indent: int, depth: int, dialect: Dialect) -> str:
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return "any"
    kind = schema.get("type")
    if isinstance(kind, list):
        names = [_format_type({**schema, "type": one}, indent, depth + 1, dialect) for one in kind[:8]]
        return " | ".join(names) or "any"
    if kind in ("string", "integer", "number"):
        choices = schema.get("enum")
        if isinstance(choices, list) and choices:
            return " | ".join(scalar_json(choice) for choice in choices)
        return "string" if kind == "string" else "number"
    if kind in ("boolean", "null"):
        return str(kind)
    if kind == "array":
        items = schema.get("items")
        return (_format_type(items, indent, depth + 1, dialect) if items else "any") + "[]"
    if kind == "object" or _properties(schema):
        return _format_object(schema, indent + dialect.indent_step, depth, dialect)
    for key in ("anyOf", "oneOf", "allOf"):
        options = schema.get(key)
        if isinstance(options, list) and options:
            return " | ".join(_format_type(option, indent, depth + 1, dialect) for option in options)
    if "const" in schema:
        return scalar_json(schema["const"]) or "any"
    return "any"


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
