# The two images: `docker build --target cpu .` and, for GPUs and clusters, `--target cuda`.

FROM scratch AS sources
COPY pyproject.toml requirements.txt constraints.txt README.md LICENSE run_search.py /app/
COPY alrq_core /app/alrq_core
COPY search_spaces /app/search_spaces
COPY tune /app/tune


FROM python:3.11-slim-bookworm AS base
# Without libgomp1 bitsandbytes can't load its kernels and falls back to slow ones.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
# 1000 is also the uid of `ubuntu` on EC2, who owns what Ray mounts into the container. /cache is
# writable for everyone since scripts/docker-run.sh runs as whoever calls it.
RUN useradd --uid 1000 --create-home --shell /bin/bash alrq \
    && install --directory --owner alrq --group alrq /home/alrq/.ray /app/results \
    && install --directory --mode 1777 /cache
# Ray reads HOME from the image to place its mounts. USER is for uids without an account, for whom
# Python can't look up a name.
ENV HOME=/home/alrq \
    USER=alrq \
    HF_HOME=/cache/huggingface \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /app
# The dependencies by themselves, so that a change of the code does not download them again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['wandb'], sep='\n')" \
    > /tmp/dependencies.txt


FROM base AS cuda
# Ray copies files into the container with rsync, reaches its workers through ssh, and keeps
# `ray exec --tmux` running when you hang up; KubeRay before 1.6 asks pods with wget whether they are
# well.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync tmux wget \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --constraint constraints.txt torch
# The head starts its workers through boto3, and shows the trials with TensorBoard; Ray's extra is
# the dashboard and `ray job`.
RUN pip install --constraint constraints.txt --requirement /tmp/dependencies.txt \
    "ray[default]" boto3 tensorboard
COPY --from=sources /app /app
RUN pip install --no-deps --editable . && chmod -R a+rX /app
# NVIDIA's runtime hands over no GPU to an image that does not ask for one.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
# No ENTRYPOINT: `ray up` starts the image with `bash`.
CMD ["python", "run_search.py", "--help"]


FROM base AS cpu
RUN pip install --index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt torch
RUN pip install --constraint constraints.txt --requirement /tmp/dependencies.txt
COPY --from=sources /app /app
RUN pip install --no-deps --editable . && chmod -R a+rX /app
USER 1000
CMD ["python", "run_search.py", "--help"]
