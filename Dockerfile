# hist-cache with a Python of its own. The default is for CPUs; for CUDA give both arguments:
#   docker build --build-arg BASE=nvidia/cuda:12.6.3-runtime-ubuntu24.04 \
#                --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=lora,loggers,parquet,sweeps-postgres

# CUDA's images have no Python: Ubuntu's is taken. An environment of its own works with either.
RUN if ! command -v python3 >/dev/null; then \
      apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi && python3 -m venv /opt/hist-cache
ENV PATH=/opt/hist-cache/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1

# torch and torchvision from one index, so that they fit each other; before the sources, so that edits do not fetch them again.
RUN pip install torch torchvision --index-url ${TORCH_INDEX}
COPY pyproject.toml README.md LICENSE /src/
COPY hist_cache /src/hist_cache
COPY extract /src/extract
COPY train /src/train
COPY sweeps /src/sweeps
RUN pip install "/src[${EXTRAS}]"

# Mount a folder here: caches and runs are written below it, weights that are downloaded in its .huggingface.
ENV HF_HOME=/project/.huggingface
WORKDIR /project
CMD ["hist-train", "--help"]
