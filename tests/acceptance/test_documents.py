"""The documents name only what is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor_pool import Default

from docs import settings_page

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("deploy/*.md")],
)
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
CONTRACT = sorted((ROOT / "protos" / "qflow").rglob("*.proto"))


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    local = [link for link in links if "://" not in link]
    assert [] == [link for link in local if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_make_targets_exist(document: Path) -> None:
    code = re.findall(r"`([^`\n]+)`|^(make .*)$", document.read_text("utf-8"), re.MULTILINE)
    commands = [inline or line for inline, line in code]
    asked = {match[1] for text in commands if (match := re.match(r"make ([a-z-]+)", text))}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set() == asked - targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_paths_exist(document: Path) -> None:
    inline = re.findall(r"`([^`\n]+)`", document.read_text("utf-8"))
    tops = ("services/", "clients/", "tests/", "migrations/", "protos/", "examples/", "bench/")
    blanks = (" ", "<", "NNNN")  # a command, or a pattern for the reader to fill in
    paths = [
        text
        for text in inline
        if text.startswith(tops) and not any(blank in text for blank in blanks)
    ]
    assert [] == [path for path in paths if not any(ROOT.glob(path.rstrip("/")))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_rpcs_exist(document: Path) -> None:
    for path in CONTRACT:
        module = path.relative_to(ROOT / "protos").with_suffix("")
        importlib.import_module(".".join(module.parts) + "_pb2")
    called = re.findall(r"\b(qflow\.\w+\.v1\.\w+Service)/(\w+)", document.read_text("utf-8"))
    for service, method in called:
        assert method in Default().FindServiceByName(service).methods_by_name


@pytest.mark.parametrize("lock", LOCKS, ids=named)
def test_a_lock_has_hashes_and_names_no_index(lock: Path) -> None:
    """Whoever installs says from where; the hashes say what."""
    text = lock.read_text("utf-8")
    assert {"--hash"} == set(re.findall(r"^ +(--[a-z-]+)", text, re.MULTILINE))
    assert [] == re.findall(r".*(?:://|-url|^-).*", text, re.MULTILINE)


def test_settings_that_are_described_are_read() -> None:
    described = set(re.findall(r"`(QFLOW_[A-Z_]+)`", (ROOT / "docs" / "settings.md").read_text()))
    read = "\n".join(
        path.read_text("utf-8")
        for folder in ("services", "migrations")
        for path in (ROOT / folder).rglob("*.py")
    )
    kept = {name for name in described if re.fullmatch(r"QFLOW_KEEP_[A-Z_]+_DAYS", name)}
    assert len(described) > 15
    assert set() == {name for name in described - kept if f'"{name}"' not in read}


def test_the_page_of_settings_is_as_the_code_is() -> None:
    text, known = settings_page.PAGE.read_text("utf-8"), settings_page.facts()
    assert len(known) > 60
    assert text == settings_page.page(text, known)
    assert [] == [*settings_page.undescribed(text, known)]
    changed = {
        **known,
        "QFLOW_RUNNER_SPARES": [settings_page.Fact("integer", 2, 0, 128)],
        "QFLOW_RUNNER_NEW": [settings_page.Fact("flag", False, None, None)],
    }
    after = settings_page.page(text, changed)
    assert "`QFLOW_RUNNER_SPARES` | whole number, 0 to 128 | 2 |" in after
    [said] = settings_page.undescribed(text, changed)
    assert said.startswith("QFLOW_RUNNER_NEW is read and not described")
