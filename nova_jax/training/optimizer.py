"""AdamW as NOVA uses it, or Muon: which parameters are trained, which decay, at what learning rate.

Parameters are nested dicts of arrays (`nnx.to_pure_dict`); rules name them by dotted path, such as
``temporal_encoder.blocks.attention.qkv.kernel``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nova_jax.config import Checked, Count, Fraction, Natural, NotNegative, Positive, Range
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig

Params = Mapping[str, Any]

# Parts that the recipe never trains (spec: paper section 3, released training code).
_FROZEN = (r"text_embed\.norm\.", r"label_embed\.norm\.", r"motion_embed\.")
# Parts that an image model has for the sake of the video model made from it.
_FROZEN_IN_IMAGE_MODELS = (r"temporal_encoder\.time_embed\.", r"temporal_encoder\.patch_embed\.")


def check_patterns(key: str, patterns: Iterable[str]) -> None:
    """Raises a `NovaError` if one of the regular expressions of a config's key is none."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise NovaError(f"{key}: {pattern!r} is no pattern: {error}") from error


#: Weight of the past in a moving average.
Decay = Annotated[float, Range(0, below=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """The optimizer and its learning rate; the defaults are the released recipe.

    Attributes:
        type: "adamw"; or "muon", which makes the updates of the blocks' matrices orthogonal (arXiv
            2502.16982, whose scale lets both share one learning rate) and leaves the rest to AdamW.
        learning_rate: highest learning rate, which the warmup ends at; at most 1, for a step of
            Adam changes a parameter by about as much.
        schedule: how the learning rate goes on after the warmup: "constant"; "cosine", which ends
            at ``end_factor`` of the highest; or "multistep", which is multiplied by
            ``milestone_factor`` at each of ``milestones``.
        warmup_steps: steps in which the learning rate grows linearly; step i of w has (i + 1) / w
            of the highest.
        end_factor: last learning rate of the schedule "cosine", as a fraction of the highest.
        milestones: increasing step numbers at which the schedule "multistep" changes.
        milestone_factor: factor on the learning rate at each milestone of "multistep".
        b1: decay of the average of gradients, the first moment.
        b2: decay of the average of squared gradients, the second moment.
        eps: number added to the root of the second moment, by which the first is divided.
        weight_decay: fraction of a parameter, times the learning rate, that each update takes away;
            `decays` says which parameters it applies to.
        clip_norm: largest norm of the gradient of all parameters together; None for no clipping.
        accumulate: number of batches whose gradients are averaged into one update.
        freeze: regular expressions, matched from the start of a parameter's path, of what is not
            trained; None for the recipe's own list, () to train everything.
    """

    type: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Range(above=0, most=1)] = 1e-4
    schedule: Literal["constant", "cosine", "multistep"] = "constant"
    warmup_steps: Natural = 0
    end_factor: Fraction = 0.0
    milestones: tuple[Count, ...] = ()
    milestone_factor: Positive = 0.1
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.02
    clip_norm: Positive | None = None
    accumulate: Count = 1
    freeze: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.schedule == "multistep") != bool(self.milestones):
            raise NovaError(
                "optimizer.milestones belong to optimizer.schedule 'multistep'; set both"
            )
        if list(self.milestones) != sorted({m for m in self.milestones if m > self.warmup_steps}):
            raise NovaError(
                f"optimizer.milestones {self.milestones} must increase and lie after the warmup"
            )
        check_patterns("optimizer.freeze", self.freeze or ())


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each training step, which is one batch, of a run of so many steps.

    Raises:
        NovaError: if the warmup leaves nothing of the steps to a cosine schedule.
    """
    if config.schedule == "cosine":
        if steps <= config.warmup_steps:
            raise NovaError(
                f"optimizer.warmup_steps {config.warmup_steps} leave nothing of the {steps} steps; "
                "lower it or raise steps"
            )
        decay = optax.cosine_decay_schedule(1.0, steps - config.warmup_steps, config.end_factor)
    else:
        # Milestones count from the first step, the decay below from the end of the warmup.
        milestones = [step - config.warmup_steps for step in config.milestones]
        decay = optax.piecewise_constant_schedule(
            1.0, dict.fromkeys(milestones, config.milestone_factor)
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        warmup = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        return config.learning_rate * warmup * decay(jnp.maximum(0, step - config.warmup_steps))

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer, with decoupled weight decay, which is times the learning rate as in PyTorch.

    The length of the run in training steps matters to the cosine schedule only.
    """
    schedule = learning_rate_schedule(config, steps)

    def of_updates(updates: jax.typing.ArrayLike) -> jax.Array:
        return schedule(updates * config.accumulate)

    optimizer = optax.adamw(
        of_updates,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decays,
    )
    if config.type == "muon":
        muon = optax.contrib.muon(
            of_updates,
            ns_steps=4,
            preconditioning="aol",  # spares the fifth step
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_STACKED,
            consistent_rms=0.2,
        )
        optimizer = optax.partition({"muon": muon, "adamw": optimizer}, _labels)
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()
    return optimizer


# Axes of the matrices that blocks have stacked.
_STACKED = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)


def _labels(params: Params) -> Params:
    """A tree like `params`: "muon" for the matrices of blocks, "adamw" for the rest.

    Modulations are of the rest: they begin at zero and say what conditions do.
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = [str(key.key) for key in path]
        in_block = any(name.endswith("blocks") for name in names) and "modulation" not in names
        return "muon" if in_block and names[-1] == "kernel" else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def decays(params: Params) -> Params:
    """A tree like `params`, True where weight decay applies and False elsewhere.

    It applies to all but the scales and biases of LayerNorms: modulation projections, other biases,
    tokens and tables do decay.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: len(path) < 2 or "norm" not in str(path[-2]), params
    )


def split_model(
    model: nnx.Module, config: NovaConfig, freeze: tuple[str, ...] | None = None
) -> tuple[nnx.GraphDef, Params, Params]:
    """Takes a model apart into (graphdef, trainable parameters, everything else).

    ``nnx.merge(graphdef, trainable, rest)`` puts it together again. Only the trainable part is
    differentiated and has moments; the rest holds frozen parameters and buffers.

    Args:
        model: a `Nova`, real or abstract, of this config.
        freeze: patterns in place of the recipe's own list, see `OptimizerConfig.freeze`.

    Raises:
        NovaError: if one of ``freeze`` matches no parameter, or nothing is left to train.
    """
    names = [_name(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    for pattern in freeze or ():
        if not any(re.match(pattern, name) for name in names):
            raise NovaError(f"optimizer.freeze: {pattern!r} matches no parameter, e.g. {names[0]}")
    if freeze is None:
        freeze = _FROZEN + (_FROZEN_IN_IMAGE_MODELS if config.frames == 1 else ())

    def trainable(path: tuple[Any, ...], value: Any) -> bool:
        return not any(re.match(pattern, _name(path)) for pattern in freeze)

    graphdef, params, *rest = nnx.split(model, nnx.All(nnx.Param, trainable), ...)
    if not jax.tree.leaves(params):
        raise NovaError("optimizer.freeze leaves nothing to train; remove a pattern")
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest[0])


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
