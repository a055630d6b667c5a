"""Judges JSON values by a schema, independently of the grammar that is tested with it."""

from node.worker.child.text_schema import Json


def accepts(schema: Json, value: Json) -> bool:
    """Whether a value satisfies a schema of the kinds that answers can be held to."""
    assert isinstance(schema, dict)
    if "enum" in schema:
        choices = schema["enum"]
        assert isinstance(choices, list)
        return any(_same(value, choice) for choice in choices)
    if "const" in schema:
        return _same(value, schema["const"])
    if "anyOf" in schema:
        alternatives = schema["anyOf"]
        assert isinstance(alternatives, list)
        return any(accepts(one, value) for one in alternatives)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    match value:
        case None:
            return "null" in types
        case bool():
            return "boolean" in types
        case int():
            return "integer" in types or "number" in types
        case float():
            return "number" in types
        case str():
            return "string" in types
        case list():
            return "array" in types and _items(schema, value)
        case dict():
            return "object" in types and _members(schema, value)


def _same(one: Json, other: Json) -> bool:
    return type(one) is type(other) and one == other


def _items(schema: dict[str, Json], value: list[Json]) -> bool:
    lowest, highest = schema.get("minItems", 0), schema.get("maxItems", 1 << 30)
    assert isinstance(lowest, int)
    assert isinstance(highest, int)
    return lowest <= len(value) <= highest and all(accepts(schema["items"], item) for item in value)


def _members(schema: dict[str, Json], value: dict[str, Json]) -> bool:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    assert isinstance(properties, dict)
    assert isinstance(required, list)
    return all(name in value for name in required) and all(
        name in properties and accepts(properties[name], member) for name, member in value.items()
    )
