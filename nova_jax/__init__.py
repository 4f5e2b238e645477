"""NOVA in JAX: autoregressive video generation without vector quantization (arXiv 2412.14169).

Most users want `nova_jax.pipeline.NovaPipeline`; the commands are `python -m nova_jax.train`,
`nova_jax.generate` and `nova_jax.evaluate`, or `nova train` and so on. Importing the package itself
imports nothing heavy; it says which of its requirements are missing or too old.
"""

from nova_jax import versions

__version__ = "0.1.0"

versions.check()
