"""A start that finds its kernels compiled: Triton's own driver, over a libcuda that only counts.

Run as a program, because nothing may interpret kernels in its process. It prints JSON.

    python -m tests.support.second_start FOLDER_OF_LIBCUDA STORE CAPABILITY none|int8
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import triton  # type: ignore[import-untyped]
from triton.backends.nvidia.driver import CudaDriver  # type: ignore[import-untyped]

from gptj_predictor.engine.kernel_variants import KernelShape, launches
from gptj_predictor.model import kernel_store
from gptj_predictor.model.config import NetworkConfig

#: What Triton's module calls at a launch. A handle is any number but 0. Of a device's attributes 10
#: is the width of a warp and 97 the shared memory of a program; of a function's, 0 is its threads.
LIBCUDA = """
#include <string.h>
static int loaded, launched;
int counted_loads(void) { return loaded; }
int counted_launches(void) { return launched; }
int cuInit(unsigned flags) { return 0; }
int cuGetErrorString(int code, const char **text) { *text = "an error"; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 97 ? 232448 : attribute == 10 ? 32 : 1;
  return 0;
}
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuCtxGetLimit(void *size, int limit) { return 0; }
int cuCtxSetLimit(int limit, unsigned long size) { return 0; }
int cuModuleLoadData(void **module, const void *image) {
  *module = (void *)1;
  loaded++;
  return memcmp(image, "\\x7f" "ELF", 4) ? 200 : 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = (void *)1;
  return 0;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
  *value = attribute == 0 ? 1024 : 0;
  return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuPointerGetAttribute(void *data, int attribute, unsigned long pointer) { return 0; }
int cuLaunchKernelEx(void *config, void *function, void **parameters, void **extra) {
  launched++;
  return 0;
}
int cuTensorMapEncodeTiled(void) { return 1; }
int cuTensorMapEncodeIm2col(void) { return 1; }
int cuOccupancyMaxActiveClusters(void) { return 1; }
"""


def make_libcuda(folder: Path) -> None:
    """Compile the library that only counts."""
    (folder / "counting.c").write_text(LIBCUDA)
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "counting.c"]
    subprocess.run([*command, "-o", "libcuda.so.1"], cwd=folder, check=True)


def main(libcuda: str, store: str, capability: str, quantization: Literal["none", "int8"]) -> None:
    """Launch everything and count."""
    kernel_store.STORE = Path(store)
    driver = CudaDriver()
    driver.get_current_device = lambda: 0
    driver.get_current_stream = lambda _: 0
    driver.get_device_capability = lambda _: divmod(int(capability), 10)
    triton.runtime.driver.set_active(driver)
    compiled: list[bool] = []

    def listen(*, cache_hit: bool, **_: Any) -> None:
        compiled.append(not cache_hit)

    triton.knobs.compilation.listener = listen
    dtype = torch.bfloat16 if int(capability) >= 80 else torch.float16  # as the server computes
    shape = KernelShape(NetworkConfig(), dtype, int(capability), quantization)
    for launch in launches(shape):
        launch()
    library = ctypes.CDLL(f"{libcuda}/libcuda.so.1")
    print(
        json.dumps(
            {
                "kernels": len(compiled),
                "compiled": sum(compiled),
                "loaded": library.counted_loads(),
                "launched": library.counted_launches(),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
