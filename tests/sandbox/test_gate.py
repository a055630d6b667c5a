"""Without any one layer the suite fails: no layer is there for nothing, and none is untested."""

import pytest

from tests.sandbox import gate

EXPECTED = {
    "namespaces": "read the node's key, open to all",
    "landlock": "read the node's key, open to all",
    "filter_from_start": "use kernel keys",
    "filter_after_imports": "fork",
    "hard_limits": "take twice the memory",
    "own_user": "read a file of the node's user that was bound",
}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layer", gate.layers())
def test_the_suite_notices_a_missing_layer(layer: str) -> None:
    failures = gate.caught(layer)
    assert EXPECTED[layer] in {attempt for _, attempt in failures}
