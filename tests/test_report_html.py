import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from scale_callbacks import Decision, LossForecaster, Monitor, RewardForecaster, SaturationRule
from scale_callbacks.report_html import report_html, save_report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{7*7}}\u2028"


def played(schedule, losses, **options):
    monitor = Monitor(LossForecaster(schedule), name="train_loss", **options)
    for step, loss in enumerate(losses, start=1):
        monitor.observe(step, float(loss))
    return monitor.summary()


@pytest.fixture
def half(schedule, losses):
    return played(schedule, losses[:500])


class Elements(HTMLParser):
    """The elements, attributes and texts that a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.S)[1])


def test_the_page_says_the_forecast(half):
    page = report_html(half)
    assert "train_loss</span> is heading for <strong>" in page
    told = data_of(page)["forecast"]
    assert np.allclose(told["ends"], [half.forecast.value, half.forecast.low, half.forecast.high], rtol=1e-6)
    assert f"<strong>{told['texts'][0]}</strong>" in page
    assert f"90% interval {told['texts'][1]} to {told['texts'][2]}" in page


def test_the_curve_the_fan_and_the_forecasts_over_time_are_in_it(half):
    data = data_of(report_html(half))
    loss = {name: np.array(column, dtype=float) for name, column in data["loss"].items()}
    at = np.isin(loss["steps"], half.bins.steps)
    assert np.allclose(loss["mean"][at], half.bins.mean, rtol=1e-6)
    ahead = loss["steps"] >= 500
    assert np.isfinite(loss["value"][ahead]).all()
    assert np.isnan(loss["value"][~ahead]).all()
    assert (loss["low"][ahead] < loss["high"][ahead]).all()
    made = {s: v for s, v in zip(data["past"]["steps"], data["past"]["value"], strict=True) if v is not None}
    assert list(made) == [point.step for point in half.history]
    assert np.allclose(list(made.values()), [point.value for point in half.history], rtol=1e-6)


def test_the_areas_and_residuals_are_in_it(half, schedule):
    data = data_of(report_html(half))
    rate = data["rate"]
    middle = rate["steps"].index(500.0)
    assert rate["area"][middle] == pytest.approx(100 * schedule.area(500) / schedule.area(1000), rel=1e-5)
    assert rate["annealing"][middle] == 0.0
    assert rate["annealing"][-1] == pytest.approx(100.0)
    off = [value for value in data["residual"]["off"] if value is not None]
    assert np.allclose(off, half.bins.mean - half.forecast.at(half.bins.steps)[0], atol=1e-6)


def test_a_finished_run_is_told_with_its_truth(schedule, losses):
    summary = played(schedule, losses)
    page = report_html(summary)
    assert "</span> ended at <strong>" in page
    assert data_of(page)["measured"] == pytest.approx(summary.measured, rel=1e-6)
    assert "forecast at 50%" in page
    assert page.count("<td>yes</td>") + page.count("<td>no</td>") == len(summary.history)


@pytest.mark.parametrize("seen", [0, 1, 2, 7, 8, 12])
def test_short_stretches_make_a_page(schedule, losses, seen):
    summary = played(schedule, losses[:seen])
    page = report_html(summary)
    assert ("is heading for" in page) == (summary.forecast is not None)
    assert (data_of(page)["loss"] is None) == (seen == 0)


def test_a_reward_run_without_a_plan_makes_a_page():
    monitor = Monitor(RewardForecaster(400), rules=[SaturationRule()], name="reward")
    for step in range(1, 301):
        monitor.observe(step, 1 - np.exp(-step / 20) + 0.05 * np.sin(7.0 * step))
    page = report_html(monitor.summary())
    assert monitor.decision.stop
    assert 'id="rate"' not in page
    assert "Decision: stop" in page
    assert "saturated" in page


def test_strings_from_outside_are_text_and_nothing_else(half):
    evil = replace(
        half,
        name=EVIL,
        settings={**half.settings, EVIL: EVIL},
        warnings={EVIL: 3},
        decision=Decision(True, EVIL, {EVIL: 1.0}),
        forecast=replace(half.forecast, weights={EVIL: 1.0}, status=EVIL),
        history=tuple(replace(point, status=EVIL) for point in half.history),
    )
    calm, page = Elements(report_html(half)), report_html(evil)
    elements = Elements(page)
    assert elements.count("script") == calm.count("script") == 3
    assert elements.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in elements.elements for name in attributes)
    assert "".join(elements.texts["title"]).startswith("</script><script>alert(1)")
    assert data_of(page)["name"].startswith("</script><script>alert(1)")
    assert "49" not in data_of(page)["name"]


def test_names_that_cannot_be_written_are_written_anyway(half, tmp_path):
    odd = replace(half, name="loss\ud800\u202e\x00 \u640d\u5931" + "n" * 5000)
    save_report(odd, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "\u640d\u5931" in page
    assert "\u202e" not in page
    assert len(page) < 300_000


def test_the_page_loads_nothing_and_lets_only_its_own_scripts_run(half):
    page = report_html(half)
    elements = Elements(page)
    policy = next(a["content"] for _, a in elements.elements if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not [a for _, a in elements.elements if {"src", "href", "srcset", "action"} & set(a)]
    assert not re.search(r"@import|url\(", "".join(elements.texts["style"]))


def test_the_chart_librarys_licence_travels_with_the_page(half):
    assert "Copyright (c) 2022 Leon Sorokin" in report_html(half)


def test_values_that_are_not_finite_do_not_break_the_page(half):
    bins = replace(half.bins, mean=np.full(len(half.bins), np.nan))
    assert set(data_of(report_html(replace(half, bins=bins)))["loss"]["mean"]) == {None}


@pytest.mark.parametrize("scale", [1e-12, 1.0, -1.0, 1e12, 0.0])
def test_losses_of_any_size_and_sign_make_a_page(schedule, losses, scale):
    assert data_of(report_html(played(schedule, scale * losses[:400])))["forecast"]


def test_the_page_stays_small_whatever_the_run(half):
    many = replace(
        half,
        history=half.history * 500,
        warnings={f"{i} " + "w" * 4000: i for i in range(1000)},
        settings={f"{i} " + "s" * 4000: "x" * 4000 for i in range(1000)},
        decision=Decision(False, "r" * 100_000, {str(i): 1.0 for i in range(5000)}),
        forecast=replace(half.forecast, weights={str(i): 1e-3 for i in range(1000)}),
    )
    assert len(report_html(many).encode()) < 1_500_000


def test_a_report_is_replaced_whole_or_not_at_all(half, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    save_report(half, path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(TypeError):
        save_report(replace(half, bins=None), path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(OSError, match="missing"):
        save_report(half, tmp_path / "missing" / "report.html")
