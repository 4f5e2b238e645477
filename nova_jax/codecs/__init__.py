"""Frozen parts around the model: pixels to latents and back, prompts to features.

Each has a `type` name under which it is saved; `codec_from_dict` and `text_encoder_from_dict` bring
it back.
"""

from nova_jax.codecs.registry import codec_from_dict, text_encoder_from_dict

__all__ = ["codec_from_dict", "text_encoder_from_dict"]
