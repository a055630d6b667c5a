"""What a model is called and how large its jobs may be, where offers disagree; asking costs no scan of them."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from protocol.market.catalogue import Catalogue, Listing
from protocol.messages.market import ModelOffer
from protocol.primitives.units import ModelId, WorkUnits
from tests.market.town import SERVED

MODEL = ModelId(bytes.fromhex("abcdef0123456789") * 4)
HONEST = replace(
    SERVED,
    model=MODEL,
    name="model",
    runtime="gguf",
    input_units_max=WorkUnits(4_096),
    output_units_max=WorkUnits(2_048),
)
LARGER = replace(HONEST, input_units_max=WorkUnits(8_192), output_units_max=WorkUnits(1_024))


def listing(*offered: ModelOffer) -> Listing | None:
    catalogue = Catalogue()
    for served in offered:
        catalogue.add(served)
    return catalogue.listing(MODEL)


@pytest.mark.parametrize(
    "lie",
    [
        replace(HONEST, name="lie", runtime="onnx", output_units_max=WorkUnits(2**40)),
        replace(HONEST, name="a lie", input_units_max=WorkUnits(1), output_units_max=WorkUnits(2**10)),
        replace(HONEST, runtime="", input_units_max=WorkUnits(0)),
    ],
)
def test_one_strange_offer_does_not_cut_the_jobs_of_all(lie: ModelOffer) -> None:
    expected = Listing(MODEL, "model", "gguf", WorkUnits(8_192), WorkUnits(2_048))
    assert listing(lie, HONEST, HONEST, LARGER) == expected
    assert listing(HONEST, LARGER, HONEST, lie) == expected


def test_models_are_found_by_name_and_by_the_beginning_of_their_hash() -> None:
    catalogue = Catalogue()
    near = ModelId(bytes.fromhex("abcdef01ffffffff") * 4)
    for served in (HONEST, replace(HONEST, model=near, name="other"), replace(HONEST, name="second name")):
        catalogue.add(served)
    assert catalogue.find("model") == catalogue.find("second name") == (MODEL,)
    assert catalogue.find("other") == (near,)
    assert catalogue.find("abcdef01") == (MODEL, near)
    assert catalogue.find("ABCDEF012") == catalogue.find(MODEL.hex()) == (MODEL,)
    assert catalogue.find("abcdef01f") == (near,)
    for unknown in ("abcdef0", "abcdef03", "models", "", "ffffffff", MODEL.hex() + "0"):
        assert catalogue.find(unknown) == ()


SERVED_MODELS = st.builds(
    lambda model, name, runtime, limit: replace(
        HONEST, model=ModelId(bytes([model]) * 32), name=name, runtime=runtime, input_units_max=WorkUnits(limit)
    ),
    st.integers(0, 2),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["gguf", "onnx"]),
    st.integers(1, 3),
)


@given(st.lists(SERVED_MODELS), st.data())
def test_what_was_added_and_removed_leaves_no_trace(offered: list[ModelOffer], data: st.DataObject) -> None:
    catalogue, fresh = Catalogue(), Catalogue()
    for served in offered:
        catalogue.add(served)
    kept = [served for served in offered if data.draw(st.booleans())]
    gone = list(offered)
    for served in kept:
        gone.remove(served)
        fresh.add(served)
    for served in data.draw(st.permutations(gone)):
        catalogue.remove(served)
    for name in ("a", "b", "00" * 32, "0101010101"):
        assert catalogue.find(name) == fresh.find(name)
    for model in range(3):
        identity = ModelId(bytes([model]) * 32)
        assert catalogue.listing(identity) == fresh.listing(identity)
    assert (catalogue._named, catalogue._sorted) == (fresh._named, fresh._sorted)
