"""The benchmarks' words: medians, verdicts, the page's table and the picture."""

import json
from xml.etree import ElementTree

import pytest

from bench import report
from bench.bars import GROUPS, bars
from bench.picture import svg
from bench.registry import Bench, Samples, Target
from bench.rows import BENCHES


@pytest.fixture
def samples():
    made = Samples()
    for value in (1.0, 2.0, 30.0):
        made.add("ours", value, "ms")
        made.add("floor", value / 4, "ms")
    made.add("rate", 480.0, "/s")
    return made


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target("", "ours", 3.9, "floor"), 4.0, False),
        (Target("", "ours", 4.0, "floor"), 4.0, True),
        (Target("", "ours", 1.5, "floor", "plus"), 1.5, True),
        (Target("", "ours", 1.9, kind="most"), 2.0, False),
        (Target("", "rate", 500, kind="least"), 480.0, False),
        (Target("", "rate", 480, kind="least"), 480.0, True),
        (Target("", "ours", 3, "absent"), None, None),
        (Target("", "absent", 3, kind="most"), None, None),
    ],
)
def test_target_holds_medians_against_its_limit(samples, target, value, met):
    assert (target.value(samples), target.met(samples)) == (value, met)


def test_table_has_medians_ratio_and_verdict(samples):
    one = Bench("one", "One", None, (Target("this", "ours", 3, "floor"),))
    assert report.markdown([(one, samples)])[-1] == (
        "| this | 2.00 ms (1.00-30.0) | 0.500 ms (0.250-7.50) | 4.00 x | <= 3 x | missed |"
    )


def test_table_goes_between_the_marks_of_the_page_and_nowhere_else():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.put(page, ["new"]) == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        report.put("no marks", ["new"])


def test_figures_name_no_machine(samples):
    found = json.loads(report.figures([(Bench("one", "One", None), samples)]))
    assert set(found) == {"linux", "cpus", "python", "disk", "load", "benchmarks"}
    assert found["benchmarks"]["one"]["series"]["ours"]["median"] == 2.0


def test_picture_is_xml_with_a_bar_for_each_series_that_was_measured():
    measured = Samples()
    measured.add("POST /endpoints", 2.0, "ms")
    measured.add("raw netlink: add", 0.8, "ms")
    shown = bars([(BENCHES["endpoint"], measured)])
    assert shown[0] == (GROUPS[0][0], [("Bridgehead", 2.0, "ours"), ("raw netlink, in C", 0.8, "floor")])
    root = ElementTree.fromstring(svg(shown))
    assert len(root.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 3 + 2


def test_each_bar_belongs_to_a_benchmark():
    assert {name for _title, series in GROUPS for _kind, _label, name, _series in series} <= set(BENCHES)
