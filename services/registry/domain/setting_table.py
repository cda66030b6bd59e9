"""The settings of workflows and nodes: one table that is both published and used to validate.

Every setting is listed with what enforces it. The contract has no other settings, its rules use
these limits, and each entry names the test that proves its enforcement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final


class Level(StrEnum):
    """Where a setting can be made."""

    DEPLOYMENT = "deployment"
    WORKFLOW = "workflow"
    NODE = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting; limits are inclusive, and all numbers are in its unit."""

    name: str  # the contract's name, within WorkflowSettings or WorkflowNode
    kind: str  # integer, number, duration or text
    unit: str = ""
    default: float | None = None  # None: no limit, or set by the deployment
    minimum: float | None = None
    maximum: float | None = None
    levels: tuple[Level, ...]
    enforced_by: str  # the service
    enforcement: str
    proof: str  # the test that proves enforcement
    description: str = ""

    def fits(self, value: float) -> bool:
        """Return whether a value is within the limits; NaN is not."""
        low = self.minimum is None or value >= self.minimum
        return low and (self.maximum is None or value <= self.maximum)


_NODE: Final = (Level.NODE,)
# Set for a node, and capped by the deployment.
_NODE_OR_LESS: Final = (Level.DEPLOYMENT, Level.NODE)
_LIMIT_PROOF: Final = "tests/integration/runner/test_node_limits.py::"
_RETRY_PROOF: Final = "tests/unit/orchestrator/test_retry.py::"
_NETWORK_PROOF: Final = "tests/integration/runner/test_node_network.py::"
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS

_duration = partial(Setting, kind="duration", unit="ms")
_limit = partial(Setting, kind="integer", levels=_NODE_OR_LESS, enforced_by="runner")
_retry = partial(
    Setting,
    levels=_NODE,
    enforced_by="orchestrator",
    enforcement="the planner's timer for the next attempt",
)
_requirement = partial(
    Setting,
    levels=_NODE,
    enforced_by="orchestrator",
    enforcement="the node goes only to runners that have it; where none has, no run starts",
    proof="tests/unit/orchestrator/test_needs.py"
    "::test_a_place_goes_to_no_runner_that_lacks_what_it_requires",
)
_machine = partial(_requirement, kind="integer", default=0, minimum=0)

