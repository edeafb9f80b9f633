"""Device features that SGLang uses on every device, for a host without one. SGLang calls ``activate``."""

import importlib
import time

FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "empty_strided",
    "full",
    "ones",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)


def activate():
    import torch

    if torch.cuda.is_available():
        return
    torch.cuda.Event = torch.cpu.Event = Moment
    torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor
    for name in FACTORIES:
        setattr(torch, name, without_pinning(getattr(torch, name)))
    pools = "sglang.srt.mem_cache.pool_host"
    importlib.import_module(f"{pools}.common")._cuda_host_register = lambda *_, **__: None
    importlib.import_module(f"{pools}.mha").transfer_kv_direct = copy_pages
    register_device_memory_as_host_memory()
    let_seeds_count()


class Moment:
    """``torch.cuda.Event`` where all work is over when its call returns."""

    def __init__(self, *_, **__):
        self._at_s = 0.0

    def record(self, *_, **__):
        self._at_s = time.perf_counter()

    def wait(self, *_, **__):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def elapsed_time(self, end):
        return (end._at_s - self._at_s) * 1000


def without_pinning(factory):
    """There is no pinned memory without an accelerator; asking for it is an error."""

    def make(*args, **kwargs):
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def copy_pages(src_layers, dst_layers, src_indices, dst_indices, page_size):
    """Between device and host pool, which is what the kernel of this name does."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def register_device_memory_as_host_memory():
    """KV "on the device" is host memory here, and NIXL must be told so."""
    try:
        agent = importlib.import_module("nixl._api").nixl_agent
    except ImportError:
        return
    construct = agent.__init__

    def init(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        self.nixl_mems["VRAM"] = self.nixl_mems["DRAM"]

    agent.__init__ = init


def let_seeds_count():
    """Seeds count in deterministic mode only. That asks for kernels whose sums do not depend on the batch,
    which are Triton's; here the attention of torch is taken for one of them, and the rest is as it is."""
    choices = importlib.import_module("sglang.srt.arg_groups.choices")
    choices.add_deterministic_attention_backend_choices(["torch_native"])
    choices.add_radix_supported_deterministic_attention_backend_choices(["torch_native"])
    importlib.import_module("sglang.srt.batch_invariant_ops").enable_batch_invariant_mode = lambda: None
