"""Schedules against closed forms; the released schedulers' numbers are in tests/parity."""

import jax
import numpy as np
import pytest

from nova_jax.config import to_plain
from nova_jax.errors import NovaError
from nova_jax.sampling.schedules import (
    DDPMSchedule,
    FlowMatchingSchedule,
    schedule_from_dict,
)


def test_flow_matching_training_levels_descend_from_one():
    table = FlowMatchingSchedule().training_table()
    np.testing.assert_allclose(table.noise[[0, 250, 999]], [1.0, 0.75, 0.001], rtol=1e-6)
    np.testing.assert_allclose(table.signal + table.noise, 1.0, rtol=1e-6)
    np.testing.assert_allclose(table.time, 1000 * table.noise, rtol=1e-6)


def test_flow_matching_shift_is_applied_twice_in_sampling():
    steps = FlowMatchingSchedule(shift=3.0).sampling_steps(2)

    def shift(s):
        return 3 * s / (1 + 2 * s)

    sigma = [1.0, shift(shift(0.001))]
    np.testing.assert_allclose(steps.time, np.multiply(1000, sigma), rtol=1e-5)
    np.testing.assert_allclose(steps.move, [sigma[1] - 1, -sigma[1]], rtol=1e-5)
    replaced = FlowMatchingSchedule(shift=3.0).sampling_steps(2, flow_shift=1.0)
    np.testing.assert_allclose(replaced.time[1], 1000 * shift(0.001), rtol=1e-5)


def test_flow_matching_steps_reach_the_data():
    """With the exact prediction, every path is a straight line from noise to data."""
    data, noise = np.float32(0.7), np.float32(-1.3)
    steps = FlowMatchingSchedule().sampling_steps(7)
    x = noise
    for keep, move in zip(steps.keep, steps.move, strict=True):
        x = keep * x + move * (noise - data)
    np.testing.assert_allclose(x, data, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_ddpm_posterior_mean_by_its_definition(prediction, spacing, betas):
    """keep·x + move·prediction is the mean of q(x_prev | x_t, x₀), arXiv 2006.11239 equation 7."""
    schedule = DDPMSchedule(
        prediction_type=prediction, timestep_spacing=spacing, beta_schedule=betas
    )
    steps, table = schedule.sampling_steps(5), schedule.training_table()
    x0, noise = 0.6, -0.8
    for i, t in enumerate(steps.time.astype(int)):
        alpha_bar = float(table.signal[t]) ** 2
        previous = t - 1000 // 5
        alpha_bar_prev = float(table.signal[previous]) ** 2 if previous >= 0 else 1.0
        x = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * noise
        v = np.sqrt(alpha_bar) * noise - np.sqrt(1 - alpha_bar) * x0
        output = {"epsilon": noise, "sample": x0, "v_prediction": v}[prediction]
        beta = 1 - alpha_bar / alpha_bar_prev
        mean = np.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar) * x0
        mean += np.sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar) * x
        np.testing.assert_allclose(steps.keep[i] * x + steps.move[i] * output, mean, rtol=2e-3)
        variance = max((1 - alpha_bar_prev) / (1 - alpha_bar) * beta, 1e-20) if t else 0.0
        np.testing.assert_allclose(steps.noise_scale[i], np.sqrt(variance), rtol=2e-3, atol=1e-9)


def test_zero_terminal_snr_ends_in_pure_noise():
    table = DDPMSchedule(rescale_betas_zero_snr=True).training_table()
    assert table.signal[-1] == 0
    first = DDPMSchedule().training_table().signal[0]
    np.testing.assert_allclose(table.signal[0], first, rtol=1e-5)


@pytest.mark.parametrize("schedule", [FlowMatchingSchedule(shift=2.0), DDPMSchedule(beta_end=0.01)])
def test_round_trip_through_plain_values(schedule):
    assert schedule_from_dict(to_plain(schedule)) == schedule


@pytest.mark.parametrize("schedule", [FlowMatchingSchedule(), DDPMSchedule()])
def test_drawn_timesteps_stay_in_the_table(schedule):
    index = np.asarray(schedule.draw_timesteps(jax.random.key(0), (20_000,)))
    assert index.min() >= 0
    assert index.max() <= 999
    assert abs(index.mean() - 500) < 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: schedule_from_dict({"type": "euler"}),
            "schedule.type is 'euler'; it must be 'flow_matching' or 'ddpm'",
        ),
        (
            lambda: schedule_from_dict({"type": "ddpm", "shift": 1}),
            "schedule.shift: no such key; known are .*steps_offset",
        ),
        (
            lambda: DDPMSchedule(beta_schedule="cosine"),
            "beta_schedule is 'cosine'; it must be 'linear' or",
        ),
        (lambda: DDPMSchedule(variance_type="fixed_large_log"), "variance_type"),
        (lambda: FlowMatchingSchedule(shift=0), "shift is 0; it must be above 0"),
        (lambda: FlowMatchingSchedule().sampling_steps(0), "num_diffusion_steps is 0"),
        (lambda: DDPMSchedule().sampling_steps(5, flow_shift=2.0), "flow_shift"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(NovaError, match=message):
        make()