RUN_TIMEOUT: Final = _duration(
    name="settings.timeout",
    minimum=1,
    maximum=30 * _DAY_MS,
    levels=(Level.WORKFLOW,),
    enforced_by="orchestrator",
    enforcement="a timer of the engine stops the run and kills what runs",
    proof="tests/integration/orchestrator/test_faults.py"
    "::test_a_deadline_ends_a_run_and_kills_what_runs",
    description="how long a run may take in all; without limit when unset",
)
NODE_TIMEOUT: Final = _duration(
    name="timeout",
    default=600_000,
    minimum=1,
    maximum=_DAY_MS,
    levels=_NODE_OR_LESS,
    enforced_by="runner",
    enforcement="the runner kills the sandbox of an attempt that takes longer",
    proof="tests/integration/runner/test_attach.py::test_a_timeout_and_an_error_say_what_happened",
    description="how long one attempt may take",
)
QUEUE_TIMEOUT: Final = _duration(
    name="queue_timeout",
    minimum=1,
    maximum=30 * _DAY_MS,
    levels=_NODE,
    enforced_by="orchestrator",
    enforcement="a timer of the engine fails a node that no runner took in time",
    proof="tests/unit/orchestrator/test_core.py::test_what_no_runner_takes_in_its_time_fails",
    description="how long a node may wait for a runner; without limit when unset",
)
TOTAL_TIMEOUT: Final = _duration(
    name="total_timeout",
    minimum=1,
    maximum=30 * _DAY_MS,
    levels=_NODE,
    enforced_by="orchestrator",
    enforcement="a timer of the engine kills the attempt that runs and fails the node",
    proof="tests/unit/orchestrator/test_core.py"
    "::test_a_node_is_killed_once_all_its_attempts_together_took_too_long",
    description="how long all attempts of a node may take together; without limit when unset",
)
HEARTBEAT_TIMEOUT: Final = _duration(
    name="heartbeat_timeout",
    minimum=100,
    maximum=_DAY_MS,
    levels=_NODE,
    enforced_by="runner",
    enforcement="the runner kills the sandbox of an attempt whose code falls silent",
    proof="tests/integration/runner/test_heartbeats.py"
    "::test_an_attempt_that_falls_silent_is_killed_and_may_be_tried_again",
    description="how long an attempt may go without a heartbeat; without limit when unset",
)
CACHE_TTL: Final = _duration(
    name="cache_ttl",
    minimum=1_000,
    maximum=30 * _DAY_MS,
    levels=_NODE,
    enforced_by="orchestrator",
    enforcement="a result that is young enough is looked up before the node would run",
    proof="tests/integration/orchestrator/test_result_cache.py"
    "::test_a_result_is_given_again_until_its_time_is_up",
    description="how long a result may be given again for the same inputs; never when unset",
)
MEMORY_LIMIT: Final = _limit(
    name="memory_limit_bytes",
    unit="bytes",
    default=512 * 1024 * 1024,
    minimum=16 * 1024 * 1024,
    maximum=1024**4,
    enforcement="the sandbox's control group, else its own limit, ends what uses more",
    proof="tests/integration/runner/test_hostile_code.py::test_a_memory_bomb_ends_as_out_of_memory",
    description="how much memory one attempt may use",
)
CPU: Final = _limit(
    name="limits.cpu_millicores",
    unit="millicores",
    minimum=10,
    maximum=1_024_000,
    enforcement="the control group of the sandbox is given so much time of the processors",
    proof=f"{_LIMIT_PROOF}test_a_share_of_the_processors_is_kept",
    description="thousandths of a processor that one attempt may use; a fair share when unset",
)
PROCESSES: Final = _limit(
    name="limits.processes",
    unit="processes",
    default=128,
    minimum=4,
    maximum=32_768,
    enforcement="the control group of the sandbox, else a limit of its user, refuses more",
    proof=f"{_LIMIT_PROOF}test_no_more_processes_are_made_than_the_node_may_have",
    description="how many processes and threads one attempt may have at once",
)
OPEN_FILES: Final = _limit(
    name="limits.open_files",
    unit="files",
    default=1024,
    minimum=64,
    maximum=65_536,
    enforcement="the kernel refuses to open more in one process",
    proof=f"{_LIMIT_PROOF}test_no_more_files_are_opened_than_the_node_may_have",
    description="how many files, pipes and sockets each process of an attempt may have open",
)
TEMPORARY_BYTES: Final = _limit(
    name="limits.temporary_bytes",
    unit="bytes",
    default=256 * 1024 * 1024,
    minimum=1024 * 1024,
    maximum=1024**4,
    enforcement="the file systems of the sandbox are so large; where it has none, each file",
    proof=f"{_LIMIT_PROOF}test_no_more_is_written_than_the_node_may_keep",
    description="how much an attempt may write to its temporary folder, and again to shared memory",
)
OUTPUT_BYTES: Final = _limit(
    name="limits.output_bytes",
    unit="bytes",
    default=64 * 1024 * 1024,
    minimum=1024,
    maximum=1024**3,
    enforcement="the runner takes no larger answer",
    proof=f"{_LIMIT_PROOF}test_an_output_beyond_its_limit_fails_the_node",
    description="how large the outputs of one attempt may be in sum, as JSON texts",
)
NODE_LIMITS: Final = (CPU, PROCESSES, OPEN_FILES, TEMPORARY_BYTES, OUTPUT_BYTES)
# Settings that a deployment can cap.
CAPPED: Final = (NODE_TIMEOUT, MEMORY_LIMIT, *NODE_LIMITS)
MAX_RETRIES: Final = Setting(
    name="retry.max_retries",
    kind="integer",
    unit="attempts",
    default=3,
    minimum=0,
    maximum=100,
    levels=_NODE,
    enforced_by="orchestrator",
    enforcement="the planner fails the node when there are none left",
    proof="tests/integration/orchestrator/test_settings.py"
    "::test_no_more_attempts_follow_than_the_policy_says",
    description="how many attempts may follow the first; 0 if the node has no retry policy",
)
INITIAL_DELAY: Final = _retry(
    name="retry.initial_delay",
    kind="duration",
    unit="ms",
    default=1_000,
    minimum=0,
    maximum=_HOUR_MS,
    proof=f"{_RETRY_PROOF}test_the_first_wait_is_the_initial_delay",
    description="the wait before the first retry",
)
FACTOR: Final = _retry(
    name="retry.factor",
    kind="number",
    default=2.0,
    minimum=1,
    maximum=10,
    proof=f"{_RETRY_PROOF}test_each_further_wait_grows_by_the_factor",
    description="by how much each further wait grows",
)
MAX_DELAY: Final = _retry(
    name="retry.max_delay",
    kind="duration",
    unit="ms",
    default=60_000,
    minimum=0,
    maximum=_DAY_MS,
    proof=f"{_RETRY_PROOF}test_no_wait_is_longer_than_the_longest",
    description="the longest wait",
)
JITTER: Final = _retry(
    name="retry.jitter",
    kind="number",
    default=0.1,
    minimum=0,
    maximum=1,
    proof=f"{_RETRY_PROOF}test_jitter_takes_off_no_more_than_its_part",
    description="the part of each wait that is drawn at random",
)
REUSE: Final = Setting(
    name="reuse",
    kind="text",
    levels=_NODE,
    enforced_by="runner",
    enforcement="the runner keys interpreters by it, and begins anew as often as it says",
    proof="tests/integration/runner/test_reuse_of_attempts.py::test_what_calls_share_is_what_the_node_says",
    description="how much of a process the calls share: warm, fork, fresh or container",
)
CONCURRENCY: Final = Setting(
    name="concurrency",
    kind="integer",
    unit="calls",
    default=1,
    minimum=0,
    maximum=64,
    levels=_NODE,
    enforced_by="runner",
    enforcement="an interpreter takes no more calls at once",
    proof="tests/integration/runner/test_calls_at_once.py::test_no_more_calls_meet_than_the_node_says",
    description="how many calls of an async def one interpreter serves at once",
)
RUNNER_ISOLATION: Final = _requirement(
    name="runner.isolation",
    kind="text",
    description="the weakest isolation that will do: T0 to T4; else what the deployment asks for",
)
RUNNER_LABELS: Final = _requirement(
    name="runner.labels",
    kind="text",
    description="labels that the runner must have",
)
RUNNER_CPUS: Final = _machine(
    name="runner.cpus",
    unit="processors",
    maximum=1024,
    description="how many processors the runner's machine must have",
)
RUNNER_MEMORY: Final = _machine(
    name="runner.memory_bytes",
    unit="bytes",
    maximum=1024**4,
    description="how much memory the runner's machine must have",
)
RUNNER_GPUS: Final = _machine(
    name="runner.gpus",
    unit="GPUs",
    maximum=64,
    description="how many GPUs the runner's machine must have",
)
NETWORK: Final = Setting(
    name="network",
    kind="text",
    levels=_NODE,
    enforced_by="runner",
    enforcement="the sandbox's own network namespace; where no runner allows it, no run starts",
    proof=f"{_NETWORK_PROOF}test_a_network_that_no_deployment_allows_stops_the_start",
    description="what the code reaches of the network: none, egress or host; none when unset",
)
EGRESS_HOSTS: Final = Setting(
    name="egress_hosts",
    kind="text",
    levels=_NODE,
    enforced_by="runner",
    enforcement="the proxy, which is the sandbox's only network access",
    proof=f"{_NETWORK_PROOF}test_only_hosts_that_node_and_deployment_allow_are_reached",
    description="the hosts that a node with egress may reach, of those that the deployment allows",
)
# Set by the node's version, not by the workflow; listed to report what is in force.
PYTHON_VERSION: Final = Setting(
    name="python_version",
    kind="text",
    levels=(Level.DEPLOYMENT, Level.NODE),
    enforced_by="orchestrator",
    enforcement="the node goes only to runners with this Python; where none has it, no run starts",
    proof="tests/integration/orchestrator/test_settings.py"
    "::test_a_python_that_no_runner_has_stops_the_start",
    description="the Python of a node; where its source names none, that of QFLOW_PYTHON_VERSION",
)

SETTINGS: Final = (
    RUN_TIMEOUT,
    NODE_TIMEOUT,
    MEMORY_LIMIT,
    *NODE_LIMITS,
    QUEUE_TIMEOUT,
    TOTAL_TIMEOUT,
    HEARTBEAT_TIMEOUT,
    CACHE_TTL,
    MAX_RETRIES,
    INITIAL_DELAY,
    FACTOR,
    MAX_DELAY,
    JITTER,
    REUSE,
    CONCURRENCY,
    NETWORK,
    EGRESS_HOSTS,
    RUNNER_ISOLATION,
    RUNNER_LABELS,
    RUNNER_CPUS,
    RUNNER_MEMORY,
    RUNNER_GPUS,
    PYTHON_VERSION,
)


def outside(values: Iterator[tuple[Setting, float | None]]) -> Iterator[tuple[Setting, str]]:
    """Yield the settings whose values are out of bounds, with a message about the limits."""
    for setting, value in values:
        if value is not None and not setting.fits(value):
            unit = f" {setting.unit}" if setting.unit else ""
            yield (
                setting,
                f"{value:g} is out of bounds: {setting.minimum:g} to {setting.maximum:g}{unit}",
            )
