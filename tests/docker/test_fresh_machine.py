"""What a new user meets: a clone of this repository, `make demo`, and nothing installed before."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest

from tests.docker.conftest import Machine, MachineFactory

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

# As Docker's own profile bars it, and Landlock besides: nothing is left to hold user code with.
_NOTHING_HOLDS: Final = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {
            "names": [
                *("unshare", "setns", "mount", "clone3"),
                *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
            ],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 38,
        }
    ],
}
_CACHES: Final = "export PIP_CACHE_DIR=/cache/$USER/pip UV_CACHE_DIR=/cache/$USER/uv"


def clone(machine: Machine, *, user: str, folder: str) -> None:
    machine.must(f"git clone -q /checkout {folder}/qflow", user=user)


@pytest.mark.parametrize(("user", "folder"), [("root", "/srv"), ("newcomer", "/home/newcomer")])
def test_the_demo_runs_on_a_fresh_machine(machine: MachineFactory, user: str, folder: str) -> None:
    """In a container, which bars namespaces: it runs at T1, and says so loudly."""
    fresh = machine()
    if user != "root":
        fresh.add_user(user)
    clone(fresh, user=user, folder=folder)
    assert [] == fresh.processes()

    said = fresh.run(f"{_CACHES} && make demo", user=user, folder=f"{folder}/qflow")

    assert said.code == 0, said.text
    result = said.text.partition("\nResult\n")[2]
    assert "It rained on 34.6 % of the days." in result, said.text
    assert re.search(r"^Isolation: T1, .*WEAKER than the default, T2", said.text, re.MULTILINE)
    assert re.search(r"ran in \d+ sandboxes of tier T1", said.text)
    assert "How to go on:" in said.text
    assert [] == fresh.processes()


def test_where_nothing_can_hold_user_code_the_demo_says_so_and_what_to_do(
    machine: MachineFactory,
) -> None:
    """E15: never run unheld because a machine offers no better."""
    fresh = machine(security_opt=["seccomp=" + json.dumps(_NOTHING_HOLDS)])
    clone(fresh, user="root", folder="/srv")

    said = fresh.run(f"{_CACHES} && timeout 400 make demo", folder="/srv/qflow")

    assert said.code != 0, said.text
    assert re.search(r"^Isolation: T0.*WEAKER", said.text, re.MULTILINE), said.text
    assert "completed" not in said.text
    assert "QFLOW_UNSAFE_NO_SANDBOX" in said.text
    assert [] == fresh.processes()


def test_root_in_its_own_closed_folder_is_told_where_to_go(machine: MachineFactory) -> None:
    """PostgreSQL must be another user here, whom nobody lets into /root."""
    fresh = machine()
    clone(fresh, user="root", folder="/root")

    said = fresh.run(f"{_CACHES} && timeout 400 make demo", folder="/root/qflow")

    assert said.code != 0, said.text
    assert "PostgreSQL does not run as root" in said.text
    assert (
        "Start Qflow as an ordinary user, or put both in a folder that all users may enter"
        in said.text
    )
    assert "Traceback" not in said.text
    assert [] == fresh.processes()


def test_without_the_venv_module_setup_prints_the_command_that_installs_it(
    machine: MachineFactory,
) -> None:
    fresh = machine()
    clone(fresh, user="root", folder="/srv")
    packages = fresh.must("dpkg-query -W -f '${Package}\\n' 'python3*'").split()
    fresh.must("dpkg --purge --force-depends python3-venv python3.11-venv")

    said = fresh.run("make setup", folder="/srv/qflow")

    assert said.code != 0
    assert "its venv module is not. Install it:" in said.text
    assert "sudo apt-get install -y python3.11 python3.11-venv" in said.text
    assert {"python3.11", "python3.11-venv"} <= set(packages), "packages that exist"


def test_without_python_setup_prints_the_command_that_installs_it(machine: MachineFactory) -> None:
    fresh = machine()
    clone(fresh, user="root", folder="/srv")
    fresh.must("rm /usr/bin/python3*")

    said = fresh.run("make setup", folder="/srv/qflow")

    assert said.code != 0
    assert "Qflow needs Python 3.11 or later. Install it:" in said.text
    assert "sudo apt-get install -y python3 python3-venv" in said.text
