# CPU:  docker build -t monai-adv .
# CUDA: docker build -t monai-adv --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# Demo: docker run --rm --network none -v "$PWD/demo:/work/demo" monai-adv
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"

# nnU-Net brings packages that may have to be compiled; torch stays what it is.
COPY . /src
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ \
    && pip install --no-cache-dir "/src[all]" \
    && apt-get purge -y --auto-remove gcc g++ && rm -rf /var/lib/apt/lists/* /src

# Threads that spin while they wait slow a machine with few cores down many times.
ENV OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home user && mkdir /work && chown user /work
USER user
WORKDIR /work
ENTRYPOINT ["monai-adv"]
CMD ["demo", "--output", "demo"]
