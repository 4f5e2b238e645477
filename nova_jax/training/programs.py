"""The programs of a training run, built from its config; each compiles when it first runs."""

from __future__ import annotations

import dataclasses
import math

import jax

from nova_jax.distributed.mesh import MeshLayout
from nova_jax.sampling.schedules import schedule_from_dict
from nova_jax.training.config import TrainConfig
from nova_jax.training.guard import Diagnose, make_diagnosis
from nova_jax.training.optimizer import learning_rate_schedule, make_optimizer
from nova_jax.training.state import Blueprint, CreateState, TrainState, state_maker
from nova_jax.training.step import Trainer, TrainStep, make_train_step
from nova_jax.training.validation import Validate, make_validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """What a run does on its devices.

    Attributes:
        blueprint, state, create: see `nova_jax.training.state.state_maker`.
        step: see `nova_jax.training.step.make_train_step`.
        validate: see `nova_jax.training.validation.make_validation`.
        diagnose: see `nova_jax.training.guard.make_diagnosis`.
    """

    blueprint: Blueprint
    state: TrainState
    create: CreateState
    step: TrainStep
    validate: Validate
    diagnose: Diagnose

    @property
    def parameters(self) -> int:
        """Size of the model."""
        shapes = jax.eval_shape(self.blueprint.variables, self.state.params, self.state.frozen)
        return sum(math.prod(shape.shape) for shape in shapes.values())


def make_programs(config: TrainConfig, mesh: MeshLayout) -> Programs:
    """Builds the programs of a run; nothing is allocated.

    The mesh's devices may not be there, if nothing is to be run but compiled.

    Raises:
        NovaError: the optimizer or the adapters do not fit the model or the length of the run.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    blueprint, state, create = state_maker(
        config.model,
        optimizer,
        mesh,
        seed=config.seed,
        freeze=config.optimizer.freeze,
        lora=config.lora,
        dtype=config.dtype,
        remat=config.remat,
        unroll=config.unroll,
    )
    trainer = Trainer(
        blueprint=blueprint,
        mesh=mesh,
        schedule=schedule_from_dict(config.schedule),
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(config.optimizer, config.steps),
        ema=config.ema,
        loss_repeat=config.loss_repeat,
        seed=config.seed,
        first_frame_loss=config.first_frame_loss,
        context=config.context,
    )
    return Programs(
        blueprint=blueprint,
        state=state,
        create=create,
        step=make_train_step(trainer, state),
        validate=make_validation(trainer, state),
        diagnose=make_diagnosis(trainer),
    )
