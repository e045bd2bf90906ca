"""`python -m dojo_kernel` is `dojo`."""

from dojo_kernel.cli import main

main()
