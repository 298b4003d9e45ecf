from __future__ import annotations

import subprocess
import sys

import pytest

import histostore.pl as pl
from histostore.pl.style import OKABE_ITO, categorical, nice_length, shorten


@pytest.mark.parametrize(("limit", "length"), [(1.0, 1.0), (9.9, 5.0), (4.99, 2.0), (1000.0, 1000.0), (0.3, 0.2)])
def test_a_scale_bar_is_1_2_or_5_times_a_power_of_ten(limit, length):
    assert nice_length(limit) == pytest.approx(length)


def test_the_first_colours_are_okabe_and_ito_and_twenty_four_differ():
    assert categorical(8) == list(OKABE_ITO)
    assert len(set(categorical(24))) == 24
    assert len(categorical(30)) == 30


def test_long_names_lose_their_middle():
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 5) == "ab…jk"


def test_every_public_picture_is_found_by_name():
    assert all(callable(getattr(pl, name)) for name in pl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pl.nothing  # noqa: B018


def test_importing_the_package_imports_no_matplotlib():
    heavy = {"matplotlib", "jinja2", "pandas", "anndata"}
    code = f"import sys, histostore.pl, histostore.report; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"
