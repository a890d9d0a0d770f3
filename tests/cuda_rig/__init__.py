"""CUDA without a GPU: the real pycuda on a fake driver, kernels compiled for this machine's CPU."""
