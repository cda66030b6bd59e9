from __future__ import annotations

import sys

import pytest

from services.registry.domain.import_names import DISTRIBUTIONS, widely_known
from services.registry.domain.requirements import (
    Requirement,
    RequirementError,
    check_python,
    declared_dependencies,
    normalise,
    suggested_dependencies,
)
from services.registry.domain.source import Import
from tests.support.cost import counted


def _block(*lines: str) -> str:
    return "\n".join(["# /// script", *(f"# {line}" if line else "#" for line in lines), "# ///"])


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("NumPy>=2,<3", "numpy<3,>=2"),
        (" Foo_Bar [B,a] == 1.0 ", "foo-bar[a,b]==1.0"),
        ("requests", "requests"),
    ],
)
def test_a_requirement_has_one_spelling(text: str, canonical: str) -> None:
    assert normalise(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "--index-url=http://x",
        "-r /etc/passwd",
        "-e .",
        "-c x",
        "git+https://example.org/x",
        "hg+http://example.org/x",
        "file:///etc/passwd",
        "./local",
        "/absolute",
        "../up",
        "~/home",
        "pkg @ https://example.org/x.whl",
        "a\nb",
        "a; b",
        "a; python_version < '4'",
        "a --hash=sha256:00",
        "nump\u0443",
        "x" * 300,
        "..",
        "a==*",
        "a===weird",
        "a" + "==1," * 40 + "==1",
        "a>=1,!=2" + ",!=3" * 12 + ",!=4.1,!=4.2,!=4.3,!=4.4,!=4.5,!=4.6,!=4.7,!=4.8,!=4.9,!=5.0",
        "",
        " ",
        "a b",
        "a\0",
        "a\r",
    ],
)
def test_anything_but_name_extras_and_versions_is_refused(text: str) -> None:
    """B84, B85, B86, B87, B88, B90, B91."""
    with pytest.raises(RequirementError):
        normalise(text)


def test_a_declared_block_is_the_truth() -> None:
    code = _block(
        'requires-python = ">=3.11"',
        "dependencies = [",
        '  "Pandas>=2",',
        '  "pandas >= 2",',
        "]",
        "",
        "[tool.x]",
    )
    found = declared_dependencies(code)
    assert found is not None
    assert found.requirements == (Requirement("pandas>=2", "pep723"),)
    assert found.requires_python == ">=3.11"
    assert found.diagnostics == ()


@pytest.mark.parametrize(
    ("code", "fault", "line"),
    [
        (_block("dependencies = [1]"), "PEP723_INVALID", 1),
        (_block("dependencies = "), "PEP723_INVALID", 1),
        (_block("dependencies = []") + "\n\n" + _block("dependencies = []"), "PEP723_INVALID", 5),
        (_block("x = " + "[" * 20_000), "PEP723_INVALID", 1),
        (_block('dependencies = ["a",', '"-e ."]'), "REQUIREMENT_REFUSED", 3),
        (
            _block("dependencies = [" + ",".join(f'"p{i}"' for i in range(101)) + "]"),
            "TOO_MANY_REQUIREMENTS",
            1,
        ),
        (_block(f'requires-python = ">=3{",<4" * 100}"'), "PEP723_INVALID", 1),
        (_block("x = 1", f"# {'x' * 20_000}"), "PEP723_INVALID", 1),
        (_block("", "a = 1", f"a{'.a' * 32} = 1"), "PEP723_INVALID", 4),
    ],
)
def test_a_block_that_cannot_be_used_says_why_and_where(code: str, fault: str, line: int) -> None:
    """B88, B94."""
    found = declared_dependencies(code)
    assert found is not None
    assert [(each.code, each.line) for each in found.diagnostics] == [(fault, line)]


@pytest.mark.parametrize("part", ["a", "a ", '"a b"', '"\\\\\\"a"', "'a'", "'a' "])
@pytest.mark.parametrize("line", ["{} = 1", "[{}]", "x = {{ {} = 1 }}"])
def test_a_key_of_very_many_parts_is_refused_unread(part: str, line: str) -> None:
    with counted() as cost:
        for parts, fault in ((33, "PEP723_INVALID"), (3_000 // len(part), "PEP723_INVALID")):
            found = declared_dependencies(_block(line.format(".".join([part] * parts))))
            assert found is not None
            assert [each.code for each in found.diagnostics] == [fault]
    assert cost.ms < 100
    found = declared_dependencies(_block(line.format(".".join([part] * 32))))
    assert found is not None
    assert found.diagnostics == ()


def test_many_versions_on_one_line_are_no_long_key() -> None:
    names = ", ".join(f"'p{index}==1.2.3.4.5'" for index in range(50))
    found = declared_dependencies(_block(f"dependencies = [{names}]"))
    assert found is not None
    assert len(found.requirements) == 50


def test_imports_are_mapped_with_their_provenance() -> None:
    imports = [
        Import("json", ("json",), 1, standard=True, guarded=False),
        Import("yaml", ("yaml",), 2, standard=False, guarded=False),
        Import("numpy", ("numpy.linalg",), 3, standard=False, guarded=False),
        Import("google", ("google.protobuf.message",), 4, standard=False, guarded=False),
        Import("ujson", ("ujson",), 5, standard=False, guarded=True),
        Import("qflow", ("qflow",), 6, standard=False, guarded=False),
    ]
    found = suggested_dependencies(imports)
    assert found.requirements == (
        Requirement("pyyaml", "mapping", "yaml"),
        Requirement("numpy", "same_name", "numpy"),
        Requirement("protobuf", "mapping", "google.protobuf.message"),
    )
    assert [each.code for each in found.diagnostics] == ["IMPORT_OPTIONAL"]


@pytest.mark.parametrize(
    ("requires", "fits"),
    [
        ("", True),
        (">=3.9", True),
        ("~=3.11", True),
        ("<3.11", False),
        ("==3.11.*", True),
        ("x", False),
    ],
)
def test_the_declared_python_must_admit_the_nodes(requires: str, fits: bool) -> None:  # noqa: FBT001
    assert (check_python(requires, "3.11") is None) == fits


def test_every_known_name_is_a_requirement_of_the_index() -> None:
    known = {**widely_known(), **DISTRIBUTIONS}
    assert len(known) >= 600
    for module, distribution in known.items():
        assert module.isidentifier()
        assert normalise(distribution) == distribution
        assert module not in sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "distribution"),
    [
        ("cv2", "opencv-python-headless"),  # chosen over the one with a display
        ("importlinter", "import-linter"),
        ("sklearn", "scikit-learn"),
        ("markdown_it", "markdown-it-py"),
    ],
)
def test_a_module_of_another_name_is_found(module: str, distribution: str) -> None:
    imported = Import(module, (module,), 1, standard=False, guarded=False)
    found = suggested_dependencies([imported]).requirements
    assert found == (Requirement(distribution, "mapping", module),)
