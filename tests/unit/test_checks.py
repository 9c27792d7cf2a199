"""The checks of CI find what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError

from scripts import check_benchmarks, check_links, check_sizes, check_skips, site_files

RAW = "../benchmarks/results/2026-01-31-gateway.json"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A docs/ beside one raw result."""
    results = tmp_path / "benchmarks/results"
    results.mkdir(parents=True)
    raw = {"figures": {"submits_per_s": {"median": 412.349}, "runs": [1, 2.5], "above_ms": -12.14, "ok": True}}
    (results / Path(RAW).name).write_text(json.dumps(raw))
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


class TestBenchmarks:
    @pytest.mark.parametrize(
        "line",
        [
            f"| submits/s | [412.3]({RAW}#figures.submits_per_s.median) | `>= 300` |",
            f"| runs | [2.5]({RAW}#figures.runs.1) |",
            f"| above the bound | [-12.1]({RAW}#figures.above_ms) |",
            "| polls/s | NOT MEASURED |",
            "## 8 steps on 2 cores",
            "```\n12 songs\n```",
        ],
    )
    def test_figures_with_their_raw_result_pass(self, docs: Path, line: str) -> None:
        assert check_benchmarks.complaints(line, docs) == []

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("| submits/s | 412.3 |", "no link"),
            (f"| above the bound | [12.1]({RAW}#figures.above_ms) |", "holds -12.14"),
            (f"| submits/s | [412.4]({RAW}#figures.submits_per_s.median) |", "holds 412.349"),
            (f"| submits/s | [412.3]({RAW}#figures.polls_per_s.median) |", "no number at"),
            (f"| submits/s | [412.3]({RAW}) |", "names no figure"),
            ("| submits/s | [412.3](../benchmarks/results/gone.json#a) |", "does not exist"),
            ("| submits/s | [412.3](https://example.org/results.json#a) |", "names no figure"),
            (f"| submits/s | [412.3 per s]({RAW}#figures.submits_per_s.median) |", "figure alone"),
            (f"| ok | [1]({RAW}#figures.ok) |", "no number at"),
            ("It takes 30 s.", "no link"),
        ],
    )
    def test_other_figures_are_refused(self, docs: Path, line: str, why: str) -> None:
        (complaint,) = check_benchmarks.complaints(line, docs)
        assert why in complaint


class TestLinks:
    @pytest.fixture
    def page(self, tmp_path: Path) -> Path:
        (tmp_path / "other.md").write_text("# A `name`, here\n\n## 日本語クイックスタート\n\n## Twice\n\n## Twice\n")
        return tmp_path / "page.md"

    @pytest.mark.parametrize(
        "link",
        [
            "[a](other.md)",
            "[a](other.md#a-name-here)",
            "[a](other.md#日本語クイックスタート)",
            "[a](other.md#twice-1)",
            "[a](https://example.org/gone)",
            "`[a](gone.md)`",
            "```\n[a](gone.md)\n```",
        ],
    )
    def test_good_links_pass(self, page: Path, link: str) -> None:
        page.write_text(link)
        assert check_links.complaints(page, page.parent) == []

    @pytest.mark.parametrize(
        "link",
        [
            "[a](gone.md)",
            "[a](other.md#gone)",
            "[a](#gone)",
            "[a](../../etc/passwd)",
            '<img src="gone.png">',
            "![](x.svg)",
        ],
    )
    def test_dead_links_are_reported(self, page: Path, link: str) -> None:
        page.write_text(link)
        assert len(check_links.complaints(page, page.parent)) == 1

    @pytest.mark.parametrize(
        ("name", "text", "lost"),
        [
            ("a.md", "`controller/sweeper.py`, `sweeper.py`, `controller/`, `controller/sweeper.py::test_it`", []),
            ("a.md", "`controller/gone_room.py`, `gone_room.py`", ["controller/gone_room.py", "gone_room.py"]),
            ("a.md", "`controller/routes/`, `dist/values.yaml`, `songs/a/`", ["controller/routes/"]),
            ("a.md", "```\ncontroller/gone_room.py\n```", []),
            ("a.py", '"""See controller/sweeper.py."""\n# and docs/page.md\npath = "controller/gone_room.py"\n', []),
            ("a.py", "# see controller/gone_room.py, not other/gone_room.py\n", ["controller/gone_room.py"]),
            ("a.py", 'def f():\n    """See controller/gone_room.py."""\n', ["controller/gone_room.py"]),
            ("a.py", "# docs/decisions/0001, decision 0002\n", ["docs/decisions/0002"]),
            ("a.yaml", "a: 1  # controller/sweeper.py\nb: 2  # controller/gone_room.py\n", ["controller/gone_room.py"]),
        ],
    )
    def test_a_path_that_is_cited_must_exist(self, name: str, text: str, lost: list[str]) -> None:
        there = check_links.paths(["controller/sweeper.py", "docs/page.md", "docs/decisions/0001-a.md"])
        found = check_links.missing(Path(name), text, there)
        assert found == [f"{name}: cites {path}, which does not exist" for path in lost]


