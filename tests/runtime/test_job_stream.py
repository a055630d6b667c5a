"""What a job is cut to fit, where offers of one model disagree."""

import pytest
from msgspec.structs import replace

from node.runtime.wishes import standing_for_all
from protocol.messages.market import ModelOffer, Prices
from protocol.primitives.units import Amount, ModelId, WorkUnits

HONEST = ModelOffer(
    ModelId(b"m" * 32),
    "model",
    "gguf",
    "llama 1",
    "",
    Prices(Amount(1), Amount(1), Amount(1)),
    WorkUnits(4_096),
    WorkUnits(2_048),
)
LARGER = replace(HONEST, input_units_max=WorkUnits(8_192), output_units_max=WorkUnits(1_024))


@pytest.mark.parametrize(
    "lie",
    [
        replace(HONEST, runtime="onnx", output_units_max=WorkUnits(2**40)),
        replace(HONEST, input_units_max=WorkUnits(1), output_units_max=WorkUnits(2**40)),
        replace(HONEST, runtime="", input_units_max=WorkUnits(0)),
    ],
)
def test_one_strange_offer_does_not_cut_the_jobs_of_all(lie: ModelOffer) -> None:
    for offered in ([lie, HONEST, LARGER], [HONEST, LARGER, lie]):
        standing = standing_for_all(offered)
        assert standing.runtime == "gguf"
        assert standing.input_units_max == 8_192
