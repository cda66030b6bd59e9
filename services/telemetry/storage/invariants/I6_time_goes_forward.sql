-- I6: an end is not before its beginning, and the duration is the time between them
SELECT 'node_executions' AS place, id::text AS what,
       format('%s to %s, %s ms', started_at, completed_at, duration_ms) AS facts
  FROM node_executions
 WHERE completed_at < started_at OR duration_ms < 0
    OR abs(duration_ms - extract(epoch FROM completed_at - started_at) * 1000) > 1
UNION ALL
SELECT 'workflow_executions', id::text,
       format('%s to %s, %s ms', started_at, completed_at, duration_ms)
  FROM workflow_executions
 WHERE completed_at < started_at OR duration_ms < 0
    OR abs(duration_ms - extract(epoch FROM completed_at - started_at) * 1000) > 1
