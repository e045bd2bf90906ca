# The box of an episode: a Python, the pinned stack of kernels/, and the code of dojo_kernel/inside. Nothing else.
#
#   make image                                   dojo-kernel:latest
#   make image CUDA=1                            dojo-kernel:cuda; torch with its CUDA libraries on top
#   docker build --build-arg BASE_IMAGE=nvidia/cuda:12.9.1-runtime-ubuntu24.04 ...   needs python3 and python3-venv in it
#
# A mirror: --build-arg PIP_INDEX_URL=https://mirror.example/simple. A private certificate authority, or no network at
# all during the build: scripts/image puts ca.crt or wheels into kernels/build, which the first stage uses and the image
# never sees. No BuildKit is needed.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG EXTRA_REQUIREMENTS=
COPY kernels/ /build/kernels/
WORKDIR /build
RUN set -eu; \
    python3 -m venv /opt/venv; \
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do \
        eval "[ -n \"\${$name:-}\" ]" || unset "$name"; \
    done; \
    if [ -s kernels/build/ca.crt ]; then export PIP_CERT=/build/kernels/build/ca.crt; fi; \
    set -- --no-cache-dir --disable-pip-version-check --no-compile -r kernels/requirements.txt; \
    if [ -n "$EXTRA_REQUIREMENTS" ]; then set -- "$@" -r "$EXTRA_REQUIREMENTS"; fi; \
    if ls kernels/build/wheels/*.whl >/dev/null 2>&1; then set -- --no-index --find-links kernels/build/wheels "$@"; fi; \
    /opt/venv/bin/pip uninstall --yes --quiet setuptools 2>/dev/null || true; \
    /opt/venv/bin/pip install "$@"; \
    /opt/venv/bin/pip uninstall --yes --quiet pip; \
    /opt/venv/bin/python -m compileall -q /opt/venv/lib || true; \
    chmod -R a+rX /opt/venv  # here: a chmod in the last stage would store every file a second time

FROM ${BASE_IMAGE}
COPY --from=packages /opt/venv /opt/venv
COPY dojo_kernel/inside/ /opt/dojo/
# The box's root is read-only and its user owns nothing: what may be written is mounted at run time.
RUN mkdir -p /data /workspace /run/k \
    && echo "dojo:x:10001:10001:dojo:/workspace:/bin/sh" >> /etc/passwd \
    && echo "dojo:x:10001:" >> /etc/group \
    && chmod -R a+rX /opt/dojo \
    && if ! /sbin/ldconfig -p | grep -q 'libgomp\.so\.1 '; then \
        ln -s /opt/venv/lib/python3*/site-packages/scikit_learn.libs/libgomp-* /usr/lib/libgomp.so.1; \
    fi  # LightGBM brings no OpenMP of its own
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /workspace
CMD ["python3", "/opt/dojo/init.py"]
