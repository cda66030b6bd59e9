-- I2: a node has one row in a run
SELECT 'node_executions' AS place, workflow_execution_id::text AS what, node_id::text AS facts
  FROM node_executions
 GROUP BY workflow_execution_id, node_id
HAVING count(*) > 1
