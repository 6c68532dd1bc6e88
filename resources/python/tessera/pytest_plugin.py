"""A plugin of pytest: the fixtures `vm` and `make_vm`, and the console in the report of a test that failed."""

from __future__ import annotations

from typing import Any, Callable, Dict, Generator, List, Optional

import pytest

from .vm import Vm

#: Options, each also a setting of the same name in the ini file (`tessera_kernel = ...`).
_OPTIONS = {
    "kernel": "the kernel of the guests",
    "initrd": "their initial RAM disk",
    "image": "a folder of `make image`, in the place of a kernel: each guest boots a copy of its disk",
    "cmdline": "the kernel's command line",
    "memory": "their memory, for instance 512M",
    "program": "the program tessera [default: that of the environment variable TESSERA, or in PATH]",
    "timeout": "seconds that a guest may take to start [default: 60]",
}
_VMS: "pytest.StashKey[List[Vm]]" = pytest.StashKey()
#: How much of a console or a log goes into a report: the end of it.
_MOST_REPORTED = 1 << 16


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("tessera", "virtual machines of Tessera")
    for name, text in _OPTIONS.items():
        group.addoption(f"--tessera-{name}", metavar=name.upper(), help=text)
        parser.addini(f"tessera_{name}", text)


def _setting(config: pytest.Config, name: str) -> Optional[str]:
    given = config.getoption(f"--tessera-{name}") or config.getini(f"tessera_{name}")
    return str(given) if given else None


@pytest.fixture
def make_vm(request: pytest.FixtureRequest) -> Generator[Callable[..., Vm], None, None]:
    """Makes VMs that run, and end with the test: `make_vm(cpus=2)` takes what `Vm` takes.

    What is not given is as the options and the ini file say.
    """
    vms = request.node.stash.setdefault(_VMS, [])
    settings: Dict[str, Any] = {name: _setting(request.config, name) for name in _OPTIONS}
    settings = {name: value for name, value in settings.items() if value is not None}
    if "timeout" in settings:
        settings["timeout"] = float(settings["timeout"])

    def make(**options: Any) -> Vm:
        wanted = {**settings, **options}
        if not {"kernel", "image", "config"} & wanted.keys():
            pytest.fail("give pytest --tessera-kernel FILE or --tessera-image DIR, or set them in its ini file")
        vm = Vm(**wanted)
        vms.append(vm)
        return vm.start()

    yield make
    for vm in vms:
        vm.close()


@pytest.fixture
def vm(make_vm: Callable[..., Vm]) -> Vm:
    """A VM that runs, as the options and the ini file say."""
    return make_vm()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Adds the console, the messages and the events of each VM to the report of a test that failed."""
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    for vm in item.stash.get(_VMS, []):
        events = "\n".join(str(dict(event)) for event in vm.history)
        for what, text in (("console", vm.console), ("messages", vm.log), ("events", events)):
            if text:
                report.sections.append((f"{what} of {vm.id}", text[-_MOST_REPORTED:]))
