# galip-hf in a container: `docker build -t galip-hf .`, or with CUDA `docker build --build-arg TORCH=cu130 -t galip-hf .`
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" galip-hf translate scan.nii.gz --model MODEL --to T2 --output t2.nii.gz
#   docker run --rm -v "$PWD:/data" -p 127.0.0.1:8765:8765 galip-hf serve --model MODEL --host 0.0.0.0
# With CUDA add `--gpus all` before the image's name and `--device cuda` at the end. Models of the Hub are cached in /cache
# (`-v galip-cache:/cache` keeps them).
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /source
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY galip_hf galip_hf
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
# A folder of download.pytorch.org/whl: cpu, or a CUDA version.
ARG TORCH=cpu
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" \
    "torch>=2.9.1" "torchvision>=0.24.1"
COPY --from=build /wheels /wheels
# The wheel's name holds the version, so it is found by pattern.
RUN pip install --no-cache-dir "$(find /wheels -name '*.whl')[app,dicom,formats,serve]" && rm -r /wheels
RUN useradd --create-home --uid 1000 galip && mkdir -p /data /cache && chmod 777 /cache
ENV HF_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
EXPOSE 7860 8765
ENTRYPOINT ["galip-hf"]
CMD ["--help"]
