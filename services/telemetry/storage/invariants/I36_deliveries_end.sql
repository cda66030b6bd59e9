-- I36: no node is sent out again and again
SELECT 'node_executions' AS place, id::text AS what, format('%s times', delivery_count) AS facts
  FROM node_executions
 WHERE delivery_count > 3
