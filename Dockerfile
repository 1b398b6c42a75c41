# Training on CPUs, in a folder that the host keeps:
#   docker build --build-arg UID="$(id -u)" -t fabric-ppo .
#   mkdir -p logs
#   docker run --rm -v "$PWD/logs:/home/ppo/logs" fabric-ppo train torch --env-id CartPole-v1
FROM python:3.11-slim AS build
WORKDIR /source
# Box2D comes as source code for some processors
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential swig \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/fabric-ppo
ENV PATH=/opt/fabric-ppo/bin:$PATH
COPY requirements.txt .
# PyTorch for CPUs is a tenth of the one with CUDA
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt ziglang==0.17.1
COPY pyproject.toml README.md LICENSE train_torch.py train_fabric.py train_fabric_decoupled.py ./
COPY configs configs
COPY fabric_ppo fabric_ppo
RUN pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
# of a folder that the host keeps, its owner there has to be this user's number
ARG UID=1000
RUN useradd --create-home --uid "$UID" ppo
COPY --from=build /opt/fabric-ppo /opt/fabric-ppo
ENV PATH=/opt/fabric-ppo/bin:$PATH SDL_VIDEODRIVER=dummy
USER ppo
WORKDIR /home/ppo
ENTRYPOINT ["fabric-ppo"]
CMD ["doctor"]
