"""Instead of SGLang's CUDA kernels: names that can be imported and not be called."""

__version__ = "0.4.10"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*_, **__):
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU")

    return kernel
