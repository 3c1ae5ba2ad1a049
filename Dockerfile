# An image with the command `dino-extract`. Not built yet: no machine of the project had Docker.
#
#   docker build -t dino-extract .                                     # CPU
#   docker build -t dino-extract:cuda --build-arg TORCH_BACKEND=cu130 . # NVIDIA GPU; run it with --gpus all
#   docker run --rm -v "$PWD:/data" dino-extract embed photos/
#
# TORCH_BACKEND is what `uv pip install --torch-backend` takes: cpu, or a CUDA version that your driver supports.
FROM python:3.12-slim

ARG TORCH_BACKEND=cpu
ARG EXTRAS=all

RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend="${TORCH_BACKEND}" "torch>=2.10" torchvision

COPY pyproject.toml README.md LICENSE /build/
COPY dino_extract /build/dino_extract
COPY weights /build/weights
RUN uv pip install --system --no-cache --torch-backend="${TORCH_BACKEND}" "/build[${EXTRAS}]" && rm -rf /build

# Weights are downloaded once into this folder: mount a volume to keep them.
ENV DINO_EXTRACT_CACHE=/cache
VOLUME /cache
WORKDIR /data
ENTRYPOINT ["dino-extract"]
CMD ["--help"]
