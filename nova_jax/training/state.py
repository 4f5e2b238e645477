"""Everything that training changes, as one pytree, created where it will live."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int

from nova_jax.checkpoints.adapters import apply_adapters
from nova_jax.config import Checked, Count
from nova_jax.distributed.mesh import MeshLayout, parameter_shardings, replicated
from nova_jax.models.config import NovaConfig
from nova_jax.models.layers import Remat, logical_axes
from nova_jax.models.nova import Nova
from nova_jax.training.lora import LoraConfig, adapter_axes, create_adapters
from nova_jax.training.optimizer import Decay, Params, split_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMAConfig(Checked):
    """Exponential moving average of the trained parameters, in float32.

    Attributes:
        decay: weight of the past at an update, in [0, 1).
        every: steps between updates.
        warmup: lower the decay to (1 + n) / (10 + n) at update n while that is less, so that the
            average of a short run forgets its random start.
    """

    decay: Decay = 0.999
    every: Count = 1
    warmup: bool = False


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


CreateState = Callable[[dict[str, Array]], TrainState]


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """How a state's arrays make a model.

    Attributes:
        graphdef: the model without its variables.
        lora: set where what is trained are adapters, and all of the model is frozen.
    """

    graphdef: nnx.GraphDef
    lora: LoraConfig | None = None

    def variables(self, params: Params, frozen: Params) -> dict[str, Array]:
        """Every variable of the model by dotted path, with adapters added to their kernels."""
        trained, rest = flatten_dict(params, sep="."), flatten_dict(frozen, sep=".")
        if self.lora is None:
            return trained | rest
        return apply_adapters(rest, trained, self.lora.scale)

    def model(self, params: Params, frozen: Params) -> Nova:
        """The model; gradients with respect to `params` go through it."""
        return nnx.merge(self.graphdef, unflatten_dict(self.variables(params, frozen), sep="."))


def update_ema(config: EMAConfig, step: jax.Array, ema: Params, params: Params) -> Params:
    """EMA after step number `step` (from 1): ema ← decay·ema + (1 − decay)·params."""
    decay = jnp.float32(config.decay)
    if config.warmup:
        updates = step // config.every
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    decay = jnp.where(step % config.every == 0, decay, 1.0)
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)


def state_maker(
    config: NovaConfig,
    optimizer: optax.GradientTransformation,
    mesh: MeshLayout,
    *,
    seed: int = 0,
    freeze: tuple[str, ...] | None = None,
    lora: LoraConfig | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: Remat = "none",
    unroll: int = 1,
) -> tuple[Blueprint, TrainState, CreateState]:
    """How the first state of a run is made: model, optimizer and EMA; nothing is allocated yet.

    Args:
        config: the model.
        optimizer: updates the trained parameters.
        mesh: where the state lives; its devices may not be there, if no state is to be created.
        seed: of the initial parameters.
        freeze: see `nova_jax.training.optimizer.OptimizerConfig`.
        lora: train these adapters and freeze the model.
        dtype: type of the computation; parameters are float32.
        remat, unroll: see `Nova`.

    Returns:
        How to make the model of a state; the state, with `jax.ShapeDtypeStruct` for arrays; and
        what creates it, each array sharded from the start. That takes variables by dotted path, on
        the mesh, whose memory it reuses, and draws all others.
    """

    def make_model() -> Nova:
        return Nova(config, rngs=nnx.Rngs(seed), dtype=dtype, remat=remat, unroll=unroll)

    model = nnx.eval_shape(make_model)
    graphdef, trained, _ = split_model(model, config, freeze)
    names = flatten_dict(trained, sep=".").keys()

    def make_state(start: dict[str, Array]) -> TrainState:
        drawn = flatten_dict(nnx.to_pure_dict(nnx.state(make_model())), sep=".")
        variables = drawn | start
        if lora is None:
            params = {name: variables.pop(name) for name in names}
        else:
            params = create_adapters(lora, variables, seed)
        params = unflatten_dict(params, sep=".")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=unflatten_dict(variables, sep="."),
            optimizer=optimizer.init(params),
            # Copied: step donates both, and a buffer cannot be donated twice.
            ema=jax.tree.map(jnp.copy, params),
        )

    shapes = jax.eval_shape(make_state, {})
    shardings = _shardings(shapes, model, optimizer, mesh, lora)
    abstract = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, shardings)
    create = jax.jit(make_state, out_shardings=shardings, donate_argnums=0)
    return Blueprint(graphdef, lora), abstract, create


def _shardings(
    state: TrainState,
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    mesh: MeshLayout,
    lora: LoraConfig | None,
) -> Any:
    """Sharding of every array of a state: moments and EMA lie where their parameter lies."""
    by_path = parameter_shardings(model, mesh)
    adapters = flatten_dict(state.params, sep=".")
    if lora is not None:
        flat = nnx.to_flat_state(nnx.state(model))
        axes = {".".join(map(str, path)): logical_axes(variable) for path, variable in flat}
        for name, names in adapter_axes({name: axes[name] for name in lora.select(axes)}).items():
            by_path[name] = mesh.sharding(names, adapters[name].shape)

    def of(params: Params) -> Params:
        names = flatten_dict(params, sep=".")
        return unflatten_dict({name: by_path[name] for name in names}, sep=".")

    params = of(state.params)
    everywhere: Any = replicated(mesh)
    # An optimizer of some parameters alone has nothing where the others are.
    nothing = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda moment, place: moment if nothing(moment) else place,
        state.optimizer,
        params,
        transform_non_params=lambda _: everywhere,
        is_leaf=nothing,
    )
    return TrainState(everywhere, params, of(state.frozen), moments, ema=params)


def state_shardings(state: TrainState) -> Any:
    """Where each array of a state lies: a `TrainState` of `NamedSharding`."""
    return jax.tree.map(lambda array: array.sharding, state)
