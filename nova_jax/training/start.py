"""What a run starts from instead of random parameters: a released model, or one trained here.

The checkpoint's model and the run's must be the same, but for what these conversions cover:

    another latent_size  positions are computed from the token grid, so no parameter changes
    frames 1 → T         an image model made a video model, as the release makes them: the embedding
                         of time and the patch embedding of the temporal encoder, which an image
                         model has and never trains, are taken as they are; the motion embedding
                         and the mixer, which it lacks, are drawn anew
    `InitConfig.fresh`   parts named there are drawn anew, and may be of another size or kind
"""

from __future__ import annotations

import dataclasses
import re

import jax
from flax import nnx

from nova_jax.checkpoints.open import Weights, open_checkpoint
from nova_jax.config import Checked
from nova_jax.distributed.mesh import MeshLayout
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.optimizer import check_patterns

# Fields that may differ where the part that depends on them is drawn anew.
_PART_OF = {
    "diffusion_head": "diffusion_head.",
    "mixer_rank": "temporal_encoder.mixer.",
    "text_dim": "text_embed.",
    "num_classes": "label_embed.",
}
_LACKED_BY_IMAGE_MODELS = (r"motion_embed\.", r"temporal_encoder\.mixer\.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig(Checked):
    """The checkpoint whose parameters a run starts from; a run taken up again does not look at it.

    Attributes:
        checkpoint: a directory in the released layout or its id on the Hugging Face hub, a model
            directory of this project, or the work directory of a training run.
        weights: of a training run: averaged or current parameters.
        fresh: regular expressions, matched from the start of a parameter's path, of what is drawn
            anew all the same, such as ``diffusion_head\\.``.
    """

    checkpoint: str
    weights: Weights = "ema"
    fresh: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patterns("init.fresh", self.fresh)


@dataclasses.dataclass(frozen=True)
class InitialVariables:
    """What to start from.

    Attributes:
        variables: of the model, by dotted path, on their devices.
        fresh: paths of the variables to draw.
        schedule: the noise schedule that the checkpoint was trained with.
    """

    variables: dict[str, jax.Array]
    fresh: tuple[str, ...]
    schedule: Schedule

    def __str__(self) -> str:
        """How much was taken over, and what was not."""
        modules = dict.fromkeys(".".join(name.split(".")[:2]) for name in self.fresh)
        drawn = f"; drawn anew: {', '.join(modules)}" if modules else ""
        return f"{len(self.variables)} arrays taken over{drawn}"


def load_initial(init: InitConfig, config: NovaConfig, mesh: MeshLayout) -> InitialVariables:
    """Loads the parameters that a model of this config starts from onto the mesh.

    Raises:
        NovaError: there is no such checkpoint, it is damaged, or its model differs, by the names of
            the fields.
    """
    checkpoint = open_checkpoint(init.checkpoint, weights=init.weights, part="transformer")
    given = checkpoint.model_config()
    fresh = init.fresh
    if config.is_video and not given.is_video:
        fresh += _LACKED_BY_IMAGE_MODELS
    _check_same(init, given, config, fresh)
    abstract = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0)))
    names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract))]
    for pattern in init.fresh:
        if not any(re.match(pattern, name) for name in names):
            raise NovaError(f"init.fresh: {pattern!r} matches no parameter, e.g. {names[0]}")

    model, schedule = checkpoint.load_transformer(mesh=mesh)
    flat = nnx.to_flat_state(nnx.state(model))
    values = {".".join(map(str, path)): variable.get_value() for path, variable in flat}
    drawn = tuple(name for name in names if any(re.match(pattern, name) for pattern in fresh))
    return InitialVariables(
        {name: values[name] for name in set(names) - set(drawn)}, drawn, schedule
    )


def _check_same(
    init: InitConfig, given: NovaConfig, wanted: NovaConfig, fresh: tuple[str, ...]
) -> None:
    different = []
    for field in dataclasses.fields(NovaConfig):
        name = field.name
        there, here = getattr(given, name), getattr(wanted, name)
        part = _PART_OF.get(name)
        redrawn = part is not None and any(re.match(pattern, part) for pattern in fresh)
        converted = name == "latent_size" or (name == "frames" and there == 1)
        how_to_train = name.startswith("mask_ratio")
        if (there or None) != (here or None) and not (redrawn or converted or how_to_train):
            remedy = f" (or put '{part}*' into init.fresh)" if part else ""
            different.append(f"config.model.{name} is {here!r}, there it is {there!r}{remedy}")
    if different:
        raise NovaError(
            f"{init.checkpoint} holds another model: {'; '.join(different)}; make them equal"
        )
