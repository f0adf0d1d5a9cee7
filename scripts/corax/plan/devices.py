"""What training can run on: memory and speed."""

import os
from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Device:
    """One device, that is one rank."""

    name: str
    memory: int
    """Bytes."""
    flops: float
    """Floating-point operations a second of products with weights."""
    attention_flops: float
    """The same of attention."""
    bandwidth: float
    """Bytes a second from and to memory."""
    compute_bytes: int
    """Bytes of a number in the type of matrix products."""
    runtime: int
    """Bytes that the process needs before the model: CUDA context and libraries."""
    link: float = 10e9
    """Bytes a second that it sends to and gets from the other devices of a node; default: through main memory."""


GPUS = {
    device.name: device
    for device in (
        Device("a100-40gb", 40 * GB, 220e12, 190e12, 1.555e12, 2, GB, 300e9),
        Device("a100-80gb", 80 * GB, 220e12, 190e12, 2.039e12, 2, GB, 300e9),
        Device("h100-80gb", 80 * GB, 700e12, 460e12, 3.35e12, 2, GB, 450e9),
        Device("h200-141gb", 141 * GB, 700e12, 460e12, 4.8e12, 2, GB, 450e9),
    )
}
"""Memory, bandwidth and NVLink: NVIDIA's datasheets of A100, H100 and H200 (SXM). Drivers report 5 to 7 % more bytes
than the decimal gigabytes there; that much stays free for fragmentation.

Speed: bfloat16 peaks are 312 (A100) and 989 TFLOP/s (H100, H200). Llama-3-8B's products take 352 ms on an H100 for
2.46e14 operations (benchmarks/results/training.json); the A100 is given the same share of its peak, 0.71.
"""

CPU_FLOPS_PER_THREAD = 36e9
"""float32; measured: QLoRA of a 135M model with r = 16, 512 tokens in about 5 s on 2 threads."""
CPU_BANDWIDTH = 10e9
CPU_RUNTIME = GB
"""Python with torch, transformers, peft and bitsandbytes (measured: 0.46 GB), and freed memory the allocator keeps.

With it the estimate agrees with the measured peak of a 135M model, r = 16, 512 tokens: 2.2 GB, 1.4 with checkpointing.
"""


def get(name: str, ranks: int, threads: int) -> Device:
    """The device `name`; on a CPU `ranks` processes of `threads` threads each share this machine's memory.

    The CPU's memory is rounded down to whole GiB. It computes in float32: with instructions for bfloat16 it
    needs less than estimated.
    """
    if name != "cpu":
        return GPUS[name]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = total // 2**30 * 2**30 // ranks
    flops = CPU_FLOPS_PER_THREAD * threads
    return Device("cpu", memory, flops, flops, CPU_BANDWIDTH, 4, CPU_RUNTIME)
