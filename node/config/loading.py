"""From flags, environment and a file to one checked ``NodeConfig``, remembering where each value came from.

Law: flag over ``MERCAT_NODE_*`` over file over default. An unknown key, in the file or in the environment, refuses to
start and is named. ``MERCAT_CONTROL`` and ``MERCAT_GENESIS`` are not settings of a node but tell the command line
which node it talks to and which network it trusts.
"""

import difflib
import ipaddress
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from node.config.descriptions import model_reference
from node.config.settings import NodeConfig, ProviderModel, Role, Section
from protocol.messages.genesis import Genesis
from protocol.primitives.errors import UserError

ENVIRONMENT_PREFIX = "MERCAT_NODE_"
UNIX_SOCKET_PATH_BYTES_MAX = 107
"""The kernel's limit on the path of a unix socket."""


class ConfigInvalid(UserError):
    """A setting that is unknown, of the wrong type, or contradicts another."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """The settings and, for each dotted key, its source: ``default``, a file, a variable or a flag."""

    config: NodeConfig
    sources: dict[str, str]


def _section(kind: object) -> type[Section] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def setting_types(section: type[Section] = NodeConfig, prefix: str = "") -> dict[str, object]:
    """Every dotted key of the configuration with its type, in order of declaration."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(section):
        inner = _section(field.type)
        if inner is not None:
            found.update(setting_types(inner, f"{prefix}{field.name}."))
        else:
            found[prefix + field.name] = field.type
    return found


def _flattened(tree: Mapping[str, Any], known: Mapping[str, object], source: str, prefix: str = "") -> dict[str, Any]:
    """The file's values by dotted key. Raises ``ConfigInvalid`` on one that nobody reads."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        if key in known:
            flat[key] = value
        elif isinstance(value, dict) and any(other.startswith(key + ".") for other in known):
            flat.update(_flattened(value, known, source, key + "."))
        else:
            raise ConfigInvalid(f"{source}: unknown key {key!r}{_suggestion(key, known)}")
    return flat


def _suggestion(key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _alternatives(kind: object) -> tuple[object, ...]:
    return get_args(kind) if get_origin(kind) in (types.UnionType,) else (kind,)


def _is_list(kind: object) -> bool:
    inner = get_args(kind)[0] if get_origin(kind) is not None and hasattr(kind, "__metadata__") else kind
    return get_origin(inner) is tuple


def _expanded(text: str) -> Path:
    """The path with ``~`` replaced. Raises ``ValueError`` when it names nobody's home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text!r} starts with the home directory of nobody on this machine") from None


