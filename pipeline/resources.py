"""Where the files that are not Python live: `data/` and `warehouse/` (the SQL).

Flows in: a resource's name. Flows out: its folder, in an installed wheel (`pipeline/_resources/`) or in
a source checkout (the repository root). One function, so that no other module guesses at paths.
"""

from __future__ import annotations

from pathlib import Path

RESOURCES = ("data", "warehouse")
_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """The folder of resource `name` ("data" or "warehouse").

    Raises FileNotFoundError naming both places looked at when the installation lacks it.
    """
    assert name in RESOURCES, f"no such resource: {name!r}; there are {', '.join(RESOURCES)}"
    candidates = (_PACKAGE / "_resources" / name, _PACKAGE.parent / name)
    for folder in candidates:
        if folder.is_dir():
            return folder
    places = " nor ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"the installation lacks its {name!r} folder: neither {places} is there; install the package again"
    )
