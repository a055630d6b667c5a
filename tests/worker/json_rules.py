"""Judges JSON values by a schema, keyword by keyword, independently of the grammar that is tested with it.

Nothing is assumed of what the grammar can or can't do; a keyword that is not known here fails the test that uses it.
"""

import datetime
import ipaddress
import re
import uuid
from fractions import Fraction

from node.worker.child.text_scalars import Json

SILENT = {"title", "description", "$defs", "definitions", "default", "discriminator"}


def accepts(schema: Json, value: Json, document: Json = None) -> bool:
    """Whether a value satisfies a schema; `document` is where its references begin."""
    if isinstance(schema, bool):
        return schema
    assert isinstance(schema, dict)
    document = schema if document is None else document
    return all(_holds(name, schema, value, document) for name in schema if name not in SILENT)


def _holds(name: str, schema: dict[str, Json], value: Json, document: Json) -> bool:
    said = schema[name]
    match name:
        case "$ref":
            return accepts(_named(said, document), value, document)
        case "allOf" | "anyOf" | "oneOf":
            assert isinstance(said, list)
            held = sum(accepts(one, value, document) for one in said)
            return {"allOf": held == len(said), "anyOf": held > 0, "oneOf": held == 1}[name]
        case "enum":
            assert isinstance(said, list)
            return any(_same(value, choice) for choice in said)
        case "const":
            return _same(value, said)
        case "type":
            return any(_is(value, str(each)) for each in (said if isinstance(said, list) else [said]))
    if isinstance(value, dict):
        return _of_object(name, schema, value, document)
    if isinstance(value, list):
        return _of_array(name, schema, value, document)
    if isinstance(value, str):
        return _of_string(name, said, value)
    return isinstance(value, bool | None) or _of_number(name, said, Fraction(repr(value)))


def _named(reference: Json, document: Json) -> Json:
    assert isinstance(reference, str)
    found = document
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        found = found[int(part)] if isinstance(found, list) else found[part] if isinstance(found, dict) else None
    return found


def _same(one: Json, other: Json) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float) and bool not in (type(one), type(other)):
        return one == other
    return type(one) is type(other) and one == other


def _is(value: Json, name: str) -> bool:
    match value:
        case None:
            return name == "null"
        case bool():
            return name == "boolean"
        case int() | float():
            return name == "number" or (name == "integer" and value == int(value))
        case str():
            return name == "string"
        case list():
            return name == "array"
        case dict():
            return name == "object"


def _of_object(name: str, schema: dict[str, Json], value: dict[str, Json], document: Json) -> bool:
    said, properties = schema[name], schema.get("properties", {})
    assert isinstance(properties, dict)
    match name:
        case "properties":
            return all(accepts(properties[key], value[key], document) for key in value if key in properties)
        case "additionalProperties":
            return all(accepts(said, value[key], document) for key in value if key not in properties)
        case "required":
            assert isinstance(said, list)
            return all(key in value for key in said)
        case "minProperties" | "maxProperties":
            assert isinstance(said, int)
            return len(value) >= said if name == "minProperties" else len(value) <= said
    return True


def _of_array(name: str, schema: dict[str, Json], value: list[Json], document: Json) -> bool:
    said, first = schema[name], schema.get("prefixItems", [])
    assert isinstance(first, list)
    match name:
        case "prefixItems":
            return all(accepts(one, item, document) for one, item in zip(first, value, strict=False))
        case "items":
            return all(accepts(said, item, document) for item in value[len(first) :])
        case "minItems" | "maxItems":
            assert isinstance(said, int)
            return len(value) >= said if name == "minItems" else len(value) <= said
    return True


def _of_string(name: str, said: Json, value: str) -> bool:
    match name:
        case "minLength" | "maxLength":
            assert isinstance(said, int)
            return len(value) >= said if name == "minLength" else len(value) <= said
        case "pattern":
            assert isinstance(said, str)
            # `$` is the very end in ECMA-262; `\d` and `\w` are those of ASCII
            return re.search(re.sub(r"(?<!\\)\$", r"\\Z", said), value, re.ASCII) is not None
        case "format":
            return _is_formatted(str(said), value)
    return True


def _is_formatted(name: str, value: str) -> bool:
    try:
        match name:
            case "date":
                datetime.date.fromisoformat(value.replace("0000-", "2000-", 1) if value.startswith("0000-") else value)
            case "time":
                datetime.time.fromisoformat(re.sub(r"\.\d+", "", value))
            case "date-time":
                datetime.datetime.fromisoformat(re.sub(r"\.\d+", "", re.sub(r"^0000-", "2000-", value)))
            case "uuid":
                assert str(uuid.UUID(value)) == value.lower()
            case "ipv4":
                ipaddress.IPv4Address(value)
            case "ipv6":
                ipaddress.IPv6Address(value)
            case "duration":
                assert re.fullmatch(r"P(?=.)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?", value)
            case "hostname":
                assert all(re.fullmatch(r"(?!-)[\w-]{1,63}(?<!-)", label) for label in value.split("."))
            case "email":
                assert re.fullmatch(r"[^@\s]+@[^@\s]+", value)
            case "uri":
                assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*:[^\s\"<>\\^`{|}]*", value)
            case _:
                raise AssertionError(f"unknown format {name}")
    except ValueError:
        return False
    return True


def _of_number(name: str, said: Json, value: Fraction) -> bool:
    if not isinstance(said, int | float) or isinstance(said, bool):
        return True
    bound = Fraction(repr(said))
    return {
        "minimum": lambda: value >= bound,
        "maximum": lambda: value <= bound,
        "exclusiveMinimum": lambda: value > bound,
        "exclusiveMaximum": lambda: value < bound,
        "multipleOf": lambda: (value / bound).denominator == 1,
    }.get(name, lambda: True)()
