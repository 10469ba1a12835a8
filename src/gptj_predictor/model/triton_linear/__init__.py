"""Matrix products through Triton kernels of our own: for few rows, and for int8 weights.

A product is ``y = x W^T + b`` with a weight ``[outputs, inputs]`` of 16 bits, or of int8 with one
fp32 scale for each output. The layer norm before it and what comes after it, that is GELU or adding
to the residual, can be parts of it. Importing :mod:`kernels` or :mod:`projection` needs Triton.
"""
