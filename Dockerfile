# Serves on CPUs and, with the driver that CUDA 13 asks for (580 or newer), on NVIDIA cards from
# Turing on. Another build of torch comes from the index of wheels that TORCH_INDEX_URL names:
#   CUDA 12.6  for Volta, which later builds leave out, and for older drivers
#   CPU        several GB smaller
# Source and revision are known to who builds: --label org.opencontainers.image.source=...
ARG BASE_IMAGE=python:3.12-slim-bookworm


# The dependencies alone out of pyproject.toml, with the benchmark's picture: a change of its other
# lines leaves the next stage, the long one, as it is.
FROM ${BASE_IMAGE} AS requirements
WORKDIR /build
COPY pyproject.toml ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *project["optional-dependencies"]["plot"], sep="\n")' \
      > requirements.txt


FROM ${BASE_IMAGE} AS dependencies
ARG TORCH_INDEX_URL=
WORKDIR /build
# The base image's pip installs into a virtual environment that has none of its own.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_PYTHON=/opt/venv/bin/python \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
COPY constraints.txt ./
COPY --from=requirements /build/requirements.txt ./
# From torch's index comes torch alone, so that no other package can be taken from there. The
# second pip keeps it, as 2.13.0+cu126 is a 2.13.0, and adds what it depends on.
# Bytecode is written in the form that holds whatever the files' times are: some builders change
# those, and with the ordinary form every start would compile everything again. It fails on files
# for newer Pythons, which this one never loads.
RUN --mount=type=cache,target=/root/.cache/pip \
    set -e; \
    if [ -n "$TORCH_INDEX_URL" ]; then \
      pip install --no-compile --no-deps --constraint constraints.txt --index-url "$TORCH_INDEX_URL" torch; \
    fi; \
    pip install --no-compile --constraint constraints.txt --requirement requirements.txt; \
    python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/venv/lib || true


# The project as a tree to lay over the dependencies: a change of the source is a small layer. With
# Triton, which only CUDA builds of torch bring, its kernels are in it, compiled for all cards, so
# that a start compiles nothing. That needs a C compiler and no GPU.
FROM dependencies AS project
RUN if [ -d "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/triton" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY tools/kernel_store.py tools/
RUN --mount=type=cache,target=/root/.cache/pip \
    set -e; \
    pip install --no-compile --no-deps --root /project .; \
    packages="$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
    if [ -d "$packages/triton" ]; then \
      PYTHONPATH="/project$packages" PYTHONDONTWRITEBYTECODE=1 /opt/venv/bin/python tools/kernel_store.py; \
    fi; \
    python -m compileall -q --invalidation-mode unchecked-hash /project


FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="gptj-predictor" \
      org.opencontainers.image.description="A KServe predictor for GPT-J-6B" \
      org.opencontainers.image.licenses="Apache-2.0"
# The official image leaves out the standard library's bytecode, and the server's user could not
# add it.
RUN python -m compileall -qq -j 0 -x '/(site|dist)-packages/' --invalidation-mode unchecked-hash \
      "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" || true
COPY --from=dependencies /opt/venv /opt/venv
# For what was not compiled above: another model's kernels, or another Triton's launchers.
RUN if [ -d "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/triton" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=project /project /
# HOME and TMPDIR: with a read-only root only /tmp has to be writable; the caches of torch, Triton
# and Hugging Face follow HOME.
# TRITON_CACHE_MANAGER: Triton finds the kernels that were compiled above.
# TORCH_DISABLE_NATIVE_JIT: torch 2.13 would hand some matrix products on a GPU to Triton, to be
# compiled while requests wait (pytorch issue 196977); its ready-made kernels do them.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TRITON_CACHE_MANAGER=gptj_predictor.model.kernel_store:StoredKernels \
    TORCH_DISABLE_NATIVE_JIT=1
# A number, so that Kubernetes can tell that it is not root's.
USER 65532:65532
EXPOSE 8080 8081
ENTRYPOINT ["gptj-predictor"]
CMD ["serve"]
