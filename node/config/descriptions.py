"""What a setting or flag means by a model: the id of one in the store, or a description by its path or shipped name.

Law: an id is 64 hexadecimal digits and means the model in the store and nothing else. A shipped
description lies in ``configs/models`` of a checkout, or in ``share/mercat/models`` of an installation.
"""

import re
import sys
import sysconfig
from pathlib import Path

from protocol.primitives.errors import UserError

SHIPPED = (
    Path(__file__).resolve().parents[2] / "configs" / "models",
    Path(sysconfig.get_path("data")) / "share" / "mercat" / "models",
    Path(sys.prefix) / "share" / "mercat" / "models",
)


_MODEL_ID = re.compile(r"[0-9a-f]{64}")


class DescriptionMissing(UserError):
    """No description of a model under that name or path."""


def shipped_descriptions() -> dict[str, Path]:
    """Name → file of every description that ships with mercat."""
    for folder in SHIPPED:
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def description_path(name_or_path: str, base: Path | None = None) -> Path:
    """The description file that a setting or flag means; relative paths start at ``base`` or the working directory."""
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        try:
            path = (base or Path.cwd()) / Path(name_or_path).expanduser()
        except RuntimeError:
            raise DescriptionMissing(f"{name_or_path!r} starts with the home directory of nobody here") from None
        if path.is_file():
            return path.resolve()
        raise DescriptionMissing(f"there is no model description {path}")
    shipped = shipped_descriptions()
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise DescriptionMissing(f"no model description {name_or_path!r}; shipped are: {', '.join(shipped) or 'none'}")


def is_model_id(text: str) -> bool:
    """Whether this names a model of the store by its id."""
    return _MODEL_ID.fullmatch(text) is not None


def model_reference(text: str, base: Path | None = None) -> str:
    """A model's id as it is, else the path of the description that is meant. Raises ``DescriptionMissing``."""
    return text if is_model_id(text) else str(description_path(text, base))
