from __future__ import annotations

import base64
import os
import re
import stat
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from histostore.errors import UsageError
from histostore.report import Section, write_report

EVIL = "<script>alert('1')</script>\"'><img src=x onerror=alert(1)>&"


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def written(tmp_path, *sections, **kwargs):
    path = write_report(tmp_path / "r.html", title=kwargs.pop("title", "Report"), sections=sections, **kwargs)
    page = path.read_text(encoding="utf-8")
    return page, Page(page)


@pytest.fixture
def figure():
    figure = Figure(figsize=(2, 1), dpi=150)
    figure.add_subplot().plot([0, 1])
    return figure


def test_everything_given_is_escaped(tmp_path, figure):
    table = pd.DataFrame({EVIL: [EVIL]}, index=pd.Index([EVIL], name=EVIL))
    section = Section(
        title=EVIL, text=EVIL, warnings=[EVIL], notes=[EVIL], tables={EVIL: table}, figures={EVIL: figure}
    )
    page, parsed = written(
        tmp_path, section, title=EVIL, store=EVIL, subtitle=EVIL, warnings=[EVIL], appendix={EVIL: [EVIL]}
    )
    assert not [tag for tag, _ in parsed.tags if tag == "script"]
    assert len([tag for tag, _ in parsed.tags if tag == "img"]) == 1
    assert not [a for _, attrs in parsed.tags for a in attrs if a.startswith("on")]
    # title twice, store, subtitle, banner, contents, heading, warning, text, head and row of the table, …
    assert "".join(parsed.text).count("<script>alert('1')</script>") >= 14
    assert "<script" not in page


def test_the_file_needs_nothing_else(tmp_path, figure):
    page, parsed = written(tmp_path, Section(title="A", figures={"one": figure}), Section(title="B"))
    for tag, attrs in parsed.tags:
        assert tag not in {"link", "script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "action", "data"):
            if name in attrs:
                assert attrs[name].startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_contents_lead_to_every_section_and_ids_are_unique(tmp_path):
    _, parsed = written(tmp_path, Section(title="Same"), Section(title="Same"), appendix={"a": 1})
    links = [attrs["href"][1:] for tag, attrs in parsed.tags if tag == "a"]
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert links == ids == ["section-1", "section-2", "appendix"]


def test_figures_and_png_bytes_are_inlined_as_they_are(tmp_path, figure):
    figure.savefig(tmp_path / "f.png")
    png = (tmp_path / "f.png").read_bytes()
    _, parsed = written(tmp_path, Section(title="A", figures={"a chart": figure, "bytes": png}))
    images = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert [i["alt"] for i in images] == ["a chart", "bytes"]
    assert base64.b64decode(images[1]["src"].split(",")[1]) == png
    assert base64.b64decode(images[0]["src"].split(",")[1]).startswith(b"\x89PNG")
    assert images[0]["width"] == "192"  # two inches on the page, drawn at 150 dpi
    assert "width" not in images[1]


def test_bytes_that_are_no_png_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'x' are no PNG"):
        written(tmp_path, Section(title="A", figures={"x": b"GIF89a"}))
    assert list(tmp_path.iterdir()) == []


def test_numbers_stand_right_and_names_left(tmp_path):
    table = pd.DataFrame({"slide": ["C2"], "r": [0.32], "n": [12345]})
    page, _ = written(tmp_path, Section(title="A", tables={"Scores": table}))
    assert '<td>C2</td><td class="n">0.320</td><td class="n">12\u2009345</td>' in page
    assert "<caption>Scores</caption>" in page


def test_a_long_table_starts_folded_and_a_cut_one_says_so(tmp_path):
    page, parsed = written(tmp_path, Section(title="A", tables={"Genes": pd.DataFrame({"r": np.zeros(1000)})}))
    assert [tag for tag, _ in parsed.tags].count("details") == 1
    assert "The first 300 rows; 700 more are not shown." in page


def test_warnings_stand_before_the_sections(tmp_path):
    page, _ = written(tmp_path, Section(title="First"), Section(title="B"), warnings=["same patient on both sides"])
    assert 0 < page.index("same patient on both sides") < page.index("First")


def test_equal_input_gives_equal_bytes(tmp_path, figure):
    pages = [written(tmp_path, Section(title="A", figures={"f": figure}), appendix={"b": 1, "a": 2})[0] for _ in "ab"]
    assert pages[0] == pages[1]


def test_the_page_follows_light_and_dark(tmp_path):
    page, _ = written(tmp_path, Section(title="A"))
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="color-scheme" content="light dark">' in page


def test_an_appendix_that_is_no_json_is_refused(tmp_path):
    for value in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(UsageError, match="no plain JSON"):
            written(tmp_path, appendix=value)


def test_a_report_replaces_the_old_one_whole_and_is_readable_by_others(tmp_path):
    written(tmp_path, Section(title="Old"))
    mask = os.umask(0)
    os.umask(mask)
    written(tmp_path, Section(title="New"))
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert "New" in (tmp_path / "r.html").read_text()
    assert stat.S_IMODE((tmp_path / "r.html").stat().st_mode) == 0o666 & ~mask


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        write_report(tmp_path / "none" / "r.html", title="x", sections=[])
