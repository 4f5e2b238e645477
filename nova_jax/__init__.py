"""NOVA in JAX: autoregressive video generation without vector quantization (arXiv 2412.14169).

Most users want `nova_jax.pipeline.NovaPipeline`; the commands are `python -m nova_jax.train`,
`nova_jax.generate` and `nova_jax.evaluate`. Importing the package itself imports nothing heavy.
"""

__version__ = "0.1.0"
