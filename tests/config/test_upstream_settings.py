"""Models of upstream servers in a configuration: what they need, and what does not go together."""

from pathlib import Path

import pytest

from node.config.loading import ConfigInvalid, load_config
from node.config.settings import ProviderModel

BASE = 'genesis = "g"\nstate = "s"\nroles = ["provider"]\n[keystore]\ndirectory = "keys"\n[[provider.models]]\n'
HASH = "ab" * 32


def loaded(folder: Path, lines: str) -> ProviderModel:
    path = folder / "config.toml"
    path.write_text(BASE + lines)
    (model,) = load_config(path, {}).config.provider.models
    return model


def test_an_upstream_model_has_an_address_a_name_and_a_key_file_beside_the_configuration(tmp_path: Path) -> None:
    lines = f'upstream = "http://127.0.0.1:1/v1"\nmodel = "Qwen/7B"\nserver = "vllm"\nweights = "{HASH}"\nrequest = 5\n'
    model = loaded(tmp_path, lines + 'api_key_file = "key"\n')
    assert (model.upstream, model.label, model.server) == ("http://127.0.0.1:1/v1", "Qwen/7B", "vllm")
    assert model.api_key_file == tmp_path / "key"
    assert (model.weights, model.request) == (HASH, 5)


@pytest.mark.parametrize(
    "lines",
    [
        "request = 5\n",
        'upstream = "http://127.0.0.1:1/v1"\n',
        'model = "tiny"\n',
        'description = "echo"\nupstream = "http://127.0.0.1:1/v1"\nmodel = "tiny"\n',
        'description = "echo"\nmodel = "tiny"\n',
        f'description = "echo"\nweights = "{HASH}"\n',
        'description = "echo"\napi_key_file = "key"\n',
    ],
)
def test_a_model_is_either_described_or_upstream(tmp_path: Path, lines: str) -> None:
    with pytest.raises(ConfigInvalid, match="either a description, or an upstream"):
        loaded(tmp_path, lines)


def test_a_key_in_the_configuration_is_not_a_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="api_key"):
        loaded(tmp_path, 'upstream = "http://127.0.0.1:1/v1"\nmodel = "tiny"\napi_key = "sk-abc"\n')
