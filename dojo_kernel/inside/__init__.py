"""What runs in a box: plain files, stdlib and ipykernel only, since a box has no dojo_kernel."""
