"""Everything that training changes, as one pytree, created where it will live."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Int

from nova_jax.distributed.mesh import parameter_shardings, replicated
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.training.optimizer import Params, split_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the trained parameters, in float32.

    Attributes:
        decay: weight of the past at an update, in [0, 1).
        every: steps between updates.
        warmup: lower the decay to (1 + n) / (10 + n) at update n while that is less, so that the
            average of a short run forgets its random start.
    """

    decay: float = 0.999
    every: int = 1
    warmup: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise NovaError(f"ema.decay is {self.decay}; it must be at least 0 and less than 1")
        if self.every < 1:
            raise NovaError(f"ema.every is {self.every}; it must be at least 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step takes and gives back.

    Attributes:
        step: steps done.
        params: trained parameters, a nested dict.
        frozen: all other variables of the model, never changed.
        optimizer: state of the optimizer.
        ema: moving average of `params`.
    """

    step: Int[Array, ""]
    params: Params
    frozen: Params
    optimizer: optax.OptState
    ema: Params

    def trees(self) -> dict[str, Any]:
        """The parts that a checkpoint keeps by themselves; `from_trees` joins them again."""
        return {
            "params": self.params,
            "frozen": self.frozen,
            "ema": self.ema,
            "optimizer": {"step": self.step, "state": self.optimizer},
        }

    @classmethod
    def from_trees(cls, trees: Mapping[str, Any]) -> TrainState:
        """The inverse of `trees`."""
        optimizer = trees["optimizer"]
        return cls(
            step=optimizer["step"],
            params=trees["params"],
            frozen=trees["frozen"],
            optimizer=optimizer["state"],
            ema=trees["ema"],
        )

    def variables(self, *, ema: bool) -> dict[str, Any]:
        """Every variable of the model, by dotted path, with averaged or current parameters."""
        params = self.ema if ema else self.params
        return flatten_dict(params, sep=".") | flatten_dict(self.frozen, sep=".")


def update_ema(config: EMAConfig, step: jax.Array, ema: Params, params: Params) -> Params:
    """EMA after step number `step` (from 1): ema ← decay·ema + (1 − decay)·params."""
    decay = jnp.float32(config.decay)
    if config.warmup:
        updates = step // config.every
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    decay = jnp.where(step % config.every == 0, decay, 1.0)
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)


def create_state(
    config: NovaConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    freeze: tuple[str, ...] | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
    unroll: int = 1,
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialises model, optimizer and EMA on the mesh, each array sharded from the start.

    Args:
        config: the model.
        optimizer: updates the trained parameters.
        mesh: where the state lives.
        seed: of the initial parameters.
        freeze: see `nova_jax.training.optimizer.OptimizerConfig`.
        dtype: type of the computation; parameters are float32.
        remat, unroll: see `Nova`.

    Returns:
        The model without its variables, and the state; ``nnx.merge(graphdef, state.params,
        state.frozen)`` is the model.
    """

    def make_model() -> Nova:
        return Nova(config, rngs=nnx.Rngs(seed), dtype=dtype, remat=remat, unroll=unroll)

    def make_state() -> TrainState:
        _, params, frozen = split_model(make_model(), config, freeze)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            optimizer=optimizer.init(params),
            # Copied: step donates both, and a buffer cannot be donated twice.
            ema=jax.tree.map(jnp.copy, params),
        )

    abstract = nnx.eval_shape(make_model)
    graphdef, _, _ = split_model(abstract, config, freeze)
    shardings = _shardings(jax.eval_shape(make_state), abstract, optimizer, mesh)
    return graphdef, jax.jit(make_state, out_shardings=shardings)()


def _shardings(
    state: TrainState, model: nnx.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """Sharding of every array of a state: moments and EMA lie where their parameter lies."""
    by_path = parameter_shardings(model, mesh)

    def of(params: Params) -> Params:
        names = flatten_dict(params, sep=".")
        return unflatten_dict({name: by_path[name] for name in names}, sep=".")

    params = of(state.params)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.optimizer,
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState.from_trees(
        {
            "params": params,
            "frozen": of(state.frozen),
            "ema": params,
            "optimizer": {"step": replicated(mesh), "state": moments},
        }
    )


def state_shardings(state: TrainState) -> Any:
    """Where each array of a state lies: a `TrainState` of `NamedSharding`."""
    return jax.tree.map(lambda array: array.sharding, state)
