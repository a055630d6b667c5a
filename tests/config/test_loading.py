"""Settings: precedence, sources, and refusal of what nobody reads."""

from pathlib import Path

import pytest

from node.cli.genesis import PRODUCTION_PARAMETERS
from node.config.descriptions import DescriptionMissing, description_path, shipped_descriptions
from node.config.genesis_file import make_genesis
from node.config.loading import (
    ConfigInvalid,
    check_exposure,
    is_loopback,
    load_config,
    parse_host_port,
    setting_types,
)
from node.config.settings import NodeConfig, Role
from node.config.writing import toml_text
from node.keystore.development import development_keys
from protocol.messages.genesis import AuthorityRecord, Genesis
from protocol.primitives.units import AuthorityId, TimestampMs

MINIMAL = 'genesis = "genesis.json"\nstate = "state"\n[keystore]\ndirectory = "keys"\n'


def write(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def development_genesis(development: bool = True) -> Genesis:
    keys = development_keys("authority-1", True)
    authority = keys.authority_id or AuthorityId(b"")
    return make_genesis(
        network="n",
        development=development,
        created_at=TimestampMs(0),
        parameters=PRODUCTION_PARAMETERS,
        authorities=(AuthorityRecord(authority, keys.account_id, keys.node_id, "a"),),
        allocations=(),
    )


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path)).config
    assert config.genesis == tmp_path / "genesis.json"
    assert config.keystore.directory == tmp_path / "keys"
    assert config.control_socket == tmp_path / "state" / "control.sock"
    assert config.roles == ()


def test_flag_goes_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = write(tmp_path, 'listen = "127.0.0.1:1"\n' + MINIMAL)
    environment = {"MERCAT_NODE_LISTEN": "127.0.0.1:2", "PATH": "/bin", "MERCAT_CONTROL": "x"}
    steps = [
        load_config(write(tmp_path)),
        load_config(write(tmp_path, 'listen = "127.0.0.1:1"\n' + MINIMAL)),
        load_config(path, environment),
        load_config(path, environment, {"listen": "127.0.0.1:3"}),
    ]
    assert [step.config.listen[-1] for step in steps] == ["0", "1", "2", "3"]
    assert [step.sources["listen"] for step in steps] == ["default", str(path), "MERCAT_NODE_LISTEN", "flag"]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("provider.slots", "3", 3),
        ("log.json", "false", False),
        ("log.level", "debug", "debug"),
        ("seeds", "127.0.0.1:1, 127.0.0.1:2", ("127.0.0.1:1", "127.0.0.1:2")),
        ("seeds", "", ()),
        ("provider.redeem.age_ms", "5", 5),
        ("provider.region", "north", "north"),
    ],
)
def test_text_becomes_the_settings_type(tmp_path: Path, key: str, text: str, value: object) -> None:
    config: object = load_config(write(tmp_path), {"MERCAT_NODE_" + key.upper().replace(".", "_"): text}).config
    for part in key.split("."):
        config = getattr(config, part)
    assert getattr(config, "value", config) == value


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rolse = []\n" + MINIMAL, "'rolse'; did you mean 'roles'"),
        (MINIMAL + "directry = 1\n", "'keystore.directry'"),
        (MINIMAL + "[provider.redeem]\nage = 1\n", "provider.redeem.age"),
        (MINIMAL + "[extra]\nx = 1\n", "'extra'"),
        (MINIMAL + '[[provider.models]]\ndescription = "echo"\nprice = 1\n', "price"),
    ],
)
def test_unknown_key_is_named_with_its_file(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("not toml", "TOML"),
        ("state = 1\n" + MINIMAL.replace('state = "state"\n', ""), "state"),
        ('genesis = "g"\n', "state"),
        ('roles = ["miner"]\n' + MINIMAL, "roles"),
        (MINIMAL + "[provider]\nslots = 0\n", "slots"),
        (MINIMAL + "[provider]\nchunk_units = 100000\n", "chunk_units"),
        ('listen = "nowhere"\n' + MINIMAL, "listen"),
        ('seeds = ["a:70000"]\n' + MINIMAL, "seeds"),
        ('roles = ["provider"]\n' + MINIMAL, "models"),
        (f'control = "/{"x" * 120}"\n' + MINIMAL, "control"),
    ],
)
def test_wrong_value_is_named_with_its_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigInvalid, match=named):
        load_config(write(tmp_path, text))


def test_unknown_variable_or_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="MERCAT_NODE_LISTN"):
        load_config(write(tmp_path), {"MERCAT_NODE_LISTN": "x"})
    with pytest.raises(ConfigInvalid, match="lisen"):
        load_config(write(tmp_path), {}, {"lisen": "x"})
    with pytest.raises(ConfigInvalid, match="MERCAT_NODE_PROVIDER_SLOTS"):
        load_config(write(tmp_path), {"MERCAT_NODE_PROVIDER_SLOTS": "many"})


def test_every_setting_has_its_own_variable() -> None:
    keys = list(setting_types())
    assert len({key.upper().replace(".", "_") for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:74", ("::1", 74)), ("host:65535", ("host", 65535))],
)
def test_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:x", "host:65536", "::1:74", "host:-1"])
def test_text_that_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|brackets"):
        parse_host_port(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("key", "value"), [("listen", '"0.0.0.0:7400"'), ("listen", '"[::]:1"'), ("advertise", '["example.org:7400"]')]
)
def test_development_network_refuses_to_leave_loopback(tmp_path: Path, key: str, value: str) -> None:
    config = load_config(write(tmp_path, f"{key} = {value}\n" + MINIMAL)).config
    with pytest.raises(ConfigInvalid, match=f"{key}.*development network"):
        check_exposure(config, development_genesis())
    check_exposure(config, development_genesis(development=False))


def test_development_network_on_loopback_is_fine(tmp_path: Path) -> None:
    check_exposure(
        load_config(write(tmp_path, 'advertise = ["127.0.0.1:5"]\n' + MINIMAL)).config, development_genesis()
    )


def test_model_description_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    assert description_path("echo") == shipped_descriptions()["echo"]
    assert description_path("mine.toml", tmp_path) == tmp_path / "mine.toml"
    for missing in ("unheard-of", "./none.toml"):
        with pytest.raises(DescriptionMissing):
            description_path(missing, tmp_path)


def test_provider_models_are_absolute_paths_once_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    models = (
        '[[provider.models]]\ndescription = "./mine.toml"\n[[provider.models]]\ndescription = "echo"\nrequest = 7\n'
    )
    config = load_config(write(tmp_path, 'roles = ["provider"]\n' + MINIMAL + models)).config
    assert [model.description for model in config.provider.models] == [
        str(tmp_path / "mine.toml"),
        str(shipped_descriptions()["echo"]),
    ]
    assert config.provider.models[1].request == 7
    assert config.roles == (Role.PROVIDER,)


def test_written_settings_read_back_as_they_were(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ name\n\t\x7f é'
    text = toml_text(
        {"genesis": "g", "state": "s", "roles": ["provider"]},
        {"keystore": {"directory": "k"}, "provider": {"region": odd, "slots": 2}, "log": {"json": False}, "buyer": {}},
        {"provider.models": [{"description": "echo"}]},
        "two\nlines",
    )
    config = load_config(write(tmp_path, text)).config
    assert (config.provider.region, config.provider.slots, config.log.json) == (odd, 2, False)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_configuration_loads(path: Path) -> None:
    assert isinstance(load_config(path).config, NodeConfig)
