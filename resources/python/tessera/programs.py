"""Where the programs are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Optional, Union

from .errors import NotFound

#: The environment variable that names the program `tessera`.
VARIABLE = "TESSERA"


def tessera(given: Optional[Union[str, Path]] = None) -> str:
    """The VMM: as given, by the environment variable TESSERA, or in PATH."""
    wanted = os.fspath(given) if given is not None else os.environ.get(VARIABLE) or "tessera"
    found = shutil.which(wanted)
    if found is None:
        raise NotFound(f"there is no program {wanted}: put tessera into PATH, or its path into {VARIABLE}")
    return found


def tesseractl(beside: str) -> str:
    """The client, beside the VMM or in PATH."""
    found = shutil.which(str(Path(beside).with_name("tesseractl"))) or shutil.which("tesseractl")
    if found is None:
        raise NotFound(f"there is no program tesseractl beside {beside} or in PATH: commands and copies need it")
    return found
