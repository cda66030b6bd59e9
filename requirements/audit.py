"""Look up what the locks pin among known vulnerabilities: `make audit`.

Exit 0: nothing is known of any package. 1: something is, and it is listed. 3: no source of
advisories answers, so nothing was looked up; that is never taken for a clean result.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_FOLDER: Final = Path(__file__).parent
_LOCKS: Final = ("run", "dev", "ray", "audit")
_SOURCES: Final = ("pypi", "osv")
_TIMEOUT_S: Final = 240
_CLEAN, _FOUND, _NOT_LOOKED_UP = 0, 1, 3


def main(locks: list[Path]) -> int:
    """Audit locks, by whichever source answers; says what it did."""
    exit_code = _CLEAN
    for lock in locks:
        found = _looked_up(lock)
        if found is None:  # whoever does not answer for one does not for the next
            print("NOT AUDITED: NO SOURCE OF ADVISORIES ANSWERS; NOTHING WAS LOOKED UP")
            return _NOT_LOOKED_UP
        known = [each for each in found if each.get("vulns")]
        skipped = [each for each in found if "skip_reason" in each]
        for each in known:
            for fault in each["vulns"]:
                fixed = ", ".join(fault["fix_versions"]) or "no version"
                print(f"{each['name']} {each['version']}: {fault['id']} (fixed in {fixed})")
        for each in skipped:
            print(f"{lock.name}: {each['name']} was not looked up: {each['skip_reason']}")
        if known or skipped:
            exit_code = _FOUND
        print(f"{lock.name}: {len(found)} packages, {len(known)} with known vulnerabilities")
    return exit_code


def _looked_up(lock: Path) -> list[dict[str, Any]] | None:
    for source in _SOURCES:
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock)]
        command += ["--require-hashes", "--disable-pip", "--progress-spinner", "off"]
        command += ["--format", "json", "--vulnerability-service", source, "--timeout", "15"]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
            )
            found: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
        except subprocess.TimeoutExpired:
            print(f"{source}: no answer within {_TIMEOUT_S} s", file=sys.stderr)
        except (ValueError, KeyError, TypeError):
            last = ended.stderr.strip().splitlines()[-1:] or [f"exit {ended.returncode}"]
            print(f"{source}: {last[0][:300]}", file=sys.stderr)
        else:
            # A mirror that knows no package at all answers for none.
            if found and not all("skip_reason" in each for each in found):
                return found
            print(f"{source}: knows not one of these packages", file=sys.stderr)
    return None


if __name__ == "__main__":
    asked = [Path(each) for each in sys.argv[1:]]
    sys.exit(main(asked or [_FOLDER / f"{name}.lock" for name in _LOCKS]))
