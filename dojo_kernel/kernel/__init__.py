"""The host's side of a kernel: boxes, sockets, cells."""

from dojo_kernel.kernel.session import Kernel, KernelSession, open_kernel

__all__ = ["Kernel", "KernelSession", "open_kernel"]