def _from_text(text: str, kind: object, key: str, source: str) -> object:
    """A value that was given as text, by flag or environment. Lists are separated by commas."""
    if _is_list(kind):
        if key == "provider.models":
            raise ConfigInvalid(f"{source}: {key} is a table; set it in the configuration file")
        return [part.strip() for part in text.split(",") if part.strip()]
    if Path in _alternatives(kind):
        try:
            return _expanded(text).absolute()
        except ValueError as error:
            raise ConfigInvalid(f"{source}: {key}: {error}") from None
    if kind is bool or kind is int or hasattr(kind, "__metadata__") or len(_alternatives(kind)) > 1:
        try:
            return msgspec.convert(text, kind, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigInvalid(f"{source}: {key}: {error}") from None
    return text


def _nested(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"configuration {path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # tomllib lets both through beside its own
        raise ConfigInvalid(f"{path} is not TOML: {error}") from None


def load_config(
    path: Path | None, environment: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> LoadedConfig:
    """Read all sources once. ``flags`` holds dotted keys given on the command line, as text.

    Raises ``ConfigInvalid`` naming the file, variable or flag and the key, or ``DescriptionMissing``.
    """
    known = setting_types()
    sources = dict.fromkeys(known, "default")
    flat: dict[str, object] = {}
    base = Path.cwd()
    if path is not None:
        base = path.absolute().parent
        for key, value in _flattened(_read_file(path), known, str(path)).items():
            flat[key], sources[key] = value, str(path)
    variables = {ENVIRONMENT_PREFIX + key.upper().replace(".", "_"): key for key in known}
    for variable, text in (environment or {}).items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable not in variables:
            raise ConfigInvalid(f"unknown environment variable {variable}{_suggestion(variable, variables)}")
        key = variables[variable]
        flat[key], sources[key] = _from_text(text, known[key], key, variable), variable
    for key, text in (flags or {}).items():
        if key not in known:
            raise ConfigInvalid(f"unknown setting {key!r}{_suggestion(key, known)}")
        flat[key], sources[key] = _from_text(text, known[key], key, "flag"), "flag"
    return LoadedConfig(_converted(flat, base, path), sources)


def _converted(flat: Mapping[str, object], base: Path, path: Path | None) -> NodeConfig:
    def absolute(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str | Path) and str(value):
            return base / _expanded(str(value))
        raise ValueError(f"expected a path, got {value!r}")

    try:
        config = msgspec.convert(_nested(flat), NodeConfig, dec_hook=absolute)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"{path or 'configuration'}: {str(error).replace('`$.', '`')}") from None
    models = tuple(
        msgspec.structs.replace(model, description=model_reference(model.description, base))
        if _is_described(model, path)
        else model
        for model in config.provider.models
    )
    provider = msgspec.structs.replace(config.provider, models=models)
    return _checked(msgspec.structs.replace(config, provider=provider), path)


def _is_described(model: ProviderModel, path: Path | None) -> bool:
    """Whether a model has a description, or is an upstream server's. Raises ``ConfigInvalid`` unless it is one."""
    of_upstream = (model.model, model.weights, model.api_key_file)
    if model.upstream and model.model and not model.description:
        return False
    if model.description and not model.upstream and not any(of_upstream):
        return True
    raise ConfigInvalid(
        f"{path or 'configuration'}: each of provider.models has either a description, or an upstream (an address) "
        "with a model (the server's name for it)"
    )


def _checked(config: NodeConfig, path: Path | None) -> NodeConfig:
    where = path or "configuration"
    for key, addresses in (("listen", (config.listen,)), ("advertise", config.advertise), ("seeds", config.seeds)):
        for address in addresses:
            try:
                parse_host_port(address)
            except ValueError as error:
                raise ConfigInvalid(f"{where}: {key}: {error}") from None
    if Role.PROVIDER in config.roles and not config.provider.models:
        raise ConfigInvalid(f"{where}: a provider needs at least one [[provider.models]]")
    if config.ledger.keep_blocks and not config.ledger.snapshot_blocks:
        raise ConfigInvalid(f"{where}: ledger.keep_blocks needs snapshots, and ledger.snapshot_blocks = 0 makes none")
    if len(str(config.control_socket).encode()) > UNIX_SOCKET_PATH_BYTES_MAX:
        raise ConfigInvalid(
            f"{where}: the control socket's path is longer than {UNIX_SOCKET_PATH_BYTES_MAX} bytes, which the kernel "
            f"refuses; set `control` to a shorter one than {config.control_socket}"
        )
    return config


def parse_host_port(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPV6]:PORT``. Raises ``ValueError`` saying what is wrong."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address goes in brackets, as in [::1]:7400")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host. A name other than ``localhost`` is not trusted to be loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(config: NodeConfig, genesis: Genesis) -> None:
    """A network with publicly known keys stays on this machine. Raises ``ConfigInvalid``."""
    if not genesis.development:
        return
    for key, addresses in (("listen", (config.listen,)), ("advertise", config.advertise)):
        for address in addresses:
            if not is_loopback(parse_host_port(address)[0]):
                raise ConfigInvalid(
                    f"{key} = {address!r}: {genesis.network!r} is a development network, whose keys everybody knows; "
                    "its nodes stay on loopback. For a network between machines make a genesis of your own: "
                    "mercat genesis new"
                )
