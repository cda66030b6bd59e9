"""The Docker daemon: calls in threads, and one stream of events for all containers of a home."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import docker
import structlog
from docker.errors import APIError, ContainerError, DockerException, NotFound
from requests.exceptions import RequestException

from services.runner.gateways.docker.options import HOME_LABEL, SANDBOX_LABEL
from services.runner.gateways.sandbox.port import SandboxUsage

log = structlog.get_logger()

_TIMEOUT_S: Final = 30
# A daemon that accepts calls but answers none is reported as missing, before whoever started the
# runner gives up.
_FIRST_ANSWER_S: Final = 10
_AGAIN_S: Final = 0.5
FAULTS: Final = (DockerException, RequestException, OSError)


@dataclass(frozen=True, slots=True)
class End:
    """How a container ended."""

    status: int
    oom: bool
    printed: str


class Daemon:
    """What this runner asks of the Docker daemon; every method blocks except `call`."""

    def __init__(self, home: str, *, client: docker.DockerClient | None = None) -> None:
        self._home = home
        self._client = client or _client()
        self._api = self._client.api
        self._watching: threading.Thread | None = None
        self._stream: Any = None
        self._closed = False

    @property
    def api_version(self) -> str:
        """The API version in use."""
        return str(self._api.api_version)

    async def call(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Run an action in a thread."""
        return await asyncio.to_thread(action, *arguments)

    def info(self) -> Mapping[str, Any]:
        """Return facts about the daemon; raises one of FAULTS if it does not answer."""
        return dict(self._client.info())

    def image_id(self, name: str) -> str:
        """Return the digest of a local image; empty if there is none. Nothing is pulled."""
        try:
            return str(self._client.images.get(name).id)
        except NotFound:
            return ""

    def has_program(self, image: str, program: str) -> bool:
        """Return whether an image has a Python of this name that starts."""
        try:
            self._client.containers.run(
                image,
                entrypoint=[program, "-I", "-S", "-c", "pass"],
                user="65534:65534",
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                remove=True,
            )
        except (APIError, ContainerError):
            return False
        return True

    def run(self, options: Mapping[str, Any]) -> str:
        """Create and start a container; return its id."""
        made = str(self._api.create_container(**options)["Id"])
        try:
            self._api.start(made)
        except BaseException:
            self.remove(made)
            raise
        return made

    def signal(self, container: str, name: str) -> None:
        """Send a signal to the first process; does nothing if it is gone."""
        with contextlib.suppress(APIError):
            self._api.kill(container, name)

    def end_of(self, container: str) -> End | None:
        """Return how it ended; None while it runs."""
        try:
            state = self._api.inspect_container(container)["State"]
            if state.get("Running"):
                return None
            printed = self._api.logs(container, tail=50)
        except APIError:
            return End(-1, oom=False, printed="")
        text = bytes(printed or b"").decode("utf-8", "replace")
        return End(int(state.get("ExitCode", -1)), bool(state.get("OOMKilled")), text[-2000:])

    def usage(self, container: str) -> SandboxUsage:
        """Return the usage counted by the daemon so far; zeros if there is none."""
        try:
            found = self._api.stats(container, stream=False, one_shot=True)
            memory, processors = found["memory_stats"], found["cpu_stats"]["cpu_usage"]
        except (*FAULTS, KeyError, ValueError):
            return SandboxUsage()
        return SandboxUsage(
            memory_peak_bytes=int(memory.get("max_usage") or memory.get("usage") or 0),
            cpu_us=int(processors.get("total_usage") or 0) // 1000,
        )

    def remove(self, container: str) -> None:
        """Remove it with all that is in it, running or not."""
        with contextlib.suppress(APIError):
            self._api.remove_container(container, force=True, v=True)

    def ours(self) -> Mapping[str, str]:
        """Return the ids of this home's containers by sandbox id."""
        found = self._api.containers(all=True, filters={"label": f"{HOME_LABEL}={self._home}"})
        return {each["Labels"].get(SANDBOX_LABEL, ""): each["Id"] for each in found}

    def watch(self, on_end: Callable[[str, str], None], on_gap: Callable[[], None]) -> None:
        """Start a thread: `on_end` per ended container, `on_gap` when events may have been lost."""
        self._watching = threading.Thread(
            target=self._watch, args=(on_end, on_gap), name="docker-events", daemon=True
        )
        self._watching.start()

    def _watch(self, on_end: Callable[[str, str], None], on_gap: Callable[[], None]) -> None:
        wanted = {"type": "container", "event": "die", "label": f"{HOME_LABEL}={self._home}"}
        pause = threading.Event()
        while not self._closed:
            try:
                self._stream = self._client.events(decode=True, filters=wanted)
                on_gap()
                for event in self._stream:
                    labels = event.get("Actor", {}).get("Attributes", {})
                    on_end(labels.get(SANDBOX_LABEL, ""), str(event.get("id", "")))
            except FAULTS as problem:
                if not self._closed:
                    log.warning("docker_events_lost", fault=type(problem).__name__)
            if not self._closed:
                pause.wait(_AGAIN_S)

    def close(self) -> None:
        """Stop watching, and close the client."""
        self._closed = True
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.close()
        self._client.close()


def _client() -> docker.DockerClient:
    """Connect to the daemon that the environment names, or the machine's own."""
    place = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if place.startswith("unix://"):
        # Tried first: if nobody answers, the library leaks its socket.
        with socket.socket(socket.AF_UNIX) as trial:
            trial.settimeout(_FIRST_ANSWER_S)
            try:
                trial.connect(place.removeprefix("unix://"))
            except OSError as problem:
                raise DockerException(f"{place}: {problem.strerror or problem}") from None
    client = docker.from_env(timeout=_FIRST_ANSWER_S)  # queries the API version at once
    client.api.timeout = _TIMEOUT_S
    return client
