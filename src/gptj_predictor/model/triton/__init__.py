"""Triton kernels for a layer on GPUs, one module per kernel. Importing these needs Triton.

All are bound by memory: they read every byte once, in wide loads, and compute in fp32 between.
Kernels launch on the current CUDA device, which has to be the tensors' own. What they are compiled
for is chosen by a function of sizes beside each, so that it can be compiled ahead of time.
"""
