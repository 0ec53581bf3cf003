# The service on the shipped model.
#
#   docker build -t speech-ssl .                                for a CPU
#   docker build -t speech-ssl --build-arg DEVICE=cuda .        for a GPU
#   docker build -t speech-ssl --build-arg EXTRAS=av .          that reads M4A and WebM too
#   docker run -p 8000:8000 speech-ssl                          with a GPU: add --gpus all
#
# The standard torch wheel carries the CUDA libraries and runs on either. For a CPU image without them,
# gigabytes smaller, name the package index of torch's CPU builds: --build-arg TORCH_INDEX=ADDRESS.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=""
# More of pyproject.toml's extras, as "av": M4A and WebM, at the price of FFmpeg's code in the decoders' processes.
ARG EXTRAS=""
RUN python -m venv /opt/speech-ssl
ENV PATH=/opt/speech-ssl/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Dependencies first: the layer is made again only when they change.
COPY pyproject.toml constraints.txt ./
RUN python -c "import os, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = [p['optional-dependencies'][name] for name in ['serve', 'otel', *os.environ['EXTRAS'].split()]]; \
        print(*p['dependencies'], *sum(extras, []), sep='\n')" > requirements.txt \
    && pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -r requirements.txt
COPY . .
RUN pip install --no-deps .

FROM python:${PYTHON}-slim-bookworm
ARG DEVICE=cpu
RUN useradd --create-home --uid 1000 speech
COPY --from=build /opt/speech-ssl /opt/speech-ssl
ENV PATH=/opt/speech-ssl/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SPEECH_SSL_HOST=0.0.0.0 \
    SPEECH_SSL_PORT=8000 \
    SPEECH_SSL_DEVICE=${DEVICE}
USER speech
WORKDIR /home/speech
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['SPEECH_SSL_PORT'] + '/health/ready', timeout=2)"]
CMD ["python", "-m", "service"]
