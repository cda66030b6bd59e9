-- I7: a data flow has both its ends
SELECT 'node_data_flow' AS place, f.id::text AS what,
       format('%s to %s', f.source_node_id, f.target_node_id) AS facts
  FROM node_data_flow f
  JOIN workflow_executions w ON w.id = f.workflow_execution_id AND w.purge_started_at IS NULL
 WHERE (SELECT count(*) FROM node_executions n
         WHERE n.workflow_execution_id = f.workflow_execution_id
           AND n.node_id IN (f.source_node_id, f.target_node_id)) <> 2
