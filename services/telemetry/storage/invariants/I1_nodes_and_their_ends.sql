-- I1: a node is over exactly when it has an end
SELECT 'node_executions' AS place, id::text AS what, status::text AS facts
  FROM node_executions
 WHERE (status IN ('completed', 'failed', 'skipped', 'cancelled', 'quarantined'))
    <> (completed_at IS NOT NULL)
