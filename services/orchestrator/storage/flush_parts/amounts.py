"""Usage of resources: of tenants' daily quotas and of runs' budgets."""

from __future__ import annotations

from typing import Final

from services.orchestrator.storage.flush_parts.part import Part

# Each member adds to its own row, so that members do not wait for each other's flushes.
CHARGES: Final = Part(
    "charged",
    "tenant_id uuid, cpu_us bigint, gb_us bigint, moved_bytes bigint",
    """
    INSERT INTO tenant_usage AS used (tenant_id, day, member_id, nodes, cpu_us, gb_us, moved_bytes)
    SELECT given.tenant_id, (clock.at AT TIME ZONE 'UTC')::date, $1, count(*),
           sum(given.cpu_us), sum(given.gb_us), sum(given.moved_bytes)
      FROM given
     GROUP BY given.tenant_id
     ORDER BY given.tenant_id
        ON CONFLICT (tenant_id, day, member_id) DO UPDATE
       SET nodes = used.nodes + EXCLUDED.nodes, cpu_us = used.cpu_us + EXCLUDED.cpu_us,
           gb_us = used.gb_us + EXCLUDED.gb_us,
           moved_bytes = used.moved_bytes + EXCLUDED.moved_bytes
    """,
    "charges",
    counted=False,
)

# The row of a run is changed once per flush; it may have been swept already.
SPENDS: Final = Part(
    "spent",
    """
    execution_id uuid, nodes bigint, cpu_us bigint, gb_us bigint, moved_bytes bigint, over boolean
    """,
    """
    UPDATE execution_budgets AS budget
       SET nodes_used = budget.nodes_used + each.nodes,
           cpu_us_used = budget.cpu_us_used + each.cpu_us,
           gb_us_used = budget.gb_us_used + each.gb_us,
           moved_bytes_used = budget.moved_bytes_used + each.moved_bytes,
           over = budget.over OR each.over
      FROM (SELECT execution_id, sum(nodes) AS nodes, sum(cpu_us) AS cpu_us, sum(gb_us) AS gb_us,
                   sum(moved_bytes) AS moved_bytes, bool_or(over) AS over
              FROM given GROUP BY execution_id) AS each
     WHERE budget.execution_id = each.execution_id
    """,
    "spends",
    counted=False,
)
