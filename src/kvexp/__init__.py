"""kvexp: experiments on the kernels that write keys and values into a paged KV cache."""

__version__ = "0.1.0"
