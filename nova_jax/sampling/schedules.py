"""Diffusion schedules: how tokens are noised in training and denoised in sampling.

Both schedules are linear, so a training table and a table of sampling steps say everything:

    training:  x_t = signal[i] · x + noise[i] · ε
    sampling:  x  ← keep[s] · x + move[s] · prediction + noise_scale[s] · ε

The tables are computed on the host in the order and precision (float32) of the released
schedulers, whose numbers they must meet.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nova_jax.config import Checked, Fraction, Natural, Positive, Range, from_dict
from nova_jax.errors import NovaError

_f32 = np.float32

#: Rows of a training table.
Timesteps = Annotated[int, Range(1, 10**6)]


@dataclasses.dataclass(frozen=True)
class TrainingTable:
    """Noising coefficients and the network's diffusion time, one row a training timestep."""

    signal: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]
    time: Float[np.ndarray, " n"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingSteps:
    """Coefficients of the S sampling steps, first step first.

    Attributes:
        time: the network's diffusion time, 0 to 1000, descending.
        keep, move, noise_scale: weights of x, of the prediction and of new noise. Steps with noise
            come before those without.
    """

    time: Float[np.ndarray, " s"]
    keep: Float[np.ndarray, " s"]
    move: Float[np.ndarray, " s"]
    noise_scale: Float[np.ndarray, " s"]

    def part(self, first: int, last: int) -> "SamplingSteps":
        """Some of the steps."""
        columns = (self.time, self.keep, self.move, self.noise_scale)
        return SamplingSteps(*(column[first:last] for column in columns))

    @property
    def noise_draws(self) -> int:
        """Steps that add new noise."""
        return int(np.count_nonzero(self.noise_scale))


@dataclasses.dataclass(frozen=True)
class FlowMatchingSchedule(Checked):
    """Rectified flow with Euler steps: x_σ = σ·ε + (1 − σ)·x, target ε − x.

    arXiv 2403.03206, sections 2 and 3.1 (logit-normal timesteps); the released default.

    Attributes:
        shift: s of σ ← s·σ / (1 + (s − 1)·σ), applied to the training noise levels.
        num_train_timesteps: length of the training table.
    """

    type: ClassVar[str] = "flow_matching"
    shift: Positive = 1.0
    num_train_timesteps: Timesteps = 1000

    def training_table(self) -> TrainingTable:
        """Noise levels descending from 1."""
        count = self.num_train_timesteps
        sigma = np.linspace(1, count, count, dtype=_f32)[::-1] / _f32(count)
        sigma = _shift(sigma, self.shift)
        return TrainingTable(1 - sigma, sigma, sigma * _f32(count))

    def draw_timesteps(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        """Indices into the training table, ⌊1000 · sigmoid(normal)⌋."""
        uniform = jax.nn.sigmoid(jax.random.normal(key, shape))
        last = self.num_train_timesteps - 1
        return jnp.minimum((uniform * self.num_train_timesteps).astype(jnp.int32), last)

    def target(self, x: Float[Array, "*#b"], noise: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """What the network learns to predict."""
        return noise - x

    def sampling_steps(self, count: int, flow_shift: float | None = None) -> SamplingSteps:
        """Euler steps, evenly spaced between the shifted extremes, then shifted (again).

        Args:
            count: S, number of steps.
            flow_shift: replaces `shift` in the second shift only, as in the release.
        """
        _check_steps(count, self.num_train_timesteps)
        sigmas, total = self.training_table().noise, _f32(self.num_train_timesteps)
        grid = np.linspace(sigmas[0] * total, sigmas[-1] * total, count)
        sigma = _shift(grid / float(total), self.shift if flow_shift is None else flow_shift)
        sigma = sigma.astype(_f32)
        move = np.append(sigma[1:], _f32(0)) - sigma
        ones, zeros = np.ones(count, _f32), np.zeros(count, _f32)
        return SamplingSteps(sigma * total, ones, move.astype(_f32), zeros)


@dataclasses.dataclass(frozen=True)
class DDPMSchedule(Checked):
    """Denoising diffusion with ancestral sampling (arXiv 2006.11239, equations 4, 7 and 11).

    Option names and values are those of diffusers' DDPMScheduler. The previous timestep is
    t − T // S whatever the spacing, as in the release.
    """

    type: ClassVar[str] = "ddpm"
    num_train_timesteps: Timesteps = 1000
    beta_start: Fraction = 0.0001
    beta_end: Fraction = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] = "fixed_small"
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: Natural = 0
    rescale_betas_zero_snr: bool = False

    def _alphas_cumprod(self) -> Float[np.ndarray, " n"]:
        """ᾱ_t, the product of 1 − β up to t."""
        n, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.beta_schedule == "linear":
            betas = np.linspace(start, end, n)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, n) ** 2
        elif self.beta_schedule == "sigmoid":
            betas = (end - start) / (1 + np.exp(-np.linspace(-6, 6, n))) + start
        else:
            alpha_bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
        betas = betas.astype(_f32)
        if not self.rescale_betas_zero_snr:
            return np.cumprod(1 - betas, dtype=_f32)
        # arXiv 2305.08891, algorithm 1: shift √ᾱ so that it ends at 0 and starts where it did.
        root = np.sqrt(np.cumprod(1 - betas, dtype=_f32))
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        squared = root**2
        alphas = np.concatenate([squared[:1], squared[1:] / squared[:-1]])
        return np.cumprod(1 - (1 - alphas), dtype=_f32)

    def training_table(self) -> TrainingTable:
        """Noise levels ascending from almost 0."""
        alpha_bar = self._alphas_cumprod()
        time = np.arange(self.num_train_timesteps, dtype=_f32)
        return TrainingTable(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), time)

    def draw_timesteps(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        """Timesteps drawn uniformly."""
        return jax.random.randint(key, shape, 0, self.num_train_timesteps)

    def target(self, x: Float[Array, "*#b"], noise: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The noise for epsilon prediction; noise − x otherwise, as in the release."""
        return noise if self.prediction_type == "epsilon" else noise - x

    def _timesteps(self, count: int) -> Int[np.ndarray, " {count}"]:
        n = self.num_train_timesteps
        if self.timestep_spacing == "leading":
            return np.arange(count)[::-1] * (n // count) + self.steps_offset
        if self.timestep_spacing == "linspace":
            return np.linspace(0, n - 1, count).round()[::-1].astype(np.int64)
        return np.round(np.arange(n, 0, -n / count)).astype(np.int64) - 1

    def sampling_steps(self, count: int, flow_shift: float | None = None) -> SamplingSteps:
        """Ancestral steps with x₀ substituted, so that each is linear in x and the prediction.

        Raises:
            NovaError: if `flow_shift` is given, which this schedule does not have.
        """
        if flow_shift is not None:
            raise NovaError("flow_shift is an option of flow matching; this model samples by DDPM")
        _check_steps(count, self.num_train_timesteps)
        timesteps = self._timesteps(count)
        previous = timesteps - self.num_train_timesteps // count
        table = self._alphas_cumprod()
        alpha_bar = table[timesteps]
        alpha_bar_prev = np.where(previous >= 0, table[np.maximum(previous, 0)], _f32(1))
        alpha = alpha_bar / alpha_bar_prev
        beta, beta_bar, beta_bar_prev = 1 - alpha, 1 - alpha_bar, 1 - alpha_bar_prev
        # x₀ = from_x · x + from_prediction · prediction
        zeros, ones = np.zeros_like(alpha_bar), np.ones_like(alpha_bar)
        from_x, from_prediction = {
            "epsilon": (1 / np.sqrt(alpha_bar), -np.sqrt(beta_bar) / np.sqrt(alpha_bar)),
            "sample": (zeros, ones),
            "v_prediction": (np.sqrt(alpha_bar), -np.sqrt(beta_bar)),
        }[self.prediction_type]
        weight_x0 = np.sqrt(alpha_bar_prev) * beta / beta_bar
        weight_x = np.sqrt(alpha) * beta_bar_prev / beta_bar
        variance = np.maximum(beta_bar_prev / beta_bar * beta, _f32(1e-20))
        variance = beta if self.variance_type == "fixed_large" else variance
        return SamplingSteps(
            timesteps.astype(_f32),
            (weight_x0 * from_x + weight_x).astype(_f32),
            (weight_x0 * from_prediction).astype(_f32),
            np.where(timesteps > 0, np.sqrt(variance), 0).astype(_f32),
        )


Schedule = FlowMatchingSchedule | DDPMSchedule
_SCHEDULES: dict[str, type[Schedule]] = {
    cls.type: cls for cls in (FlowMatchingSchedule, DDPMSchedule)
}


def schedule_from_dict(values: Mapping[str, Any]) -> Schedule:
    """Builds the schedule that ``values["type"]`` names from its options.

    Raises:
        NovaError: on an unknown type or option.
    """
    return from_dict(_SCHEDULES, values, "schedule")


def _shift(sigma: Float[np.ndarray, " n"], shift: float) -> Float[np.ndarray, " n"]:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _check_steps(count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise NovaError(f"num_diffusion_steps is {count}; it must be between 1 and {limit}")
