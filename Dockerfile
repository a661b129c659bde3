# One image for every role: superlink, superexec, node, driver. Which it is, the command says.
FROM python:3.11-slim

# Where pip finds torch beside PyPI: the CPU builds. PyPI's own builds bring CUDA; to have them,
# docker build --build-arg TORCH_INDEX= .
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV VIRTUAL_ENV=/opt/fedlora \
    PATH=/opt/fedlora/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1

# What changes seldom comes first, so that a changed line of code rebuilds only the last layer.
# torch is looked for alone, with one retry: an index that cannot be reached is a warning to pip,
# and PyPI or a local wheel serves.
WORKDIR /src
RUN python -m venv $VIRTUAL_ENV
COPY constraints.txt ./
RUN PIP_EXTRA_INDEX_URL=$TORCH_INDEX pip install --quiet --retries 1 --no-deps -c constraints.txt torch
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      >requirements.txt \
    && pip install --quiet -c constraints.txt -r requirements.txt
COPY . .
RUN pip install --quiet --no-deps . && rm -rf build *.egg-info

# A fixed id, so that a volume's files belong to the same user in every container. An empty volume
# takes the owner of the folder that it is mounted on: these are what docker-compose.yml mounts.
RUN useradd --uid 10001 --create-home fedlora \
    && install -d -o fedlora -g fedlora -m 700 /state /runs /results /volumes \
    && cd /volumes && install -d -o fedlora -g fedlora -m 700 ca secret superlink gate node-1 node-2 node-3 node-4 \
    && install -d -o fedlora -g fedlora public
USER fedlora
WORKDIR /home/fedlora
CMD ["fedlora", "--help"]
