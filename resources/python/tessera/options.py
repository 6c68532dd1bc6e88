"""The options of a VM: those of `tessera run`, by their names with underscores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Mapping, Sequence, Union

if TYPE_CHECKING:
    from os import PathLike
    from typing import TypedDict

    File = Union[str, "PathLike[str]"]

    class Options(TypedDict, total=False):
        """What a VM may be given; `tessera run --help` explains each."""

        initrd: File
        cmdline: str
        bare_cmdline: bool
        boot_image: bool
        memory: str
        memory_backing: str
        lock_memory: bool
        track_dirty_pages: bool
        cpus: int
        pmu: bool
        clock: str
        mte: str
        tag_storage: str
        broker: File
        tag_min: str
        tag_max: str
        on_exhausted: str
        balloon: str
        no_balloon: bool
        disk: Union[str, Sequence[str]]
        rng: bool
        net: Union[str, Sequence[str]]
        serial: str
        log: File
        metrics: File
        config: File
        allow: Union[File, Sequence[File]]
        sandbox: str
        seccomp: str


def flags(options: Mapping[str, Any]) -> List[str]:
    """The flags for options: `True` is a flag alone, `False` and `None` are none, a list is one for each."""
    words: List[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is True:
                words.append(flag)
            elif one is not None and one is not False:
                words.append(f"{flag}={one}")
    return words