class TestSizes:
    @pytest.mark.parametrize(("lines", "complaints"), [(500, 0), (501, 1)])
    def test_a_file_has_a_bound(self, lines: int, complaints: int) -> None:
        assert len(check_sizes.complaints({"a.py": lines})) == complaints


class TestSkips:
    REPORT = """<testsuites><testsuite>
        <testcase classname="tests.unit.test_a" name="test_passes"/>
        <testcase classname="tests.gpu.test_b" name="test_song"><skipped message="no GPU"/></testcase>
        <testcase classname="" name="tests.browser.test_c"><skipped message="no Chromium"/></testcase>
        <testcase classname="tests.unit.test_d" name="test_known"><skipped type="pytest.xfail" message="x"/></testcase>
        </testsuite></testsuites>"""

    def complaints(self, listed: str) -> list[str]:
        return check_skips.complaints(check_skips.cases(self.REPORT), *check_skips.expected(listed))

    def test_an_agreed_list_passes(self) -> None:
        listed = "# why\n\ntests.gpu.test_b::test_song | needs a GPU\n? tests.browser.test_c | needs Chromium\n"
        assert self.complaints(listed) == []
        assert self.complaints(listed + "? tests.browser.test_c::test_y | some machines\n") == []
        assert self.complaints(listed + "? tests.unit.test_a::test_passes | some machines\n") == []

    @pytest.mark.parametrize(
        ("listed", "why"),
        [
            ("tests.gpu.test_b::test_song | needs a GPU", "test_c: skipped (no Chromium), but not in the list"),
            (
                "tests.gpu.test_b::test_song | a\ntests.browser.test_c | b\ntests.unit.test_a::test_passes | c",
                "not skipped",
            ),
            (
                "tests.gpu.test_b::test_song | a\ntests.browser.test_c | b\n? tests.unit.test_a::test_gone | c",
                "no such test",
            ),
            ("tests.gpu.test_b::test_song |\ntests.browser.test_c | b", "no reason"),
        ],
    )
    def test_a_list_that_differs_is_reported(self, listed: str, why: str) -> None:
        (complaint,) = self.complaints(listed)
        assert why in complaint


class TestSite:
    @pytest.mark.parametrize(
        "page",
        [
            '<script src="https://cdn.example/a.js"></script>',
            '<link rel="stylesheet" href="//fonts.example/css">',
            '<img src="http://example.com/a.png">',
            '<iframe src="HTTPS://example.com/"></iframe>',
            "<style>@font-face { src: url('https://fonts.example/a.woff2') }</style>",
            '<p style="background: url(//example.com/a.png)">',
        ],
    )
    def test_a_page_that_loads_from_another_host(self, page: str) -> None:
        assert len(site_files.loaded(page)) == 1

    @pytest.mark.parametrize(
        "page",
        [
            '<script src="../assets/a.js"></script><link rel="stylesheet" href="/a.css"><img src="a.png">',
            '<a href="https://example.com/">elsewhere</a>',
            "<code>curl https://example.com</code>",
            "<style>a { mask: url('data:image/svg+xml,<svg xmlns=\"http://www.w3.org/2000/svg\">') }</style>",
        ],
    )
    def test_a_page_that_loads_its_own(self, page: str) -> None:
        assert site_files.loaded(page) == []

    def test_a_style_sheet_that_loads_from_another_host_ends_the_build(self, tmp_path: Path) -> None:
        config = load_config(str(Path(__file__).parents[2] / "mkdocs.yml"), site_dir=str(tmp_path))
        (tmp_path / "a.html").write_text("<p>")
        site_files.on_post_build(config)
        (tmp_path / "a.css").write_text("@import 'https://fonts.example/css';")
        with pytest.raises(PluginError, match="https://fonts"):
            site_files.on_post_build(config)
