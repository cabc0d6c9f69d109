import warnings
from dataclasses import replace

import numpy as np
import pytest

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.report import forecast_figure, headline, save_forecast_png

PLAN = Schedule.wsd(1e-3, 1000, warmup=50, cooldown=200)
STEPS = np.arange(1, 1001)
LOSSES = 2.0 + 0.5 * (STEPS / 1000) ** -0.4 + np.random.default_rng(0).normal(0, 0.02, 1000)
LOSSES -= 0.1 * PLAN.annealing_area(STEPS) / PLAN.annealing_area(1000)


def run(losses):
    monitor = Monitor(LossForecaster(PLAN), name="train_loss")
    for step, loss in enumerate(losses, start=1):
        monitor.observe(step, float(loss))
    return monitor.summary()


@pytest.fixture(scope="module")
def half():
    return run(LOSSES[:500])


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    return found + [text.get_text() for axes in figure.axes for text in axes.texts]


def pixels(summary):
    figure = forecast_figure(summary)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def test_the_picture_is_1200_by_900_and_not_of_one_colour(half, tmp_path):
    save_forecast_png(half, tmp_path / "forecast.png")
    head = (tmp_path / "forecast.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(head[16:20]), int.from_bytes(head[20:24])) == (1200, 900)
    assert pixels(half).std() > 10


def test_three_panels_share_the_steps_of_the_plan(half):
    loss, rate, past = forecast_figure(half).axes
    for axes in (loss, rate, past):
        assert axes.get_xlim() == (0, 1000)
    assert loss.get_ylabel() == "train_loss"
    assert rate.get_ylabel() == "learning rate"


def test_the_title_says_the_forecast(half):
    said = headline(half)
    assert said in texts(forecast_figure(half))
    forecast = half.forecast
    value, low, high = (
        float(said.split(mark)[1].split(end)[0]) for mark, end in ((": ", " "), ("(", "-"), ("-", ","))
    )
    width = forecast.high - forecast.low
    assert said.startswith("train_loss at step 1,000: ")
    assert said.endswith(", 90%)")
    assert np.allclose([value, low, high], [forecast.value, forecast.low, forecast.high], atol=0.1 * width)


def test_the_forecast_is_drawn_where_it_is_and_seen_whole(half):
    loss = forecast_figure(half).axes[0]
    low, high = loss.get_ylim()
    assert low < half.forecast.low < half.forecast.high < high
    ends = [line.get_xydata()[-1] for line in loss.lines if len(line.get_xydata()) > 2]
    assert any(np.allclose(end, [1000, half.forecast.path_value[-1]]) for end in ends)


def test_an_early_spike_does_not_flatten_the_rest(half):
    losses = LOSSES[:500].copy()
    losses[:5] += 1000.0
    low, high = forecast_figure(run(losses)).axes[0].get_ylim()
    calm = forecast_figure(half).axes[0].get_ylim()
    assert high - low < 3 * (calm[1] - calm[0])


def test_seen_and_planned_rates_are_told_apart(half):
    rate = forecast_figure(half).axes[1]
    solid, planned = rate.lines[0], rate.lines[1]
    assert solid.get_xdata()[-1] == planned.get_xdata()[0] == 500
    assert solid.get_linestyle() == "-"
    assert planned.get_linestyle() != "-"
    assert "0% seen" in texts(forecast_figure(half))  # of the annealing area: the cooldown has not begun


def test_all_forecasts_are_shown_where_they_were_made(half):
    past = forecast_figure(half).axes[2]
    assert past.lines[0].get_xdata().tolist() == [point.step for point in half.history]
    assert past.lines[0].get_ydata().tolist() == [point.value for point in half.history]


def test_a_finished_run_shows_what_was_to_be_forecast():
    summary = run(LOSSES)
    truth = summary.measured
    assert truth == pytest.approx(LOSSES[-10:].mean(), rel=1e-12)
    figure = forecast_figure(summary)
    assert any(np.allclose(line.get_ydata(), truth) for line in figure.axes[2].lines)
    assert "measured\nat the end" in texts(figure)


@pytest.mark.parametrize("seen", [0, 1, 500, 985])
def test_before_the_end_nothing_was_measured(seen):
    assert run(LOSSES[:seen]).measured is None


@pytest.mark.parametrize("seen", [0, 1, 2, 7, 8, 12, 30])
def test_short_stretches_are_drawn(seen):
    summary = run(LOSSES[:seen])
    figure = forecast_figure(summary)
    figure.canvas.draw()
    assert ("no loss seen yet" in texts(figure)) == (seen == 0)
    assert ("no forecast yet" in texts(figure)) == (not summary.history)
    if summary.forecast is None:
        assert headline(summary) == "train_loss: no forecast yet"


def test_one_forecast_is_drawn_with_its_interval(half):
    past = forecast_figure(replace(half, history=half.history[-1:])).axes[2]
    low, high = past.get_ylim()
    assert low < half.history[-1].low < half.history[-1].high < high


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("constant", lambda x: np.full_like(x, 2.0)),
        ("zero", np.zeros_like),
        ("negative", lambda x: x - 5.0),
        ("huge", lambda x: x * 1e12),
        ("tiny", lambda x: x * 1e-12),
    ],
)
def test_losses_of_any_size_and_sign_are_drawn(what, change):
    summary = run(change(LOSSES)[:600])
    assert pixels(summary).std() > 5
    low, high = forecast_figure(summary).axes[0].get_ylim()
    assert np.isfinite([low, high]).all()
    assert low < high


def test_an_interval_of_no_width_is_drawn(half):
    flat = replace(half.forecast, value=2.0, low=2.0, high=2.0)
    assert "2 (2-2, 90%)" in headline(replace(half, forecast=flat))
    pixels(replace(half, forecast=flat))


def test_negative_bounds_are_not_joined_by_a_dash(half):
    below = replace(half.forecast, value=-2.0, low=-2.1, high=-1.9)
    assert headline(replace(half, forecast=below)).endswith("-2.00 (-2.10 to -1.90, 90%)")


def test_a_run_without_a_plan_of_rates_is_drawn(half):
    assert "no learning-rate plan given" in texts(forecast_figure(replace(half, schedule=None)))


def test_names_from_outside_are_drawn_as_they_are(half):
    name = "loss $x_{ <b>\n\u640d\u5931" + "n" * 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that the font lacks, a formula that cannot be parsed
        pixels(replace(half, name=name))
    assert headline(replace(half, name=name)).startswith("loss $x_{ <b>???n")
    assert len(headline(replace(half, name=name))) < 100


def test_doubtful_forecasts_are_hollow(half):
    doubtful = replace(half, history=tuple(replace(p, status="unfamiliar") for p in half.history))
    figure = forecast_figure(doubtful)
    assert {tuple(face) for face in figure.axes[2].collections[-1].get_facecolors()} == {(1, 1, 1, 1)}
    assert "\u25cb unfamiliar" in texts(figure)


def test_drawing_leaves_pyplot_alone(half):
    from matplotlib import _pylab_helpers

    forecast_figure(half)
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []
