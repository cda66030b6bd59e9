-- I1: a run is over exactly when it has an end
SELECT 'workflow_executions' AS place, id::text AS what, status::text AS facts
  FROM workflow_executions
 WHERE (status IN ('completed', 'failed', 'cancelled')) <> (completed_at IS NOT NULL)
