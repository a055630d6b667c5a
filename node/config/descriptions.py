"""Where the description of a model is: a path, or the name of one that ships with mercat.

Law: a shipped description lies in ``configs/models`` of a checkout, or in ``share/mercat/models`` of an installation.
"""

import sys
import sysconfig
from pathlib import Path

from protocol.primitives.errors import UserError

SHIPPED = (
    Path(__file__).resolve().parents[2] / "configs" / "models",
    Path(sysconfig.get_path("data")) / "share" / "mercat" / "models",
    Path(sys.prefix) / "share" / "mercat" / "models",
)


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
        path = (base or Path.cwd()) / Path(name_or_path).expanduser()
        if path.is_file():
            return path.resolve()
        raise DescriptionMissing(f"there is no model description {path}")
    shipped = shipped_descriptions()
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise DescriptionMissing(f"no model description {name_or_path!r}; shipped are: {', '.join(shipped) or 'none'}")
