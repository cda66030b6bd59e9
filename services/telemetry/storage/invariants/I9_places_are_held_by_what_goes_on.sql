-- I9: a place under a limit is held by what goes on
-- Settles: may be so for a moment while runs go on.
SELECT 'limit_slots' AS place, s.id::text AS what, coalesce(n.status, w.status)::text AS facts
  FROM limit_slots s
  LEFT JOIN workflow_executions w ON w.id = s.execution_id
  LEFT JOIN node_executions n ON n.id = s.node_execution_id
 WHERE w.completed_at IS NOT NULL OR n.status <> 'running'
