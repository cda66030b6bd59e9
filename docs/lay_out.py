"""Lay out what the docs site is built of: the pages, and every file that one of them links to.

    python docs/lay_out.py build/docs

Each lies as it does in the repository, so that links hold unchanged; a link to a folder leads to
its README. The README is the first page.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
_LINK: Final = re.compile(r"(!?\[[^\]]*\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
SETTINGS_PAGE: Final = "docs/workflow-settings.md"
DECISIONS_PAGE: Final = "docs/adr/README.md"
_PAGES: Final = ("*.md", "docs/**/*.md", "deploy/*.md", "bench/*.md")


def main(into: Path) -> None:
    """Make the folder anew."""
    shutil.rmtree(into, ignore_errors=True)
    for pattern in _PAGES:
        for page in ROOT.glob(pattern):
            _lay(page, into)
    shutil.move(into / "README.md", into / "index.md")
    (into / SETTINGS_PAGE).write_text(settings_page(), "utf-8")
    with (into / DECISIONS_PAGE).open("a", encoding="utf-8") as page:
        page.write(decisions())


def decisions() -> str:
    """List all decisions by their titles."""
    pages = sorted((ROOT / DECISIONS_PAGE).parent.glob("0*.md"))
    titles = ((page, page.read_text("utf-8").split("\n", 1)[0].lstrip("# ")) for page in pages)
    return "\n" + "".join(f"- [{title}]({page.name})\n" for page, title in titles)


def settings_page() -> str:
    """Give the reference of the settings of workflows and nodes, from the table that validates."""
    sys.path[:0] = [str(ROOT)]
    from services.registry.domain.setting_table import SETTINGS  # late: a hook needs it not

    rows = [
        "# Settings of workflows and nodes",
        "",
        "Made from the table by which the registry checks them, as `GetSettingsSchema` gives it.",
        "",
        "| Setting | Kind | Default | From | To | What it says | What enforces it |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in SETTINGS:
        unit = f", {each.unit}" if each.unit else ""
        figures = " | ".join(_figure(one) for one in (each.default, each.minimum, each.maximum))
        rows.append(
            f"| `{each.name}` | {each.kind}{unit} | {figures} | {each.description} | "
            f"{each.enforced_by}: {each.enforcement} |"
        )
    return "\n".join(rows) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _lay(page: Path, into: Path) -> None:
    target = into / page.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)

    def led(found: re.Match[str]) -> str:
        place = (page.parent / found[2]).resolve()
        if not place.is_relative_to(ROOT) or not place.exists():
            return found[0]  # the site's strict build names it
        if place == ROOT / "README.md":
            return f"{found[1]}{found[2].removesuffix('README.md')}index.md{found[3]}"
        if place.is_dir():
            if not (place / "README.md").exists():
                return found[0]
            return f"{found[1]}{found[2].rstrip('/')}/README.md{found[3]}"
        if place.suffix != ".md":
            copied = into / place.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, copied)
        return f"{found[1]}{found[2]}{found[3]}"

    target.write_text(_LINK.sub(led, page.read_text("utf-8")), "utf-8")


def on_config(config: Any) -> Any:
    """Put pages that the menu does not name at its end: mkdocs calls this (`hooks`)."""
    there = Path(config["docs_dir"])
    named = set(_named(config["nav"]))
    pages = sorted(str(each.relative_to(there)) for each in there.rglob("*.md"))
    left = [each for each in pages if each not in named and not each.startswith("docs/adr/0")]
    if left:
        config["nav"].append({"Further": left})
    return config


def _named(menu: Any) -> Iterator[str]:
    """Give every page that a menu names, however deep."""
    if isinstance(menu, str):
        yield menu
    elif menu:
        for each in menu.values() if isinstance(menu, dict) else menu:
            yield from _named(each)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
