"""The NOVA transformer: temporal encoder, spatial decoder and diffusion head."""

from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions, Nova

__all__ = ["Conditions", "Nova", "NovaConfig"]
