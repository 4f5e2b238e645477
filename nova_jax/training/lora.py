"""Low-rank adapters (LoRA, arXiv 2106.09685): kernels that stay as they are, and what is added.

    W' = W + (alpha / rank) · A B,   A [in, rank] drawn, B [rank, out] zero at the start

Adapters live beside the model, not in it: the sums are formed from arrays by path before the model
is put together, so that no module knows of them, and a model whose sums are kept is an ordinary
model. Kernels of stacked blocks have a leading axis of layers, which A and B have too.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from nova_jax.checkpoints.adapters import A, B, adapter_scale
from nova_jax.config import Checked, Count, Positive
from nova_jax.errors import NovaError
from nova_jax.models.layout import AxisNames
from nova_jax.training.optimizer import check_patterns

# Targets by name: kernels of both transformers.
_BLOCKS = r"(temporal_encoder|spatial_decoder)\.\w*blocks\.block"
TARGETS = {
    "attention": rf"{_BLOCKS}\.attention\.(qkv|out)\.kernel",
    "mlp": rf"{_BLOCKS}\.mlp\.(fc1|fc2)\.kernel",
}
# Uniform in ±1 / √in, as the reference implementation has it.
_INIT = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=())
_INIT_STACKED = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(Checked):
    """Adapters in place of training the parameters themselves.

    Attributes:
        rank: columns of A.
        alpha: the product is scaled by alpha / rank.
        targets: which kernels have an adapter: "attention" and "mlp", those of both transformers;
            or regular expressions, matched from the start of a kernel's path.
    """

    rank: Count = 16
    alpha: Positive = 16.0
    targets: tuple[str, ...] = ("attention", "mlp")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise NovaError("lora.targets is empty; name what is to have adapters")
        check_patterns("lora.targets", self.targets)

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied with."""
        return adapter_scale(self.rank, self.alpha)

    def select(self, names: Iterable[str]) -> list[str]:
        """Paths of the kernels that have an adapter, sorted, out of all paths of a model.

        Raises:
            NovaError: a target matches no kernel.
        """
        kernels = sorted(name for name in names if name.endswith(".kernel"))
        chosen = set()
        for target in self.targets:
            pattern = TARGETS.get(target, target)
            if not (matched := {name for name in kernels if re.match(pattern, name)}):
                raise NovaError(
                    f"lora.targets: {target!r} matches no kernel; use {' or '.join(TARGETS)}, "
                    f"or a pattern of paths such as {kernels[0]}"
                )
            chosen |= matched
        return sorted(chosen)


def create_adapters(
    config: LoraConfig, variables: Mapping[str, jax.Array], seed: int
) -> dict[str, jax.Array]:
    """New adapters, which change nothing yet, as ``PATH.kernel.a`` and ``PATH.kernel.b``."""
    names = config.select(variables)
    adapters = {}
    for name, key in zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True):
        *stack, inputs, outputs = variables[name].shape
        init = _INIT_STACKED if stack else _INIT
        adapters[name + A] = init(key, (*stack, inputs, config.rank), jnp.float32)
        adapters[name + B] = jnp.zeros((*stack, config.rank, outputs), jnp.float32)
    return adapters


def adapter_axes(kernels: Mapping[str, AxisNames]) -> dict[str, AxisNames]:
    """Logical axes of adapters, by path, from those of the kernels: A has the input's, B the
    output's."""
    axes: dict[str, AxisNames] = {}
    for name, (*stack, inputs, outputs) in kernels.items():
        axes[name + A] = (*stack, inputs, None)
        axes[name + B] = (*stack, None, outputs)
    return axes
