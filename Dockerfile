# The application: `docker run --volume chexgenbench:/data IMAGE run` ends with the demo's leaderboard.
#   docker build --tag chexgenbench .                            for processors
#   docker build --tag chexgenbench --build-arg TORCH=cuda .     for NVIDIA GPUs (docker run --gpus all)
# docs/scale.md tells the rest.

# Debian's or any other Python of version 3.11 or newer, with venv.
ARG BASE=python:3.11-slim-bookworm

# Wheels of torch and torchvision that are at hand: --build-context wheels=FOLDER. None by default.
FROM scratch AS wheels

FROM ${BASE} AS wheel
RUN python3 -m venv /build
COPY constraints.txt /
RUN /build/bin/pip install --no-cache-dir --constraint /constraints.txt hatchling
WORKDIR /source
COPY . .
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM ${BASE} AS environment
# cpu: from TORCH_INDEX, since the package registry's torch for Linux brings 3 GB of CUDA libraries.
# cuda: that one. Of a wheels context both torch and torchvision are taken, whatever their release.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Optional parts, such as "[radiomics,reports]".
ARG EXTRAS=
RUN python3 -m venv /opt/chexgenbench
COPY constraints.txt /
COPY --from=wheels . /wheels/
RUN set -eu; pip() { /opt/chexgenbench/bin/pip "$@" --no-cache-dir --constraint /constraints.txt; }; \
    if ls /wheels/*.whl >/dev/null 2>&1; then \
        sed --in-place --regexp-extended '/^torch(vision)?==/d' /constraints.txt; \
        pip install --no-deps /wheels/torch-*.whl /wheels/torchvision-*.whl; \
    elif [ "$TORCH" = cpu ]; then \
        pip install --no-deps --index-url "$TORCH_INDEX" torch torchvision; \
    elif [ "$TORCH" != cuda ]; then \
        echo "TORCH=$TORCH is neither cpu nor cuda." >&2; exit 2; \
    fi
COPY --from=wheel /dist /dist
RUN set -eu; wheel=$(ls /dist/*.whl); \
    /opt/chexgenbench/bin/pip install --no-cache-dir --constraint /constraints.txt "$wheel$EXTRAS"; \
    /opt/chexgenbench/bin/pip check; \
    /opt/chexgenbench/bin/pip uninstall --yes pip

FROM ${BASE}
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="CheXGenBench" \
      org.opencontainers.image.description="Benchmark text-to-image models for chest radiographs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}"
# Of everybody, as /tmp is: `--user $(id --user)` may write there too.
RUN useradd --uid 1000 --no-create-home --home-dir /data chexgenbench \
    && mkdir --mode 1777 /data && chown chexgenbench: /data
COPY --from=environment /opt/chexgenbench /opt/chexgenbench
# USER: PyTorch asks for a name, which a uid given by --user does not have.
ENV PATH=/opt/chexgenbench/bin:$PATH \
    HOME=/data \
    USER=chexgenbench \
    CHEXGENBENCH_HOME=/data \
    CHEXGENBENCH_CACHE=/data/cache \
    HF_HOME=/data/cache/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1
USER chexgenbench
WORKDIR /data
VOLUME /data
# A container of this image runs for hours and serves nothing: whether it still could run a demo.
HEALTHCHECK --interval=10m --timeout=5m --start-period=5m CMD ["chexgenbench", "doctor"]
ENTRYPOINT ["chexgenbench"]
CMD ["--help"]
