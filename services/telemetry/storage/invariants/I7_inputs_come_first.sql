-- I7: a node starts after what it reads is complete
SELECT 'node_data_flow' AS place, f.id::text AS what,
       format('%s to %s', f.source_node_id, f.target_node_id) AS facts
  FROM node_data_flow f
  JOIN node_executions s ON s.workflow_execution_id = f.workflow_execution_id
                        AND s.node_id = f.source_node_id
  JOIN node_executions t ON t.workflow_execution_id = f.workflow_execution_id
                        AND t.node_id = f.target_node_id
 WHERE t.started_at < s.completed_at
