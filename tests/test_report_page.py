"""The report in a real browser: nothing on the console, nothing from the network, hover and zoom."""

from dataclasses import replace

import numpy as np
import pytest

from scale_callbacks import LossForecaster, Monitor
from scale_callbacks.report_html import save_report
from tests.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH, to open the report in"),
]

SCALES = "scaleCallbacks.plots.map(p => [p.scales.x.min, p.scales.x.max])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def summary(schedule, losses):
    monitor = Monitor(LossForecaster(schedule), name="</script><script>alert(1)")
    for step, loss in enumerate(losses[:600], start=1):
        monitor.observe(step, loss)
    return monitor.summary()


@pytest.fixture
def page(browser, summary, tmp_path):
    save_report(summary, tmp_path / "report.html")
    return lambda **options: browser.open((tmp_path / "report.html").as_uri(), **options)


def plot_at(page, number, x, y):
    """Where on the page a point of a chart lies, given as shares of its width and height."""
    left, top, width, height = page.evaluate(
        f"(r => [r.left, r.top, r.width, r.height])"
        f"(scaleCallbacks.plots[{number}].over.getBoundingClientRect())"
    )
    return left + x * width, top + y * height


@pytest.mark.parametrize("mobile", [False, True])
@pytest.mark.parametrize("dark", [False, True])
def test_it_draws_without_a_complaint_or_a_request(page, mobile, dark, tmp_path):
    width = 390 if mobile else 1440
    tab = page(width=width, dark=dark, mobile=mobile)
    assert tab.complaints == []
    assert [url.split(":")[0] for url in tab.requests] == ["file"]
    assert tab.evaluate("scaleCallbacks.plots.length") == 4
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground.strip("rgb()").split(","))) < 200) == dark
    picture = "scaleCallbacks.plots.map(p => new Set(p.ctx.getImageData(0, 0, 300, 300).data).size)"
    assert min(tab.evaluate(picture)) > 5  # each canvas holds a picture


def test_it_opens_in_less_than_a_second(page):
    page()
    told = [page().evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") for _ in range(3)]
    assert min(told) < 1000


def test_hovering_tells_the_values_under_the_pointer(page, summary):
    tab = page()
    tab.mouse("mouseMoved", *plot_at(tab, 0, 0.8, 0.5))
    tips = (
        "[...document.querySelectorAll('.tip')]"
        ".filter(t => t.style.display == 'block').map(t => t.textContent)"
    )
    (tip,) = tab.evaluate(tips)
    step = float(tip.split("forecast")[0].removeprefix("step "))
    assert step == pytest.approx(800, abs=15)
    told = float(tip.split("forecast")[1].split("interval")[0])
    assert told == pytest.approx(float(summary.forecast.at(step)[0]), rel=1e-3)
    tab.mouse("mouseMoved", 2, 2)
    assert tab.evaluate(tips) == []


def test_dragging_zooms_all_charts_and_a_double_click_goes_back(page):
    tab = page()
    assert tab.evaluate(SCALES) == [[0, 1000]] * 4
    tab.drag(plot_at(tab, 0, 0.2, 0.5), plot_at(tab, 0, 0.6, 0.5))
    assert np.allclose(tab.evaluate(SCALES), [[200, 600]] * 4, atol=3)
    assert tab.evaluate("document.querySelector('.reset').hidden") is False
    tab.double_click(*plot_at(tab, 0, 0.5, 0.5))
    assert tab.evaluate(SCALES) == [[0, 1000]] * 4
    tab.drag(plot_at(tab, 0, 0.1, 0.5), plot_at(tab, 0, 0.3, 0.5))
    tab.evaluate("document.querySelector('.reset').click()")
    tab.evaluate("new Promise(done => setTimeout(done, 50))")
    assert tab.evaluate(SCALES) == [[0, 1000]] * 4
    assert tab.complaints == []


def test_a_script_in_a_name_does_not_run_even_where_escaping_failed(browser, summary, tmp_path):
    path = tmp_path / "report.html"
    save_report(replace(summary, name="NAME"), path)
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("NAME</span>", "<script>window.hurt = 1</script></span>", 1), encoding="utf-8"
    )
    tab = browser.open(path.as_uri())
    assert tab.evaluate("window.hurt === undefined")
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)
    assert tab.evaluate("scaleCallbacks.plots.length") == 4


def test_print_is_on_white_also_in_the_dark(page, tmp_path):
    tab = page(dark=True)
    tab.evaluate(
        "window.inks = []; addEventListener('beforeprint', () =>"
        " inks.push(getComputedStyle(document.body).getPropertyValue('--ground')))"
    )
    tab.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    assert tab.evaluate("inks") == ["#f6f7f9"]
    assert tab.evaluate("getComputedStyle(document.body).getPropertyValue('--ground')") == "#0d0f13"
